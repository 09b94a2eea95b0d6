"""Sketches tell what two differences have in common, band by band, within a few per cent."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies.sketch import SIZE, Bands, products
from protocol.subnetwork import CLASSES, Axis, Region, Subnetwork, nested
from protocol.weights import dot, norm

LAYOUT = {
    "hidden.weight": (Axis(40), Axis(64, "hidden")),
    "hidden.bias": (Axis(64, "hidden"),),
    "out.weight": (Axis(64, "hidden"), Axis(10, CLASSES)),
}


def drawn(region, rng):
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in region.shapes.items()}


def region(width, roll=0):
    return Region(LAYOUT, nested(LAYOUT, width, roll))


def test_a_band_holds_what_a_width_has_and_no_smaller_one():
    # of 64 channels: 32, 16, 8, 4 and 4, each with 40 + 1 + 10 coordinates
    assert Bands.of(region(1.0)).sizes == {0: 32 * 51, 1: 16 * 51, 2: 8 * 51, 3: 4 * 51, 4: 4 * 51}
    assert Bands.of(region(0.25)).sizes == {2: 8 * 51, 3: 4 * 51, 4: 4 * 51}
    assert Bands.of(region(0.25, roll=48)).sizes == {0: 16 * 51}
    assert Bands.of(Region(LAYOUT, Subnetwork({"hidden": (0, 63)}))).sizes == {0: 51, 4: 51}


def test_a_value_is_spread_over_its_band():
    part = region(0.5)
    spread = Bands.of(part).spread({1: 2.0, 2: 3.0, 3: 5.0, 4: 7.0})["hidden.bias"]
    assert spread.tolist() == [7.0] * 4 + [5.0] * 4 + [3.0] * 8 + [2.0] * 16


def test_the_inner_product_is_told_within_three_per_cent_of_the_lengths():
    """1/√1024 = 3.1 % is the standard deviation for independent vectors of one band: measured over 200 pairs."""
    rng, errors = np.random.default_rng(1), []
    bands = Bands.of(Region({"w": (Axis(20_000),)}))
    for _ in range(200):
        u, v = ({"w": rng.normal(size=20_000).astype(np.float32)} for _ in range(2))
        v["w"] += np.float32(rng.uniform(-0.5, 0.5)) * u["w"]
        errors.append(sum(products(bands.sketch(u), bands.sketch(v)).values()) - dot(u, v) / norm(u) / norm(v))
    assert abs(np.mean(errors)) < 0.006
    assert 0.025 < np.std(errors) < 0.035


def test_two_widths_are_compared_over_what_they_share():
    rng, wide, narrow = np.random.default_rng(1), region(1.0), region(0.25)
    u, v = drawn(wide, rng), drawn(narrow, rng)
    wide.add(u, wide.cut(narrow.lift(v)))
    cut = narrow.cut(u)
    estimate = sum(products(Bands.of(wide).sketch(u), Bands.of(narrow).sketch(v)).values())
    assert estimate == pytest.approx(dot(cut, v) / norm(cut) / norm(v), abs=0.05)
    assert estimate > 0.6


def test_products_of_a_vector_with_itself_are_its_shares_by_band():
    part = region(1.0)
    difference = {name: np.ones(shape, np.float32) for name, shape in part.shapes.items()}
    sketch = Bands.of(part).sketch(difference)
    found = products(sketch, sketch)
    assert sum(found.values()) == pytest.approx(1)
    assert found == pytest.approx({0: 1 / 2, 1: 1 / 4, 2: 1 / 8, 3: 1 / 16, 4: 1 / 16}, abs=0.05)


def test_opposite_vectors_and_those_that_share_nothing():
    part, other = region(0.25), region(0.25, roll=32)
    difference = drawn(part, np.random.default_rng(2))
    sketch = Bands.of(part).sketch(difference)
    turned = Bands.of(part).sketch({name: -value for name, value in difference.items()})
    assert sum(products(sketch, turned).values()) == pytest.approx(-1)
    assert products(sketch, Bands.of(other).sketch(difference)) == {}
    assert products(sketch, {band: np.zeros(SIZE, np.float32) for band in sketch}) == {}


def test_places_are_the_same_on_every_machine():
    """The sums of the first buckets of ones, as they were when this was written: stored sketches depend on them."""
    layout = {"w": (Axis(4096),)}
    sums = Bands.of(Region(layout)).sketch({"w": np.ones(4096, np.float32)})[4]
    assert [int(value) for value in sums[:8]] == [-1, 4, 0, 1, -2, 0, 0, -2]
