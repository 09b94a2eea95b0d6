"""Functions of one number, known by what they make of some: how activations are recognised in any spelling."""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from . import kinds

Curve = NDArray[np.float64]
PROBES: Curve = np.concatenate([np.linspace(-9, 9, 145), [-1000.0, -100.0, -30.0, -12.0, 12.0, 30.0, 100.0, 1000.0]])
_ERF = np.vectorize(math.erf, otypes=[np.float64])


@frozen
class Line:
    """slope·x + offset."""

    slope: float
    offset: float


def sigmoid(x: Curve) -> Curve:
    return 0.5 + 0.5 * np.tanh(x / 2)


def erf(x: Curve) -> Curve:
    found: Curve = _ERF(x)
    return found


def gelu(x: Curve, exact: bool) -> Curve:
    inner = erf(x / math.sqrt(2)) if exact else np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x / 2 * (1 + inner)


_KNOWN: list[tuple[kinds.Layer, Curve]] = [
    (kinds.Relu(), np.maximum(PROBES, 0)),
    (kinds.Relu6(), np.clip(PROBES, 0, 6)),
    (kinds.Sigmoid(), sigmoid(PROBES)),
    (kinds.Tanh(), np.tanh(PROBES)),
    (kinds.Silu(), PROBES * sigmoid(PROBES)),
    (kinds.Gelu(), gelu(PROBES, exact=False)),
    (kinds.Gelu(), gelu(PROBES, exact=True)),  # at most 5e-4 apart
]


def recognised(curve: Curve) -> kinds.Layer | Line | None:
    """The activation layer or line that goes through ``curve`` at :data:`PROBES`."""
    offset = float(np.interp(0, PROBES[:145], curve[:145]))
    line = Line(float(np.interp(1, PROBES[:145], curve[:145])) - offset, offset)
    if _same(curve, line.slope * PROBES + line.offset):
        return line
    for layer, known in _KNOWN:
        if _same(curve, known):
            return layer
    slope = -float(np.interp(-1, PROBES[:145], curve[:145]))
    if 0 < slope < 1 and _same(curve, np.where(PROBES > 0, PROBES, slope * PROBES)):
        return kinds.LeakyRelu(float(f"{slope:.6g}"))
    return None


def _same(one: Curve, other: Curve) -> bool:
    return bool(np.allclose(one, other, rtol=1e-5, atol=1e-5))
