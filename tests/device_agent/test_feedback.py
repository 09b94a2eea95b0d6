"""Error feedback: nothing a device has learnt is lost by rounding, or by an update that was not used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import feedback
from protocol import coding, tensors
from protocol.errors import ProtocolError
from protocol.subnetwork import Axis, Layout, Region, Subnetwork, layout_to_json
from protocol.weights import Weights, copy

LAYOUT: Layout = {"w": (Axis(3), Axis(4, "h")), "b": (Axis(4, "h"),)}
WHOLE = Region(LAYOUT)
HALF = Region(LAYOUT, Subnetwork({"h": 2}))
LISTED = Region(LAYOUT, Subnetwork({"h": (3, 1)}))


def described(region: Region) -> str:
    return json.dumps({"layout": layout_to_json(LAYOUT), "channels": dict(region.subnetwork.channels)})


def drawn(region: Region, seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in region.shapes.items()
    }


def carried(body: bytes, region: Region, how: str) -> Weights:
    return region.lift(coding.decode(tensors.decode(body)[0], how, region.shapes))


def owed(residual: bytes | None) -> Weights:
    if residual is None:
        return {"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32)}
    return tensors.decode(residual)[0]


@pytest.mark.parametrize("region", [WHOLE, HALF, LISTED], ids=["whole", "half", "listed"])
@pytest.mark.parametrize("how", ["int8", "topk-0.5", "float32"])
@given(seed=st.integers(0, 1000))
def test_carried_plus_owed_is_what_was_learnt(region: Region, how: str, seed: int) -> None:
    before = tensors.encode(drawn(WHOLE, seed + 1, 0.1), {"layout": layout_text()})
    difference = drawn(region, seed)
    body, after = feedback.encode(copy(difference), how, region, before)
    total, learnt = carried(body, region, how), region.lift(difference)
    for name, now in owed(after).items():
        np.testing.assert_allclose(total[name] + now, learnt[name] + owed(before)[name], atol=1e-6)
        outside = ~region.coverage()[name]
        np.testing.assert_array_equal(now[outside], owed(before)[name][outside])


def layout_text() -> str:
    return json.dumps(layout_to_json(LAYOUT), sort_keys=True)


@pytest.mark.parametrize("region", [WHOLE, HALF, LISTED], ids=["whole", "half", "listed"])
@pytest.mark.parametrize("how", ["int8", "topk-0.5", "float32"])
def test_given_back_it_is_owed_in_full(region: Region, how: str) -> None:
    difference = drawn(region, 3)
    body, after = feedback.encode(copy(difference), how, region, None)
    returned = feedback.give_back(body, how, described(region), after)
    for name, now in owed(returned).items():
        np.testing.assert_allclose(now, region.lift(difference)[name], atol=1e-6)


def test_float32_leaves_nothing_behind() -> None:
    _, residual = feedback.encode(drawn(WHOLE, 1), "float32", WHOLE, None)
    assert residual is None


def test_what_is_owed_travels_with_the_next_update() -> None:
    body, _ = feedback.encode(drawn(HALF, 1), "float32", HALF, None)
    residual = feedback.give_back(body, "float32", described(HALF), None)
    nothing = {name: np.zeros(shape, np.float32) for name, shape in WHOLE.shapes.items()}
    second, after = feedback.encode(nothing, "float32", WHOLE, residual)
    np.testing.assert_array_equal(carried(second, WHOLE, "float32")["w"], HALF.lift(drawn(HALF, 1))["w"])
    assert after is None


def test_another_layout_ends_the_residual() -> None:
    other = tensors.encode({"w": np.ones((3, 5), np.float32)}, {"layout": "another"})
    difference = drawn(WHOLE, 1)
    body, _ = feedback.encode(copy(difference), "float32", WHOLE, other)
    np.testing.assert_array_equal(carried(body, WHOLE, "float32")["w"], difference["w"])


def test_what_is_not_finite_is_never_owed() -> None:
    poison = tensors.encode({"w": np.full((3, 4), np.inf, np.float32), "b": np.zeros(4, np.float32)})
    assert feedback.give_back(poison, "float32", described(WHOLE), b"as before") == b"as before"


def test_a_residual_that_overflows_the_sum_is_let_go() -> None:
    huge = tensors.encode(
        {"w": np.full((3, 4), 3e38, np.float32), "b": np.zeros(4, np.float32)}, {"layout": layout_text()}
    )
    difference = {"w": np.full((3, 4), 2e38, np.float32), "b": np.zeros(4, np.float32)}
    body, residual = feedback.encode(copy(difference), "float32", WHOLE, huge)
    np.testing.assert_array_equal(carried(body, WHOLE, "float32")["w"], difference["w"])
    assert residual is None


def blob(region: Region = HALF, **changes: str) -> bytes:
    metadata = {
        "layout": json.dumps(layout_to_json(LAYOUT)),
        "channels": json.dumps(dict(region.subnetwork.channels)),
    }
    return tensors.encode(drawn(region, 0), metadata | changes)


def test_the_weights_say_which_part_of_the_model_they_are() -> None:
    base = feedback.read_base(blob(LISTED, shape_epoch="3"))
    assert base.region.shapes == LISTED.shapes
    assert base.region.subnetwork.channels == {"h": (3, 1)}
    assert base.shape_epoch == 3
    np.testing.assert_array_equal(base.weights["w"], drawn(LISTED, 0)["w"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (tensors.encode(drawn(HALF, 0)), "carry no layout"),
        (blob(channels="[1]"), "channels is of type list"),
        (blob(channels='{"h": true}'), "expected a count or a list"),
        (blob(channels='{"h": 9}'), "h"),
        (blob(channels="{}"), "w"),
        (blob(shape_epoch="x"), "metadata cannot be read"),
        (b"", "too few"),
    ],
)
def test_weights_that_cannot_be_understood(content: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        feedback.read_base(content)
