"""Values as bytes and back, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from attrs import define, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.training.state import freeze, thaw
from protocol import tensors
from protocol.errors import ProtocolError
from protocol.weights import Array, Weights


@frozen
class Leaf:
    name: str
    values: tuple[float, ...]
    lookup: dict[float, int]
    maybe: float | None = None


@define
class Tree:
    leaves: dict[str, Leaf]
    weights: Weights
    history: dict[int, Weights]
    array: Array
    nothing: None = None


floats = st.floats(allow_nan=False)
leaves = st.builds(
    Leaf, st.text(), st.lists(floats).map(tuple), st.dictionaries(floats, st.integers()), st.none() | floats
)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {f"t{n}": rng.normal(size=rng.integers(1, 4, size=n)).astype(np.float32) for n in range(4)}


trees = st.builds(
    lambda leaves, seed, epochs: Tree(leaves, arrays(seed), {e: arrays(e) for e in epochs}, arrays(seed)["t2"]),
    st.dictionaries(st.text(), leaves, max_size=3),
    st.integers(0, 1 << 32),
    st.sets(st.integers(0, 100), max_size=3),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees)
def test_a_value_comes_back_bit_for_bit(tree):
    back = thaw(Tree, freeze(tree))
    assert freeze(back) == freeze(tree)
    assert back.leaves == tree.leaves
    assert back.history.keys() == tree.history.keys()
    assert all(back.weights[n].tobytes() == v.tobytes() for n, v in tree.weights.items())
    assert all(back.weights[n].shape == v.shape for n, v in tree.weights.items())


def test_a_state_of_many_devices_is_no_larger_a_matter():
    leaves = {f"pi-{number}": Leaf("x" * 100, (0.1,), {}) for number in range(20_000)}
    frozen = freeze(Tree(leaves, {}, {}, np.zeros(1, np.float32)))
    assert len(frozen) > 2 << 20
    assert thaw(Tree, frozen).leaves == leaves


def test_arrays_come_back_writable():
    back = thaw(Tree, freeze(Tree({}, arrays(1), {}, np.zeros(3, np.float32))))
    back.array += 1
    back.weights["t1"][0] = 7


def test_special_floats_survive():
    leaf = Leaf("x", (math.inf, -math.inf, -0.0, 5e-324, 0.1), {0.0625: 3})
    assert repr(thaw(Leaf, freeze(leaf))) == repr(leaf)
    assert math.isnan(thaw(Leaf, freeze(Leaf("x", (math.nan,), {}))).values[0])


def test_none_is_a_state_too():
    assert thaw(type(None), freeze(None)) is None


@frozen
class Other:
    name: str


def value(text):
    return tensors.encode({"value": np.frombuffer(text.encode(), np.uint8)})


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Other, freeze(Leaf("x", (), {}))),  # unknown fields
        (Leaf, freeze(Other("x"))),  # missing fields
        (Leaf, value("no JSON")),
        (Leaf, value("[]")),
        (Leaf, tensors.encode({})),
        (Tree, value('{"leaves": {}, "weights": {"w": "7"}, "history": {}, "array": "7", "nothing": null}')),
        (Leaf, b"\x00" * 40),
        (Leaf, b""),
    ],
)
def test_other_bytes_are_refused(kind, data):
    with pytest.raises(ProtocolError):
        thaw(kind, data)
