"""How a difference travels: nothing is lost for good, and what arrives is exactly the subnetwork's tensors."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol import tensors
from protocol.coding import GAP, SCALE, decode, encode, known
from protocol.errors import ProtocolError
from protocol.weights import add, zeros_like

from .mutation import ROUNDS, damage, read_or_refused
from .samples import CODINGS, QUICK

EPSILON = float(np.finfo(np.float32).eps)

shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
HUGE = float(np.float32(1e38))  # the sum of two is still finite
elements = st.floats(-1.0, 1.0, width=32) | st.floats(-HUGE, HUGE, width=32)


def arrays(shape):
    return npst.arrays(np.float32, shape, elements=elements)


@st.composite
def pairs(draw):
    """A difference and a residual of the same shapes."""
    named = draw(st.dictionaries(st.sampled_from("abcd"), shapes, min_size=1, max_size=4))
    return tuple({name: draw(arrays(shape)) for name, shape in named.items()} for _ in range(2))


def shapes_of(weights):
    return {name: value.shape for name, value in weights.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@QUICK
@given(pairs())
def test_float32_carries_everything(pair):
    difference, residual = pair
    sent, left = encode(difference, "float32", residual)
    assert equal(decode(sent, "float32", shapes_of(difference)), add(difference, residual))
    assert equal(left, zeros_like(difference))


LOSSY = [coding for coding in CODINGS if coding != "float32"]


@QUICK
@given(pairs(), st.sampled_from(LOSSY))
def test_error_feedback_keeps_what_was_lost(pair, coding):
    """difference + residual in = decoded + residual out, within the rounding of one float32 sum."""
    difference, residual = pair
    sent, left = encode(difference, coding, residual)
    arrived = decode(sent, coding, shapes_of(difference))
    for name, value in add(difference, residual).items():
        assert np.array_equal(value - arrived[name], left[name])
        slack = 2 * EPSILON * np.maximum(np.abs(value), np.abs(arrived[name]).astype(np.float64))
        assert np.all(np.abs(value.astype(np.float64) - arrived[name] - left[name]) <= slack)


@QUICK
@given(pairs())
def test_int8_errs_by_half_a_step_of_its_channel_at_most(pair):
    difference, residual = pair
    sent, _ = encode(difference, "int8", residual)
    arrived = decode(sent, "int8", shapes_of(difference))
    for name, value in add(difference, residual).items():
        if value.ndim < 2:
            assert np.array_equal(arrived[name], value)
            continue
        peak = np.abs(value.astype(np.float64)).max(axis=tuple(range(value.ndim - 1)), initial=0.0)
        step = np.where(peak > 127 * np.finfo(np.float32).tiny, peak / 127, 2 * peak)
        assert np.all(np.abs(value.astype(np.float64) - arrived[name]) <= step * 0.5 + peak * 4 * EPSILON)


@QUICK
@given(pairs(), st.sampled_from(CODINGS))
def test_what_is_encoded_survives_the_tensor_format(pair, coding):
    difference, residual = pair
    sent, _ = encode(difference, coding, residual)
    back, _ = tensors.decode(tensors.encode(sent))
    assert equal(decode(back, coding, shapes_of(difference)), decode(sent, coding, shapes_of(difference)))


@QUICK
@given(pairs(), st.sampled_from(["topk-0.05", "topk-0.5"]))
def test_topk_sends_the_largest_and_errs_by_half_a_step_of_the_tensor(pair, coding):
    difference, residual = pair
    sent, _ = encode(difference, coding, residual)
    arrived = decode(sent, coding, shapes_of(difference))
    for name, value in add(difference, residual).items():
        if value.ndim < 2:
            assert np.array_equal(arrived[name], value)
            continue
        count = math.ceil(float(coding.partition("-")[2]) * value.size)
        chosen = arrived[name] != 0
        assert chosen.sum() <= count
        peak = np.abs(value.astype(np.float64)).max(initial=0.0)
        step = peak / 127 if peak > 127 * np.finfo(np.float32).tiny else 2 * peak
        assert np.all(np.abs(value.astype(np.float64) - arrived[name])[chosen] <= step * 0.5 + peak * 4 * EPSILON)
        smallest = np.abs(value[chosen]).min(initial=np.inf)
        passed_over = np.abs(value[~chosen & (np.abs(value) > 0.51 * step)])
        assert (passed_over <= smallest).all()
        assert not len(passed_over) or chosen.sum() == count


@pytest.mark.parametrize(("coding", "share"), [("int8", 0.26), ("topk-0.1", 0.06), ("topk-0.05", 0.04)])
def test_the_body_of_a_large_tensor_by_coding(coding, share):
    """As a share of raw float32, header included."""
    difference = {"w": np.random.default_rng(3).normal(size=(500, 200)).astype(np.float32)}
    sent, _ = encode(difference, coding, zeros_like(difference))
    assert len(tensors.encode(sent)) <= share * 4 * 500 * 200


def test_over_many_updates_topk_loses_nothing():
    rng = np.random.default_rng(0)
    residual = {"w": np.zeros((40, 25), np.float32)}
    true, arrived = np.zeros((40, 25)), np.zeros((40, 25))
    for _ in range(200):
        difference = {"w": rng.standard_normal((40, 25)).astype(np.float32)}
        sent, residual = encode(difference, "topk-0.1", residual)
        true += difference["w"]
        arrived += decode(sent, "topk-0.1", {"w": (40, 25)})["w"]
    assert np.abs(arrived + residual["w"] - true).max() < 1e-3
    assert np.abs(residual["w"]).max() < 30, "every element is sent before long"


def test_over_many_updates_int8_loses_nothing():
    """The sum of what arrived and the last residual is the sum of the differences."""
    rng = np.random.default_rng(0)
    shape = {"w": (9, 4)}
    residual = {"w": np.zeros((9, 4), np.float32)}
    true, arrived = np.zeros((9, 4)), np.zeros((9, 4))
    for _ in range(200):
        difference = {"w": rng.standard_normal((9, 4)).astype(np.float32)}
        sent, residual = encode(difference, "int8", residual)
        true += difference["w"]
        arrived += decode(sent, "int8", shape)["w"]
    assert np.abs(arrived + residual["w"] - true).max() < 1e-4
    assert np.abs(residual["w"]).max() < 0.02


def test_int8_by_hand():
    """Channels are the last axis: the first has the peak 127, so steps of 1; the second 2.54: steps of 0.02."""
    difference = {
        "w": np.array([[127, 2.54], [-3.4, -0.034], [0.25, 0.0]], np.float32),
        "b": np.array([0.1], np.float32),
    }
    sent, left = encode(difference, "int8", zeros_like(difference))
    assert sent.keys() == {"w", "w" + SCALE, "b"}
    assert sent["w"].dtype == np.int8
    assert sent["w"].tolist() == [[127, 127], [-3, -2], [0, 0]]
    np.testing.assert_allclose(sent["w" + SCALE], [1, 0.02], rtol=1e-6)
    np.testing.assert_allclose(left["w"], [[0, 0], [-0.4, 0.006], [0.25, 0]], atol=1e-6)
    assert sent["b"].tolist() == difference["b"].tolist()
    assert left["b"].tolist() == [0]


def test_topk_by_hand():
    """Two of four: the peak 127 makes steps of 1; positions are told by how many elements were left out before."""
    difference = {"w": np.array([[0.5, -127], [3.4, 2.0]], np.float32), "b": np.array([0.1], np.float32)}
    sent, left = encode(difference, "topk-0.5", zeros_like(difference))
    assert sent.keys() == {"w", "w" + GAP, "w" + SCALE, "b"}
    assert (sent["w"].tolist(), sent["w" + GAP].tolist(), sent["w" + SCALE].tolist()) == ([-127, 3], [1, 0], [1.0])
    assert (sent["w"].dtype, sent["w" + GAP].dtype) == (np.int8, np.uint8)
    np.testing.assert_allclose(left["w"], [[0.5, 0], [0.4, 2.0]], atol=1e-6)
    assert left["b"].tolist() == [0]


@pytest.mark.parametrize("at", [0, 254, 255, 256, 257, 511, 512, 513, 999])
def test_topk_bridges_long_gaps_with_zeros(at):
    value = np.zeros((1000, 1), np.float32)
    value[at] = 127
    sent, _ = encode({"w": value}, "topk-0.001", {"w": np.zeros_like(value)})
    assert sent["w"].tolist() == [0] * (at // 256) + [127]
    assert sent["w" + GAP].tolist() == [255] * (at // 256) + [at % 256]
    assert np.array_equal(decode(sent, "topk-0.001", {"w": (1000, 1)})["w"], value)


def test_topk_takes_the_first_among_equals():
    value = {"w": np.full((3, 2), -2.0, np.float32)}
    sent, left = encode(value, "topk-0.5", zeros_like(value))
    assert decode(sent, "topk-0.5", {"w": (3, 2)})["w"].tolist() == [[-2, -2], [-2, 0], [0, 0]]
    assert left["w"].tolist() == [[0, 0], [0, -2], [-2, -2]]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 2)])
def test_topk_of_nothing_is_nothing(shape):
    value = {"w": np.zeros(shape, np.float32)}
    sent, left = encode(value, "topk-0.5", value)
    assert len(sent["w"]) == len(sent["w" + GAP]) == 0
    assert equal(decode(sent, "topk-0.5", {"w": shape}), value)
    assert equal(left, value)


@pytest.mark.parametrize("peak", [0.0, 1e-45, 1e-37, float(np.finfo(np.float32).max)])
def test_the_ends_of_float32_stay_finite(peak):
    difference = {"w": np.array([[peak, 1.0], [-peak, -1.0]], np.float32)}
    sent, left = encode(difference, "int8", zeros_like(difference))
    arrived = decode(sent, "int8", {"w": (2, 2)})
    assert np.isfinite(arrived["w"]).all()
    assert np.isfinite(left["w"]).all()
    assert np.abs(left["w"][:, 0]).max() <= max(peak / 127, 1e-36)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_sent(coding, bad):
    """It would come back with the residual for ever."""
    fine = {"w": np.ones((2, 2), np.float32)}
    hurt = {"w": np.array([[1, bad], [1, 1]], np.float32)}
    for difference, residual in ((hurt, fine), (fine, hurt)):
        with pytest.raises(ProtocolError, match="not finite"):
            encode(difference, coding, residual)
    huge = {"w": np.full((2, 2), 3e38, np.float32)}
    with pytest.raises(ProtocolError, match="not finite"):
        encode(huge, coding, huge)


def test_the_inputs_are_left_alone():
    difference, residual = {"w": np.ones((2, 2), np.float32)}, {"w": np.full((2, 2), 0.25, np.float32)}
    for coding in CODINGS:
        sent, left = encode(difference, coding, residual)
        for made in (*sent.values(), *left.values()):
            assert not np.shares_memory(made, difference["w"])
            assert not np.shares_memory(made, residual["w"])
    assert equal(difference, {"w": np.ones((2, 2))})
    assert equal(residual, {"w": np.full((2, 2), 0.25)})


def test_unknown_codings_are_refused():
    one = {"w": np.ones((1, 1), np.float32)}
    with pytest.raises(ProtocolError, match="coding 'int4' is unknown, expected float32, int8 or topk-<fraction>"):
        encode(one, "int4", zeros_like(one))
    with pytest.raises(ProtocolError, match="coding 'int4' is unknown, expected float32, int8 or topk-<fraction>"):
        decode(one, "int4", {"w": (1, 1)})


EMPTY = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
W, S = np.ones((2, 3), np.int8), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({}, "'w', 'w.scale' stand on one side only"),
        ({"w": W}, "'w.scale' stand on one side only"),
        ({"w": W, "w.scale": S, "\ud800": S}, r"'\\ud800' stand on one side only"),
        ({"w": W, "w.scale": S, "x" * 100_000: S}, "stand on one side only"),
        ({"w": W.T, "w.scale": S}, r"tensor 'w' is int8 \(3, 2\), expected int8 \(2, 3\)"),
        ({"w": W.astype(np.float32), "w.scale": S}, r"tensor 'w' is float32 \(2, 3\), expected int8"),
        ({"w": W, "w.scale": S[:2]}, r"tensor 'w.scale' is float32 \(2,\), expected float32 \(3,\)"),
        ({"w": W, "w.scale": S.astype(np.float16)}, "tensor 'w.scale' is float16"),
    ],
)
def test_other_tensors_than_the_subnetworks_are_refused(sent, sentence):
    with pytest.raises(ProtocolError, match=sentence) as refusal:
        decode(sent, "int8", {"w": (2, 3)})
    assert len(str(refusal.value)) < 400


def sparse(values, gaps, scale=1.0, kind=np.uint8):
    return {"w": np.array(values, np.int8), "w" + GAP: np.array(gaps, kind), "w" + SCALE: np.float32([scale])}


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"w": W}, r"'w.gap', 'w.scale' stand on one side only"),
        (sparse([1], [0], kind=np.uint16), r"tensor 'w.gap' is uint16 \(1,\), expected uint8 \[n\]"),
        (sparse([[1]], [0]), r"tensor 'w' is int8 \(1, 1\), expected int8 \[n\]"),
        (sparse([1, 2], [0]), "tensor 'w' has 2 values and 1 gaps, expected as many of each, at most 30"),
        (sparse([1] * 31, [0] * 31), "tensor 'w' has 31 values and 31 gaps, expected as many of each, at most 30"),
        (sparse([1, 1], [255, 43]), "tensor 'w' names element 299, it has 299"),
        (sparse([1] * 30, [255] * 30), "tensor 'w' names element 7679, it has 299"),
        (sparse([1], [0]) | {"w" + SCALE: np.ones(2, np.float32)}, r"'w.scale' is float32 \(2,\)"),
    ],
)
def test_positions_outside_the_tensor_are_refused(sent, sentence):
    """Of 13 × 23 elements 29 may come, and one to bridge a long gap."""
    with pytest.raises(ProtocolError, match=sentence):
        decode(sent, "topk-0.095", {"w": (13, 23)})


def test_the_last_element_can_be_named():
    assert decode(sparse([1, 5], [255, 42], 2.0), "topk-0.1", {"w": (13, 23)})["w"][-1, -1] == 10


def test_too_many_values_are_refused_before_anything_is_allocated():
    sent = sparse(np.ones(1 << 20), np.zeros(1 << 20))
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="at most"):
        decode(sent, "topk-0.1", {"w": (1 << 10, 1 << 10)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    "coding",
    ["topk", "topk-", "topk-0", "topk-0.0", "topk-1", "topk-1.0", "topk-.5", "topk-0.00001", "topk-5e-2", "TOPK-0.1",
     "topk-0.1 ", "topk-0.1\n", "topk-٠.١"],
)  # fmt: skip
def test_fractions_are_plain_decimals_between_0_and_1(coding):
    assert not known(coding)


def test_a_tensor_may_not_take_the_name_of_anothers_scales():
    one = {"w": np.ones((1, 1), np.float32), "w.scale": np.ones(1, np.float32)}
    assert equal(decode(encode(one, "float32", zeros_like(one))[0], "float32", shapes_of(one)), one)
    with pytest.raises(ProtocolError, match=r"tensor 'w.scale' has the name that the scales of 'w' need"):
        encode(one, "int8", zeros_like(one))
    one = {"w": np.ones((1, 1), np.float32), "w.gap": np.ones(1, np.float32)}
    with pytest.raises(ProtocolError, match=r"tensor 'w.gap' has the name that the gaps of 'w' need"):
        decode(one, "topk-0.5", shapes_of(one))


def test_hostile_scales_end_in_values_that_admission_can_see():
    scales = np.array([np.nan, np.inf, 3e38], np.float32)
    value = decode({"w": np.array([[0, 0, 127]], np.int8), "w.scale": scales}, "int8", {"w": (1, 3)})["w"]
    assert not np.isfinite(value).any()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_damaged_body_is_the_subnetworks_difference_or_a_protocol_error(rounds):
    rng = random.Random(7)
    shapes = {"w": (2, 3), "b": (3,)}
    bodies = [
        tensors.encode(encode({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, coding, EMPTY)[0])
        for coding in CODINGS
    ]
    valid = 0
    for _ in range(rounds):
        data = damage(rng, rng.choice(bodies), rng.choice(bodies))
        for coding in CODINGS:
            value = read_or_refused(lambda body, coding=coding: decode(tensors.decode(body)[0], coding, shapes), data)
            if value is not None:
                assert shapes_of(value) == shapes
                valid += 1
    assert 0 < valid < rounds


def test_error_feedback_is_exact_where_the_sum_is():
    value = {"w": np.array([[1.0, 0.5], [0.25, 0.125]], np.float32)}
    sent, left = encode(value, "int8", zeros_like(value))
    assert equal(add(value, left, -1.0), decode(sent, "int8", {"w": (2, 2)}))
