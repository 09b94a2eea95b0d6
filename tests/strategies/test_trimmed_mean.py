"""Coordinate-wise median and trimmed mean, on vectors worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies import CoordinateMedian, TrimmedMean
from coordinator.strategies.base import Contributor
from protocol.subnetwork import Axis, Region, Subnetwork

from .scene import context, contribution, model

MODEL = model(0, 0, 0, 0)


def last_step(aggregator, *contributions):
    state, step = aggregator.init(MODEL), None
    for number, one in enumerate(contributions):
        assert step is None
        state, step = aggregator.absorb(state, MODEL, one, context(number))
    return step


def test_the_median_of_an_odd_and_of_an_even_number():
    odd = last_step(CoordinateMedian(goal=3), *(contribution(v, -v, 0, 1) for v in (1, 100, 2)))
    assert odd.difference["w"].tolist() == [2, -2, 0, 1]
    even = last_step(CoordinateMedian(goal=4), *(contribution(v, -v, 0, 1) for v in (1, 100, 2, 4)))
    assert even.difference["w"].tolist() == [3, -3, 0, 1]


def test_a_coordinate_is_judged_among_those_that_cover_it():
    wide, narrow = [contribution(v, v, v, v) for v in (1, 2, 300)], contribution(4, 4, width=0.5)
    step = last_step(CoordinateMedian(goal=4), *wide, narrow)
    assert step.difference["w"].tolist() == [3, 3, 2, 2]
    assert step.coverage["w"].tolist() == [4, 4, 3, 3]


def test_where_nobody_reaches_nothing_moves():
    step = last_step(CoordinateMedian(goal=2), contribution(4, width=0.25), contribution(6, width=0.25))
    assert step.difference["w"].tolist() == [5, 0, 0, 0]
    assert step.coverage["w"].tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    ("trim", "expected"),
    [(0.0, 22.0), (0.2, 3.0), (0.3, 3.0), (0.5, 3.0)],  # of 1 2 3 4 100: none, one, two on either side
)
def test_the_extremes_are_left_out(trim, expected):
    step = last_step(TrimmedMean(goal=5, trim=trim), *(contribution(v, 0, 0, 0) for v in (3, 100, 1, 4, 2)))
    assert step.difference["w"][0] == expected


def test_of_two_values_the_trimmed_mean_is_the_mean():
    step = last_step(TrimmedMean(goal=2), contribution(1, 0, 0, 0), contribution(5, 0, 0, 0))
    assert step.difference["w"][0] == 3


def test_stale_contributions_are_damped_and_the_step_is_scaled():
    stale = contribution(8, 8, 8, 8, staleness=3, key="s/1")
    step = last_step(CoordinateMedian(goal=1, server_rate=0.5), stale)
    assert step.difference["w"].tolist() == [2] * 4
    assert step.contributors == (Contributor("s/1", 0.5),)


def test_a_minority_moves_the_median_no_further_than_the_others_lie():
    honest = [contribution(v, v, v, v) for v in (1.0, 1.1, 0.9, 1.2)]
    step = last_step(CoordinateMedian(goal=5), contribution(-1e6, 1e6, -1e6, 1e6), *honest)
    assert np.all((step.difference["w"] >= 0.9) & (step.difference["w"] <= 1.2))


@pytest.mark.parametrize("aggregator", [CoordinateMedian(goal=2), TrimmedMean(goal=2)])
def test_a_buffer_is_cut_down_with_the_model(aggregator):
    state, _ = aggregator.absorb(aggregator.init(MODEL), MODEL, contribution(1, 2, width=0.5), context())
    kept = Region({"w": (Axis(4, "hidden"),)}, Subnetwork({"hidden": (1, 3)}))
    (one,) = aggregator.reshape(state, kept).taken
    assert one.difference["w"][0] == 2
    assert np.isnan(one.difference["w"][1])
