from __future__ import annotations

import pytest

from coordinator.strategies import HeteroFL

from .scene import PLAN, context, device, model


@pytest.mark.parametrize(("group", "width"), [("zero2", 0.25), ("pi3", 0.5), ("", 0.125), ("pi5", 0.125)])
def test_the_width_belongs_to_the_devices_group(group, width):
    heterofl = HeteroFL(widths={"zero2": 0.25, "pi3": 0.5}, width=0.125)
    state, plan, explanation = heterofl.shape(None, PLAN, device(group=group), model(0, 0, 0, 0), context())
    assert state is None
    assert plan.width == width
    assert explanation == {"group": group, "width": width}


def test_by_default_everyone_trains_the_whole_model():
    _, plan, _ = HeteroFL().shape(None, PLAN, device(group="pi3"), model(0, 0, 0, 0), context())
    assert plan.width == 1.0


def test_every_width_is_checked():
    with pytest.raises(ValueError, match=r"widths is 2\.0, expected a number from"):
        HeteroFL(widths={"zero2": 0.25, "pi3": 2.0})
