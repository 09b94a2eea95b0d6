"""How a difference travels: ``float32`` as it is, ``int8`` with a scale per channel and error feedback.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019): what rounding lost is kept as
a residual and added to the next difference, so that nothing is lost for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProtocolError, listed
from .tensors import Tensors
from .weights import Array, Weights, finite

CODINGS = ("float32", "int8")
SCALE = ".scale"
_LARGEST = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))  # 127 of it are still finite


def encode(difference: Mapping[str, Array], coding: str, residual: Mapping[str, Array]) -> tuple[Tensors, Weights]:
    """Tensors that carry ``difference + residual``, and the residual that is left over (same shapes).

    ProtocolError if the sum is not finite: it would stay in the residual for good.
    """
    if coding not in CODINGS:
        raise ProtocolError(f"coding {coding!r} is unknown, expected one of {', '.join(CODINGS)}")
    _expected(coding, {name: array.shape for name, array in difference.items()})
    tensors: Tensors = {}
    left: Weights = {}
    # Tensor by tensor and in place: on a small board every copy of the model counts.
    for name, array in difference.items():
        with np.errstate(over="ignore"):
            value = array + residual[name]
        if not finite({name: value}):
            raise ProtocolError("the difference or its residual is not finite")
        if _quantised(coding, value.shape):
            said = _quantise(name, value)
            tensors.update(said)
            left[name] = np.subtract(value, _value(said, name, coding), out=value)
        else:
            tensors[name], left[name] = value, np.zeros_like(value)
    return tensors, left


def decode(tensors: Mapping[str, NDArray[Any]], coding: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """The difference that ``tensors`` carry; ProtocolError unless they are exactly those of ``shapes``."""
    if coding not in CODINGS:
        raise ProtocolError(f"coding {coding!r} is unknown, expected one of {', '.join(CODINGS)}")
    expected = _expected(coding, shapes)
    if tensors.keys() != expected.keys():
        odd = listed(tensors.keys() ^ expected.keys())
        raise ProtocolError(f"the update's tensors are not the subnetwork's: {odd} stand on one side only")
    for name, (shape, dtype) in expected.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise ProtocolError(
                f"tensor {name!r} is {tensors[name].dtype} {tensors[name].shape}, expected {dtype} {shape}"
            )
    return {name: _value(tensors, name, coding) for name in shapes}


def _quantised(coding: str, shape: tuple[int, ...]) -> bool:
    # Vectors (biases) are a few bytes and would lose the most.
    return coding == "int8" and len(shape) > 1


def _expected(coding: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name, shape in shapes.items():
        if _quantised(coding, shape):
            found[name] = (shape, np.dtype(np.int8))
            if name + SCALE in shapes:
                raise ProtocolError(f"tensor {name + SCALE!r} has the name that the scales of {name!r} need")
            found[name + SCALE] = (shape[-1:], np.dtype(np.float32))
        else:
            found[name] = (shape, np.dtype(np.float32))
    return found


def _quantise(name: str, array: Array) -> Tensors:
    peak = np.abs(array).max(axis=tuple(range(array.ndim - 1)), initial=0.0)
    # Below the smallest normal number a channel's scale would lose its precision: it rounds to zero instead.
    scale = np.where(peak > 127 * np.finfo(np.float32).tiny, np.minimum(peak / 127, _LARGEST), 0).astype(np.float32)
    steps = np.divide(array, scale, out=np.zeros_like(array), where=scale > 0)
    np.clip(np.rint(steps, out=steps), -127, 127, out=steps)
    return {name: steps.astype(np.int8), name + SCALE: scale}


def _value(tensors: Mapping[str, NDArray[Any]], name: str, coding: str) -> Array:
    value = tensors[name]
    if _quantised(coding, value.shape):
        with np.errstate(over="ignore", invalid="ignore"):  # hostile scales end in inf, which admission refuses
            wide = value.astype(np.float32)
            return np.multiply(wide, tensors[name + SCALE], out=wide)
    return np.asarray(value, np.float32)
