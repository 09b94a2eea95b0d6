"""When a simulation ends."""

from __future__ import annotations

import pytest

from coordinator.errors import ShoalError
from coordinator.simulator.until import Until, parse


def test_conditions():
    assert parse("accuracy>=0.88 or 6h") == Until(accuracy=0.88, seconds=21_600)
    assert parse("accuracy >= 88 % or 200 versions or 5000 updates") == Until(0.88, versions=200, updates=5000)
    assert parse("90s") == Until(seconds=90)


def test_accuracy_is_the_mean_of_the_last_three():
    until = parse("accuracy>=0.8 or 6h")
    assert until.met(1, 1, 1, [0.99, 0.99]) == ""
    assert until.met(1, 1, 1, [0.99, 0.7, 0.7]) == ""
    assert until.met(1, 1, 1, [0.0, 0.75, 0.75, 1.0]) == "accuracy 0.8333 reached 0.8"


@pytest.mark.parametrize(
    ("given", "words"), [((7200, 0, 0), "2 h are over"), ((0, 5, 0), "version 5 was"), ((0, 0, 9), "9 updates have")]
)
def test_limits(given, words):
    assert words in parse("2h or 5 versions or 9 updates").met(*given, [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("accuracy>=1.2 or 6h", "no model reaches an accuracy of 1.2"),
        ("accuracy>=0.9", "may never come true, add a limit, e.g. 'accuracy>=0.9 or 24h'"),
        ("soon", "'soon' is no condition"),
        ("6h or 7h", "seconds is given twice"),
        ("0s", "holds from the beginning"),
        ("accuracy>=0 or 6h", "no model reaches"),
    ],
)
def test_what_can_never_be_or_never_end(text, sentence):
    with pytest.raises(ShoalError) as told:
        parse(text)
    assert sentence in told.value.detail
