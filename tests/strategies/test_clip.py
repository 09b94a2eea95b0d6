from __future__ import annotations

import pytest

from coordinator.strategies import Clip
from coordinator.strategies.base import Contributor, Step

from .scene import context, model, vector

CONTRIBUTORS = (Contributor("a/1", 1.0),)


def clipped(norm, *values):
    step = Step(vector(*values), vector(1, 1, 1, 1), CONTRIBUTORS)
    return Clip(norm=norm).apply(None, step, model(0, 0, 0, 0), context())[1]


def test_a_long_step_is_scaled_down_and_keeps_its_direction():
    # |(3, 4)| = 5, so at most 1 means a fifth
    step = clipped(1.0, 3, 4, 0, 0)
    assert step.difference["w"] == pytest.approx([0.6, 0.8, 0, 0])
    assert step.coverage["w"].tolist() == [1, 1, 1, 1]
    assert step.contributors == CONTRIBUTORS


@pytest.mark.parametrize("norm", [5.0, 6.0])
def test_a_step_that_is_not_longer_is_left_alone(norm):
    assert clipped(norm, 3, 4, 0, 0).difference["w"].tolist() == [3, 4, 0, 0]


def test_a_bound_of_zero_stops_the_model():
    assert clipped(0.0, 3, 4, 0, 0).difference["w"].tolist() == [0, 0, 0, 0]


def test_the_largest_steps_do_not_overflow():
    assert clipped(1.0, 3e38, 0, 0, 0).difference["w"] == pytest.approx([1, 0, 0, 0])
