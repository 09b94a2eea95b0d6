"""FedRolex: windows that roll on with the versions."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies import FedRolex
from protocol.subnetwork import nested

from .scene import LAYOUT, PLAN, context, device, model


def shaped(policy, group="", **now):
    return policy.shape(None, PLAN, device(group=group), model(0, 0, 0, 0), evolve(context(), **now))[1:]


def window(plan):
    kept = nested(LAYOUT, plan.width, plan.roll).channels["hidden"]
    return tuple(range(kept)) if isinstance(kept, int) else kept


def test_the_window_rolls_by_one_channel_per_version_and_wraps_around():
    policy = FedRolex(width=0.5)
    assert [window(shaped(policy, version=v)[0]) for v in range(5)] == [(0, 1), (1, 2), (2, 3), (0, 3), (0, 1)]


def test_every_channel_is_trained_alike():
    policy, counts = FedRolex(width=0.75), np.zeros(4)
    for version in range(8):
        counts[list(window(shaped(policy, version=version)[0]))] += 1
    assert counts.tolist() == [6, 6, 6, 6]


def test_the_width_belongs_to_the_devices_group_and_the_roll_to_all():
    policy = FedRolex(widths={"pi3": 0.5}, width=0.25, per="absorbed", stride=3)
    plan, explanation = shaped(policy, "pi3", absorbed=5, version=9)
    assert (plan.width, plan.roll) == (0.5, 15)
    assert explanation == {"group": "pi3", "width": 0.5, "roll": 15, "per": "absorbed"}
    assert shaped(policy, "else", absorbed=5)[0].width == 0.25


def test_a_run_of_any_length_stays_within_what_a_plan_may_say():
    assert shaped(FedRolex(stride=1_000_000), version=1 << 40)[0].roll < 1 << 31


@pytest.mark.parametrize("widths", [{"a": 0.0}, {"a": 1.5}])
def test_every_width_is_checked(widths):
    with pytest.raises(ValueError, match="expected a number from"):
        FedRolex(widths=widths)
