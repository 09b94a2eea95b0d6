"""Samples and labels as training takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array

from .errors import DataError

MAX_CLASSES = 1_000_000


@frozen(eq=False)
class Dataset:
    """``x`` stays float32 or uint8: images as float32 would take four times the memory.

    ``rows``: the samples that count, None for all; a view costs no copy of ``x``, which may be a mapped file.
    """

    x: NDArray[Any]
    y: NDArray[np.int32]
    classes: int
    rows: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.y if self.rows is None else self.rows)

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def batch(self, indices: NDArray[np.intp]) -> tuple[Array, NDArray[np.int32]]:
        """Samples as float32 [b, ...] (uint8 scaled to 0..1) and their labels [b]."""
        if self.rows is not None:
            indices = self.rows[indices]
        return as_floats(self.x[indices]), self.y[indices]

    def histogram(self) -> tuple[int, ...]:
        """Samples of each class."""
        y = self.y if self.rows is None else self.y[self.rows]
        return tuple(np.bincount(y, minlength=self.classes).tolist())


def checked(x: NDArray[Any], y: NDArray[Any], classes: NDArray[Any] | None = None) -> Dataset:
    """A dataset of ``x`` [n, ...] (float, or uint8 0..255) and ``y`` [n] (whole numbers from 0)."""
    if x.ndim < 2 or 0 in x.shape[1:] or x.ndim > 9:
        raise DataError(f"x has shape {x.shape}, expected [samples, ...] with 1 to 8 sizes per sample")
    if y.shape != x.shape[:1]:
        raise DataError(f"y has shape {y.shape}, expected one label for each of the {len(x)} samples of x")
    if len(x) == 0:
        raise DataError("the data is empty, expected at least one sample")
    if y.dtype.kind not in "iu":
        raise DataError(f"y is {y.dtype}, expected whole numbers (class numbers from 0)")
    count = _classes(y, classes)
    bad = np.flatnonzero((y < 0) | (y >= count))
    if bad.size:
        raise DataError(f"y[{bad[0]}] is {y[bad[0]]}, expected a class number from 0 to {count - 1}")
    return Dataset(inputs(x), y.astype(np.int32), count)


def as_floats(x: NDArray[Any]) -> Array:
    """As a model takes it: uint8 scaled to 0..1."""
    return np.multiply(x, np.float32(1 / 255), dtype=np.float32) if x.dtype == np.uint8 else x


def _classes(y: NDArray[Any], classes: NDArray[Any] | None) -> int:
    if classes is None:
        return min(max(int(y.max()), 0) + 1, MAX_CLASSES)
    if classes.ndim != 0 or classes.dtype.kind not in "iu" or not 1 <= int(classes) <= MAX_CLASSES:
        raise DataError(f"classes is {str(classes)[:40]}, expected one whole number from 1 to {MAX_CLASSES}")
    return int(classes)


def inputs(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` [n, ...] as samples are kept: uint8, or float32 that is finite everywhere."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"x is {x.dtype}, expected float32, or uint8 for images")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, np.float32)
    for index, sample in enumerate(x):
        if not np.isfinite(sample).all():
            raise DataError(f"x[{index}] holds NaN or an infinite value, expected finite numbers")
    return x
