"""ONNX's operators that only move numbers: no layer comes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from .onnx_file import Numbers
from .onnx_trace import Positions, Trace, Value

Attributes = dict[str, Any]
Read = Value | Numbers | None
Handler = Callable[[Trace, Attributes, list[Any]], list[Read]]


def moved(value: Value, move: Callable[[Positions], Positions], batch: int) -> Value:
    """The value with its numbers moved over all axes, that of the batch among them, which then is axis ``batch``."""

    def places(old: Positions) -> Positions:
        return move(np.expand_dims(old, value.batch)).squeeze(batch)

    prefix = value.prefix and (moved(value.prefix[0], move, batch), value.prefix[1])
    return attrs.evolve(value, positions=places(value.positions), batch=batch, prefix=prefix)


def _axes(trace: Trace, attributes: Attributes, reads: list[Any], rank: int) -> list[int]:
    given = attributes.get("axes", reads[1] if len(reads) > 1 else None)
    if given is None:
        trace.refuse("expected its axes to be named")
    return sorted(int(axis) % rank for axis in np.ravel(given))


def transpose(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    order = attributes.get("perm", list(range(value.positions.ndim + 1))[::-1])
    return [moved(value, lambda numbers: numbers.transpose(order), list(order).index(value.batch))]


def reshape(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    if value.batch != 0:
        trace.refuse("reshapes what has its batch not first; expected axis 0")
    old = (1, *value.positions.shape)
    target = [int(n) for n in np.ravel(reads[1])]
    if not attributes.get("allowzero"):
        target = [old[place] if n == 0 and place < len(old) else n for place, n in enumerate(target)]
    # A batch of any size is exported as the size it was traced with, as 0 or as -1.
    rest = target[1:]
    known = int(np.prod([n for n in rest if n != -1], dtype=np.int64))
    if -1 in rest and known and value.positions.size % known == 0:
        rest[rest.index(-1)] = value.positions.size // known
    if not target or any(n < 1 for n in rest) or int(np.prod(rest, dtype=np.int64)) != value.positions.size:
        trace.refuse(f"reshapes {value.positions.shape} of every sample to {target}; expected the batch to stay first")
    return [moved(value, lambda numbers: numbers.reshape(1, *rest), 0)]


def flatten(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    axis = attributes.get("axis", 1)
    if value.batch != 0 or axis not in (1, -value.positions.ndim):
        trace.refuse(f"flattens from axis {axis} on; expected 1, all of a sample")
    return [moved(value, lambda numbers: numbers.reshape(1, -1), 0)]


def squeeze(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    rank = value.positions.ndim + 1
    axes = _axes(trace, attributes, reads, rank)
    if value.batch in axes:
        trace.refuse("takes away the axis of the batch; expected it to stay")
    batch = value.batch - sum(axis < value.batch for axis in axes)
    return [moved(value, lambda numbers: numbers.squeeze(tuple(axes)), batch)]


def unsqueeze(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    rank = value.positions.ndim + 1
    given = attributes.get("axes", reads[1] if len(reads) > 1 else ())
    axes = _axes(trace, attributes, reads, rank + len(np.ravel(given)))
    batch = [axis for axis in range(rank + len(axes)) if axis not in axes][value.batch]
    return [moved(value, lambda numbers: np.expand_dims(numbers, tuple(axes)), batch)]


def gather(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value, index = reads[0], reads[1]
    axis = attributes.get("axis", 0) % (value.positions.ndim + 1)
    if axis == value.batch or not isinstance(index, np.ndarray) or index.ndim > 1:
        trace.refuse("picks by numbers that are known at run time only, or from the batch; expected constants")
    batch = value.batch - (index.ndim == 0 and axis < value.batch)
    return [moved(value, lambda numbers: np.take(numbers, index, axis), batch)]


def slice_(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value: Value = reads[0]
    if len(reads) == 1:
        names = ("starts", "ends", "axes")
        reads = [value, *(np.array(attributes[name]) if name in attributes else None for name in names)]
    starts, ends = (np.ravel(numbers) for numbers in reads[1:3])
    axes = np.ravel(reads[3]) if len(reads) > 3 and reads[3] is not None else range(len(starts))
    steps = np.ravel(reads[4]) if len(reads) > 4 and reads[4] is not None else [1] * len(starts)
    cut = [slice(None)] * (value.positions.ndim + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[int(axis) % len(cut)] = slice(int(start), int(end) if abs(int(end)) < 1 << 31 else None, int(step))
    if cut[value.batch] not in (slice(None), slice(0, None, 1)):
        trace.refuse("picks samples out of the batch; expected it whole")
    cut[value.batch] = slice(None)
    return [moved(value, lambda numbers: numbers[tuple(cut)], value.batch)]


def same(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    return [reads[0], None]


MOVEMENTS: dict[str, Handler] = {
    "Transpose": transpose, "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Slice": slice_, "Identity": same, "Dropout": same, "Cast": same,
}  # fmt: skip
