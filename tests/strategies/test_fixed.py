from __future__ import annotations

import pytest

from coordinator.strategies import Fixed

from .scene import PLAN, context, device, model


def test_everyone_trains_the_same_width():
    for name in ("pi", "zero"):
        _, plan, explanation = Fixed(width=0.25).shape(None, PLAN, device(name), model(0, 0, 0, 0), context())
        assert plan.width == 0.25
        assert explanation == {"width": 0.25}


@pytest.mark.parametrize("width", [0, 1.5, float("nan")])
def test_the_width_has_a_range(width):
    with pytest.raises(ValueError, match=r"width is .*, expected a number from 0\.00097\d* to 1"):
        Fixed(width=width)
