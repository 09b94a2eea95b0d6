"""Arithmetic on named arrays: weights, differences and gradients are ``{tensor name: float32 array}``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Weights = dict[str, Array]
BLOCK = 1 << 17
"""Elements that are worked on at a time."""


def zeros_like(weights: Mapping[str, Array]) -> Weights:
    return {name: np.zeros_like(value) for name, value in weights.items()}


def copy(weights: Mapping[str, Array]) -> Weights:
    return {name: value.copy() for name, value in weights.items()}


def add(a: Mapping[str, Array], b: Mapping[str, Array], scale: float = 1.0) -> Weights:
    """``a + scale·b``, tensor by tensor, in float32."""
    return {name: value + np.float32(scale) * b[name] for name, value in a.items()}


def scale(weights: Mapping[str, Array], factor: float) -> Weights:
    return {name: np.float32(factor) * value for name, value in weights.items()}


def dot(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """Inner product over all tensors, summed in float64."""
    return float(sum(np.dot(value.ravel().astype(np.float64), b[name].ravel()) for name, value in a.items()))


def extent(weights: Mapping[str, Array], limit: float) -> tuple[float, float]:
    """Largest absolute value, exact if above ``limit`` > 0, and Euclidean norm over all tensors; one pass as a rule.

    The first is NaN or infinite if any element is. Squares are summed in float32 within a block and in float64 beyond.
    """
    peaks, squares = [0.0], 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for value in weights.values():
            flat = value.reshape(-1)
            for start in range(0, flat.size, BLOCK):
                block = flat[start : start + BLOCK]
                square = float(np.dot(block, block))
                # No element is larger than their norm: only where that is too large they are looked at.
                peaks.append(math.sqrt(square) if square <= limit * limit else float(abs(block).max()))
                squares += square
    return float(np.max(peaks)), math.sqrt(squares) if squares >= 0 else math.nan


def norm(weights: Mapping[str, Array]) -> float:
    """Euclidean norm over all tensors."""
    return float(np.sqrt(dot(weights, weights)))


def finite(weights: Mapping[str, Array]) -> bool:
    """True if no element is NaN or infinite."""
    # A sum is non-finite if any element is; only an overflow of finite elements needs the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        return all(bool(np.isfinite(value.sum()) or np.isfinite(value).all()) for value in weights.values())


def digest(weights: Mapping[str, Array]) -> str:
    """sha256 over names, shapes and little-endian bytes, in name order: a model version's content hash."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name], "<f4")
        sha.update(f"{name}:{'x'.join(map(str, weights[name].shape))};".encode())
        sha.update(value.data)
    return sha.hexdigest()
