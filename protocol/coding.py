"""How a difference travels: ``float32`` as it is, ``int8`` with a scale per channel, or ``topk-<fraction>``, the
elements of largest magnitude alone, the last two with error feedback.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019): what rounding lost, or what was not
among the largest (Stich et al., NeurIPS 2018), is kept as a residual and added to the next difference, so that nothing
is lost for good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProtocolError, listed
from .tensors import Tensors
from .weights import Array, Weights, finite

EXPECTED = "float32, int8 or topk-<fraction> as in topk-0.05"
SCALE, GAP = ".scale", ".gap"
_LARGEST = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))  # 127 of it are still finite
_TOPK = re.compile(r"topk-(0\.[0-9]{1,4})")
_BLOCK = 1 << 15  # elements that are worked on at a time
_REACH = 256  # positions that one gap and the value behind it take at most


def known(coding: str) -> bool:
    """Whether ``coding`` can be written and read here."""
    return coding in ("float32", "int8") or _fraction(coding) is not None


def feature(coding: str) -> str:
    """What an agent that can write ``coding`` announces."""
    return coding.partition("-")[0]


def encode(
    difference: Mapping[str, Array],
    coding: str,
    residual: Mapping[str, Array],
    out: Mapping[str, Array] | None = None,
) -> tuple[Tensors, Weights]:
    """Tensors that carry ``difference + residual``, and the residual that is left over (same shapes).

    ``out``: contiguous arrays for the latter, which may be those of ``difference``. ProtocolError if the sum is not
    finite: it would stay in the residual for good.
    """
    fraction = _checked(coding, {name: array.shape for name, array in difference.items()})
    tensors: Tensors = {}
    left: Weights = {}
    # Tensor by tensor and in place: on a small board every copy of the model counts.
    for name, array in difference.items():
        with np.errstate(over="ignore"):
            value = np.add(array, residual[name], out=None if out is None else out[name], order="C")
        if not finite({name: value}):
            raise ProtocolError("the difference or its residual is not finite")
        if not _compressed(coding, value.shape):
            tensors[name], left[name] = value, np.zeros_like(value)
            continue
        said = _quantise(name, value) if fraction is None else _sparse(name, value, fraction)
        tensors.update(said)
        left[name] = value
        if fraction is not None:
            value -= _value(said, name, coding, value.shape)
            continue
        for rows in _blocks(value):
            _rows(value)[rows] -= _rows(said[name])[rows].astype(np.float32) * said[name + SCALE]
    return tensors, left


def decode(tensors: Mapping[str, NDArray[Any]], coding: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """The difference that ``tensors`` carry; ProtocolError unless they are exactly those of ``shapes``."""
    fraction = _checked(coding, shapes)
    expected = {name: dtypes for shape in shapes.items() for name, dtypes in _parts(*shape, coding).items()}
    if tensors.keys() != expected.keys():
        odd = listed(tensors.keys() ^ expected.keys())
        raise ProtocolError(f"the update's tensors are not the subnetwork's: {odd} stand on one side only")
    for name, (shape, dtype) in expected.items():
        found = tensors[name]
        if found.dtype != dtype or not (found.ndim == 1 if shape is None else found.shape == shape):
            wanted = "[n]" if shape is None else shape
            raise ProtocolError(f"tensor {name!r} is {found.dtype} {found.shape}, expected {dtype} {wanted}")
    if fraction is not None:
        for name, whole in shapes.items():
            if _compressed(coding, whole):
                _check_sparse(name, tensors[name], tensors[name + GAP], math.prod(whole), fraction)
    return {name: _value(tensors, name, coding, shape) for name, shape in shapes.items()}


def _fraction(coding: str) -> float | None:
    found = _TOPK.fullmatch(coding)
    return float(found[1]) or None if found else None


def _checked(coding: str, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """The fraction of a top-k coding, None for others."""
    if not known(coding):
        raise ProtocolError(f"coding {coding!r} is unknown, expected {EXPECTED}")
    for name, shape in shapes.items():
        for part in _parts(name, shape, coding).keys() - {name}:
            if part in shapes:
                what = "scales" if part.endswith(SCALE) else "gaps"
                raise ProtocolError(f"tensor {part!r} has the name that the {what} of {name!r} need")
    return _fraction(coding)


def _compressed(coding: str, shape: tuple[int, ...]) -> bool:
    # Vectors (biases) are a few bytes and would lose the most.
    return coding != "float32" and len(shape) > 1


def _parts(
    name: str, shape: tuple[int, ...], coding: str
) -> dict[str, tuple[tuple[int, ...] | None, np.dtype[Any]]]:
    """The tensors that carry one of ``shape``; shape None: one axis of any length."""
    if not _compressed(coding, shape):
        return {name: (shape, np.dtype(np.float32))}
    if coding == "int8":
        return {name: (shape, np.dtype(np.int8)), name + SCALE: (shape[-1:], np.dtype(np.float32))}
    return {
        name: (None, np.dtype(np.int8)),
        name + GAP: (None, np.dtype(np.uint8)),
        name + SCALE: ((1,), np.dtype(np.float32)),
    }


def _scale(peak: Array) -> Array:
    # Below the smallest normal number a scale would lose its precision: it rounds to zero instead.
    return np.where(peak > 127 * np.finfo(np.float32).tiny, np.minimum(peak / 127, _LARGEST), 0).astype(np.float32)


def _steps(array: Array, scale: Array) -> NDArray[np.int8]:
    steps = np.divide(array, scale, out=np.zeros_like(array), where=scale > 0)
    return np.clip(np.rint(steps, out=steps), -127, 127, out=steps).astype(np.int8)


def _quantise(name: str, array: Array) -> Tensors:
    rows = _rows(array)
    scale = _scale(np.maximum(rows.max(axis=0, initial=0.0), -rows.min(axis=0, initial=0.0)))
    steps = np.empty(rows.shape, np.int8)
    for block in _blocks(array):
        steps[block] = _steps(rows[block], scale)
    return {name: steps.reshape(array.shape), name + SCALE: scale}


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """A view [n, channels]."""
    return array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, array.shape[-1])


def _blocks(array: NDArray[Any]) -> Iterator[slice]:
    """The rows of an array, as many at a time as make a block."""
    rows = len(_rows(array))
    step = max(1, _BLOCK // max(1, array.shape[-1]))
    return (slice(start, start + step) for start in range(0, rows, step))


def _sparse(name: str, array: Array, fraction: float) -> Tensors:
    """The largest elements in steps of one scale, each with the number of elements left out before it.

    Where more than 255 are left out, a value of zero stands in between.
    """
    flat = array.reshape(-1)
    at = _largest(np.abs(flat), math.ceil(fraction * flat.size))
    chosen = flat[at]
    scale = _scale(np.abs(chosen).max(initial=0.0, keepdims=True))
    steps = _steps(chosen, scale)
    at, steps = at[steps != 0], steps[steps != 0]
    between = np.diff(at, prepend=-1) - 1
    ends = np.cumsum(between // _REACH + 1) - 1
    count = int(ends[-1]) + 1 if len(ends) else 0
    values, gaps = np.zeros(count, np.int8), np.full(count, _REACH - 1, np.uint8)
    values[ends], gaps[ends] = steps, between % _REACH
    return {name: values, name + GAP: gaps, name + SCALE: scale}


def _largest(magnitude: Array, count: int) -> NDArray[np.intp]:
    """Positions of the ``count`` largest, ascending; among equals the first."""
    if count >= magnitude.size:
        return np.arange(magnitude.size)
    border = np.partition(magnitude, magnitude.size - count)[magnitude.size - count]
    at = np.flatnonzero(magnitude >= border)
    equal = np.flatnonzero(magnitude[at] == border)
    return np.delete(at, equal[len(equal) - (len(at) - count) :])


def _check_sparse(name: str, values: NDArray[Any], gaps: NDArray[Any], size: int, fraction: float) -> None:
    """Positions ascend by construction; here they are held to the tensor, before it is allocated."""
    most = math.ceil(fraction * size) + size // _REACH
    if len(values) != len(gaps) or len(values) > most:
        found = f"{len(values)} values and {len(gaps)} gaps"
        raise ProtocolError(f"tensor {name!r} has {found}, expected as many of each, at most {most}")
    reached = len(gaps) + int(gaps.sum(dtype=np.int64))
    if reached > size:
        raise ProtocolError(f"tensor {name!r} names element {reached - 1}, it has {size}")


def _value(tensors: Mapping[str, NDArray[Any]], name: str, coding: str, shape: tuple[int, ...]) -> Array:
    value = tensors[name]
    if not _compressed(coding, shape):
        return np.asarray(value, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # hostile scales end in inf, which admission refuses
        wide = value.astype(np.float32)
        np.multiply(wide, tensors[name + SCALE], out=wide)
    if coding == "int8":
        return wide
    full = np.zeros(math.prod(shape), np.float32)
    full[np.cumsum(tensors[name + GAP].astype(np.intp) + 1) - 1] = wide
    return full.reshape(shape)
