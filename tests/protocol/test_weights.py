"""Arithmetic on named arrays."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from protocol import weights
from protocol.weights import add, digest, dot, extent, finite, norm, scale, zeros_like

A = {"w": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([0.5], np.float32)}
B = {"w": np.array([[4, 3], [2, 1]], np.float32), "b": np.array([-1], np.float32)}


def same(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype == np.float32 for name in a
    )


def test_sums_differences_and_multiples_stay_float32():
    assert same(add(A, B), {"w": np.full((2, 2), 5, np.float32), "b": np.array([-0.5], np.float32)})
    assert same(add(A, B, 0.5), {"w": np.array([[3, 3.5], [4, 4.5]], np.float32), "b": np.zeros(1, np.float32)})
    assert same(add(A, A, -1.0), zeros_like(A))
    assert same(scale(A, 2.0), add(A, A))
    assert same(add(add(A, B), B, -1.0), A)


def test_copies_and_zeros_share_nothing():
    for made in (weights.copy(A), zeros_like(A), add(A, B), scale(A, 1.0)):
        assert not any(np.shares_memory(made[name], A[name]) for name in A)


def test_inner_product_and_norm_by_hand():
    assert dot(A, B) == 4 + 6 + 6 + 4 - 0.5
    assert norm(A) == pytest.approx(np.sqrt(1 + 4 + 9 + 16 + 0.25))
    assert norm({}) == 0.0


def test_the_inner_product_is_summed_in_float64():
    """In float32, 2²⁴ + 1 is 2²⁴."""
    ones = {"w": np.array([4096, 1], np.float32)}
    assert dot(ones, ones) == 2**24 + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_makes_weights_not_finite(bad):
    hurt = weights.copy(A)
    hurt["w"][1, 0] = bad
    assert finite(hurt) is False
    hurt["w"][0, 1] = -bad
    assert finite(hurt) is False


def test_finite_elements_whose_sum_overflows_are_finite():
    assert finite(A) is True
    assert finite({}) is True
    assert finite({"w": np.full(8, 3e38, np.float32)}) is True


def test_the_digest_is_the_hash_of_names_shapes_and_bytes():
    expected = hashlib.sha256(b"b:1;" + b"\0\0\0\x3f" + b"w:1x2;" + b"\0\0\x80\x3f" + b"\0\0\0\x40").hexdigest()
    assert digest({"w": np.array([[1, 2]], np.float32), "b": np.array([0.5], np.float32)}) == expected


def test_the_digest_depends_on_content_only():
    assert digest(A) == digest(dict(reversed(A.items())))
    assert digest(A) == digest({name: np.asfortranarray(value) for name, value in A.items()})
    assert digest(A) == digest({name: value.astype(">f4") for name, value in A.items()})


def test_the_digest_tells_shapes_names_and_values_apart():
    one = np.ones(1, np.float32)
    different = [
        {"w": one},
        {"v": one},
        {"w": one * 2},
        {"w": one.reshape(1, 1)},
        {"w": one.reshape(())},
        {"w": np.ones(2, np.float32)},
        {"w": np.ones(0, np.float32)},
        {"w": np.ones((0, 1), np.float32)},
        {},
    ]
    assert len({digest(value) for value in different}) == len(different)


def test_the_extent_is_peak_and_norm():
    weights = {"a": np.array([[3, -4]], np.float32), "b": np.zeros(0, np.float32)}
    assert extent(weights, 2.0) == (4.0, 5.0)  # exact above the limit
    peak, length = extent(weights, 100.0)
    assert length == 5.0
    assert 4.0 <= peak <= 5.0  # a bound, where nothing is too large


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_extent_of_what_is_not_finite_is_not_finite(bad):
    large = np.ones(300_000, np.float32)
    large[200_000] = bad
    for spoiled in ({"a": large}, {"a": np.array([bad], np.float32), "b": np.ones(3, np.float32)}):
        assert not math.isfinite(extent(spoiled, 1e6)[0])
