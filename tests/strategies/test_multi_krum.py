"""Multi-Krum: who has the closest neighbours is averaged."""

from __future__ import annotations

import pytest

from coordinator.strategies import MultiKrum

from .scene import context, contribution, model

MODEL = model(0, 0, 0, 0)


def last_step(aggregator, *contributions):
    state, step = aggregator.init(MODEL), None
    for number, one in enumerate(contributions):
        state, step = aggregator.absorb(state, MODEL, one, context(number))
    return step


def test_one_of_five_is_left_out_and_says_so_in_history():
    given = [contribution(v, v, v, v, key=f"{v}/1") for v in (1, 2, 900, 3, 2)]
    step = last_step(MultiKrum(goal=5), *given)
    assert step.difference["w"].tolist() == [2] * 4  # (1 + 2 + 3 + 2) / 4
    assert step.coverage["w"].tolist() == [4] * 4
    assert [c.weight for c in step.contributors] == [1, 1, 0, 1, 1]


def test_scores_by_hand():
    # K = 5, f = 1: each is scored by its two nearest. Of 0 1 3 4.5 9: 1+9, 1+4, 2.25+4, 2.25+12.25, 20.25+36
    step = last_step(MultiKrum(goal=5), *(contribution(v, 0, 0, 0, key=f"{v}/1") for v in (0, 1, 3, 4.5, 9)))
    assert [c.weight for c in step.contributors] == [1, 1, 1, 1, 0]
    assert step.difference["w"][0] == pytest.approx(8.5 / 4)


def test_two_of_ten_that_collude_are_left_out():
    honest = [contribution(1 + n / 10, 1, 1, 1, key=f"h{n}/1") for n in range(8)]
    evil = [contribution(-5, -5, -5, -5, key=f"e{n}/1") for n in range(2)]
    step = last_step(MultiKrum(goal=10), *evil, *honest)
    assert {c.key for c in step.contributors if not c.weight} == {"e0/1", "e1/1"}


def test_widths_are_compared_over_what_they_have_in_common():
    narrow = [contribution(1, 1, width=0.5, key=f"n{n}/1") for n in range(2)]
    wide = [contribution(1, 1, 50, 50, key=f"w{n}/1") for n in range(2)]
    odd = contribution(9, 9, width=0.5, key="odd/1")
    step = last_step(MultiKrum(goal=5), *narrow, odd, *wide)
    assert step.difference["w"].tolist() == [1, 1, 50, 50]
    assert step.coverage["w"].tolist() == [4, 4, 2, 2]


@pytest.mark.parametrize("goal", [1, 2, 3, 4])
def test_of_less_than_five_it_is_the_mean(goal):
    step = last_step(MultiKrum(goal=goal), *(contribution(v, 0, 0, 0) for v in range(goal)))
    assert step.difference["w"][0] == pytest.approx((goal - 1) / 2)


def test_no_share_of_the_poisoned_means_the_mean():
    step = last_step(MultiKrum(goal=5, byzantine=0.0), *(contribution(v, 0, 0, 0) for v in (1, 1, 1, 1, 96)))
    assert step.difference["w"][0] == 20
