"""Numbers, times, widths and reasons in words."""

from __future__ import annotations

import pytest

from coordinator.strategies import POLICIES
from tests.strategies.scene import PLAN, context, device, model
from web import wording
from web.explanation import sentences

MODEL = model(0, 0, 0, 0)

@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.9, "89 s"),
        (90, "1 min"),
        (5399, "89 min"),
        (5400, "1 h"),
        (129599, "35 h"),
        (129600, "1 d"),
        (None, "–"),
    ],
)
def test_spans(seconds, text):
    assert wording.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (90_000, "90.0 kB"),
        (999_600, "1.00 MB"),
        (2.5e12, "2.50 TB"),
        (None, "–"),
    ],
)
def test_sizes(count, text):
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.25, "0.250"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0.00012, "1.20e-04"),
        (2.0, "2"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (float("nan"), "nan"),
        (None, "–"),
    ],
)
def test_numbers(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text", "shade"),
    [
        (1.0, "1", "--width-1"),
        (0.5, "1/2", "--width-2"),
        (0.0625, "1/16", "--width-16"),
        (0.4, "40 %", "--width-2"),
        (1 / 1024, "1/1024", "--width-16"),
    ],
)
def test_widths(value, text, shade):
    assert (wording.width(value), wording.shade(value)) == (text, shade)


def test_moments_carry_their_time():
    found = wording.moment(1_700_000_000.0, 1_700_000_012.0)

    assert "12 s ago" in found
    assert 'datetime="2023-11-14T22:13:20.000000Z"' in found
    assert "in 30 s" in wording.moment(1_700_000_030.0, 1_700_000_000.0)
    assert wording.moment(None, 0) == "–"


def test_a_sentence_leads_to_what_it_mentions_and_the_rest_follows():
    links = {"pi-1": "/devices/a", "run-1": "/runs/run-1"}

    assert wording.mentions("pi-1 left, not pi-10", links) == (
        '<a href="/devices/a">pi-1</a> left, not pi-10 · <a href="/runs/run-1">run-1</a>'
    )
    assert wording.mentions("<b> of pi-10", {"pi-1": "/x"}) == '&lt;b&gt; of pi-10 · <a href="/x">pi-1</a>'


def test_an_assignment_is_mentioned_as_itself_and_not_as_its_run():
    text = "pi-1 broke off run-1.12, then run-1.12 expired."

    assert wording.assignments_in(text, "run-1") == ["run-1.12"]
    assert wording.assignments_in("run-1 ended. run-12.3, my-run-1.4", "run-1") == []
    assert wording.mentions(text, {"run-1.12": "/a", "run-1": "/r"}) == (
        'pi-1 broke off <a href="/a">run-1.12</a>, then run-1.12 expired. · <a href="/r">run-1</a>'
    )
    assert wording.mentions("it ended run-1.", {"run-1": "/r"}) == 'it ended <a href="/r">run-1</a>.'


def test_sparklines_leave_out_what_is_unknown():
    assert 'd="M0.0,28.0L100.0,2.0"' in wording.sparkline([1, None, 3])
    assert "path" not in wording.sparkline([None, 2])
    assert "nan" not in wording.sparkline([5, 5, 5])


@pytest.mark.parametrize(
    ("explanation", "text"),
    [
        ({"heterofl": {"group": "pi3", "width": 0.5}}, "HeteroFL: devices of group <b>pi3</b> train width <b>1/2</b>."),
        ({"heterofl": {"group": "", "width": 1.0}}, "HeteroFL: devices without a group train width <b>1</b>."),
        ({"fixed": {"width": 0.25}}, "Fixed width: every device trains width <b>1/4</b>."),
        (
            {
                "whale_fl": {
                    "width": 0.5,
                    "samples": 400,
                    "fisher": 0.01,
                    "seconds": 12.5,
                    "reference": 9.0,
                    "utility": 1.25,
                    "scale": 2.5,
                    "share": 0.5,
                }
            },
            "WHALE-FL: utility <b>1.25</b> is <b>50 %</b> of the fleet's scale "
            "(from <b>400</b> samples, gradient information "
            "<b>0.01</b>, <b>12.5</b> s of training, <b>9</b> s wanted), hence width <b>1/2</b>.",
        ),
        (
            {"whale_fl": {"width": 0.25, "utility": 1.25, "share": 0.5, "longest": 9.0}},
            "WHALE-FL: utility <b>1.25</b> is <b>50 %</b> of the fleet's scale, hence width <b>1/4</b>, "
            "the widest that takes no longer than <b>9</b> s.",
        ),
        (
            {"heterofl_dynamic": {"width": 0.25, "probability": 0.2}},
            "HeteroFL: width <b>1/4</b> was drawn, at a chance of <b>20 %</b>.",
        ),
        (
            {"fedrolex": {"group": "pi3", "width": 0.5, "roll": 15, "per": "version"}},
            "FedRolex: devices of group <b>pi3</b> train width <b>1/2</b> of a window that has rolled on by "
            "<b>15</b> channels and moves with every version.",
        ),
        (
            {"fresh_model": {"refresh": 12, "slot": 6, "slots": 10, "by": "meta model", "chance": 0.125}},
            "Fresh model: it asks for the fresh model after step <b>12</b> (slot <b>6</b> of <b>10</b>, "
            "proposed for its first training at a chance of <b>12 %</b>).",
        ),
        (
            {"fresh_model": {"refresh": 12, "slot": 6, "slots": 10, "by": "table", "action": "later", "value": 0.08}},
            "Fresh model: it asks for the fresh model after step <b>12</b> (slot <b>6</b> of <b>10</b>, "
            "later than before, for its table expects most of that: <b>0.08</b>).",
        ),
        (
            {"fresh_model": {"refresh": 12, "slot": 6, "slots": 10, "by": "chance", "action": "the same", "value": 0}},
            "Fresh model: it asks for the fresh model after step <b>12</b> (slot <b>6</b> of <b>10</b>, "
            "the same as before, to try it).",
        ),
        (
            {"fresh_model": {"refresh": 12, "slot": 6, "slots": 10, "by": "fixed"}},
            "Fresh model: it asks for the fresh model after step <b>12</b> (slot <b>6</b> of <b>10</b>, "
            "as for every device).",
        ),
        ({"held": {"width": 0.5}}, "Held: width <b>1/2</b>."),
        (
            {"whale_fl": {"width": 1.0, "utility": None, "warm_up": "report 2 of 7"}},
            "WHALE-FL: still learning about this device (report 2 of 7), so it trains width <b>1</b>.",
        ),
        ({"new_paper": {"step_budget": 30, "width": 0.5}}, "new_paper: step budget <b>30</b>, width <b>1/2</b>."),
        ({"new_paper": {}}, "new_paper: no inputs recorded."),
        ({"<b>": {"a": "<i>"}}, "&lt;b&gt;: a <b>&lt;i&gt;</b>."),
    ],
)
def test_an_explanation_reads_as_a_sentence(explanation, text):
    assert sentences(explanation) == (text,)


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_explains_itself_by_its_name_in_one_sentence(kind):
    policy = POLICIES[kind]()
    _, _, explanation = policy.shape(policy.init(MODEL), PLAN, device(), MODEL, context())
    for brief in (True, False):
        (sentence,) = sentences({kind: explanation}, brief)
        assert sentence.endswith(".")
        assert "None" not in sentence
