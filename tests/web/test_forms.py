"""What a form's fields are read as, and what is said beside those that are wrong."""

from __future__ import annotations

import pytest

from web.forms import Form


def test_empty_fields_are_what_is_usual():
    form = Form({})

    assert (form.text("a"), form.whole("b", 1, 9, usual=4), form.number("c", 0, 1)) == ("", 4, None)
    assert form.chosen("d", ("x", "y")) == "x"
    assert not form.wrong


@pytest.mark.parametrize("given", ["0", "10", "-1", "1.5", "²", "٣", "9" * 5000, "x"])
def test_a_number_that_is_none_or_out_of_range_is_told_at_its_field(given):
    form = Form({"uses": given})

    assert form.whole("uses", 1, 9, usual=1) == 1
    assert list(form.problems) == ["uses"]
    assert "expected a whole number from 1 to 9" in form.problems["uses"] or "characters" in form.problems["uses"]


@pytest.mark.parametrize("given", ["0", "1.01", "nan", "inf", "-3", "half"])
def test_a_share_lies_above_0_and_at_most_at_1(given):
    form = Form({"target": given})

    assert form.number("target", 0, 1) is None
    assert "expected a number above 0, at most 1" in form.problems["target"]


def test_the_first_sentence_about_a_field_stays():
    form = Form()
    form.refuse("name", "First.")
    form.refuse("name", "Second")

    assert form.problems == {"name": "First"}
