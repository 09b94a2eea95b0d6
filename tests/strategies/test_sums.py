"""Sums over regions: what BLAS adds is what is added element by element."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies import sums
from protocol.subnetwork import Axis, Region, Subnetwork

LAYOUT = {"w": (Axis(6, None, 2), Axis(4, "hidden")), "b": (Axis(4, "hidden"),)}


@pytest.mark.parametrize(
    ("channels", "whole"), [({}, True), ({"hidden": 4}, True), ({"hidden": 2}, False), ({"hidden": (3, 1)}, False)]
)
def test_a_part_is_added_where_it_belongs_and_nowhere_else(channels, whole):
    region, rng = Region(LAYOUT, Subnetwork(channels)), np.random.default_rng(0)
    assert region.whole == whole
    total = {name: rng.normal(size=shape).astype(np.float32) for name, shape in Region(LAYOUT).shapes.items()}
    part = {name: rng.normal(size=shape).astype(np.float32) for name, shape in region.shapes.items()}
    expected = {name: total[name] + np.float32(0.3) * value for name, value in region.lift(part).items()}
    sums.add(region, total, part, 0.3)
    for name, value in expected.items():
        np.testing.assert_allclose(total[name], value, rtol=1e-6, atol=1e-7)
