"""What is admitted, and as what; the reasons for refusals are part of the engine's specification."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.training.admission import MAX_ELEMENT, Refusal, difference_of
from coordinator.training.work import Work
from protocol import coding, tensors
from protocol.subnetwork import Region, nested
from protocol.weights import norm, zeros_like

from .scene import HALF, INT8, LAYOUT, engine, offer, trained


def admitted(offered, given):
    region = Region(LAYOUT, nested(LAYOUT, offered.plan.width))
    work = Work(device=None, version=offered.version, plan=offered.plan, expires_at=0, features=(), most_steps=5)
    difference, length = difference_of(given.update, given.body, work, region, 0)
    assert length == pytest.approx(norm(difference), rel=1e-5)
    return difference


def test_a_sound_difference_comes_through_bit_for_bit():
    offered = offer(engine(HALF))
    difference = admitted(offered, trained(offered, np.random.default_rng(1)))
    drawn = np.random.default_rng(1)
    expected = {n: drawn.normal(0, 0.1, s).astype(np.float32) for n, s in
                (("hidden.weight", (3, 4)), ("hidden.bias", (4,)), ("out.weight", (4, 2)))}  # fmt: skip
    assert {n: v.tobytes() for n, v in difference.items()} == {n: v.tobytes() for n, v in expected.items()}


def test_int8_is_decoded_to_what_the_device_sees_itself():
    offered = offer(engine(INT8))
    shapes = Region(LAYOUT).shapes
    value = {name: np.random.default_rng(2).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    encoded, _ = coding.encode(value, "int8", zeros_like(value))
    difference = admitted(offered, trained(offered, body=tensors.encode(encoded)))
    seen = coding.decode(encoded, "int8", shapes)
    assert all((difference[name] == seen[name]).all() for name in shapes)
    assert max(abs(difference[name] - value[name]).max() for name in shapes) < 0.02


def test_topk_is_decoded_to_what_the_device_sees_itself():
    offered = offer(engine(INT8.replace("int8", "topk-0.25")), features=("topk",))
    shapes = Region(LAYOUT).shapes
    value = {name: np.random.default_rng(2).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    encoded, left = coding.encode(value, "topk-0.25", zeros_like(value))
    difference = admitted(offered, trained(offered, body=tensors.encode(encoded)))
    for name in shapes:
        np.testing.assert_allclose(difference[name], value[name] - left[name], atol=1e-6)
    assert (difference["out.weight"] != 0).sum() == difference["out.weight"].size / 4
    far = {**encoded, "hidden.weight.gap": np.full_like(encoded["hidden.weight.gap"], 255)}
    lost = trained(offered, body=tensors.encode(far))
    with pytest.raises(Refusal, match=r"tensor 'hidden\.weight' names element"):
        admitted(offered, lost)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_element(sign):
    offered = offer(engine())
    assert admitted(offered, trained(offered, sign * MAX_ELEMENT))["hidden.bias"][0] == sign * MAX_ELEMENT
    with pytest.raises(Refusal, match=r"an element of size 1\.0\d*e\+06, at most 1e\+06 is plausible"):
        admitted(offered, trained(offered, sign * 1.01 * MAX_ELEMENT))


def test_fewer_steps_and_samples_than_planned_are_fine():
    offered = offer(engine())
    assert admitted(offered, trained(offered, steps=1, samples=1)).keys() == LAYOUT.keys()


def test_the_reason_does_not_repeat_a_hostile_name_at_length():
    offered = offer(engine())
    body = tensors.encode({"x" * 10_000: np.zeros(1, np.float32)})
    with pytest.raises(Refusal) as refused:
        admitted(offered, trained(offered, body=body))
    assert len(str(refused.value)) < 500


def test_the_plan_that_was_given_counts():
    offered = offer(engine())
    given = trained(offered)
    narrower = evolve(offered, plan=evolve(offered.plan, width=0.5))
    with pytest.raises(Refusal, match=r"has shape|is float32 \(3, 8\), expected float32 \(3, 4\)"):
        admitted(narrower, given)
