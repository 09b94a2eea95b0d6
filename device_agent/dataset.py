"""The device's own training data, which never leaves it: ``x`` [n, ...] and ``y`` [n] in an ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array

from .errors import DataError


@frozen(eq=False)
class Dataset:
    """``x`` stays float32 or uint8: images as float32 would take four times the memory."""

    x: NDArray[Any]
    y: NDArray[np.int32]
    classes: int

    def __len__(self) -> int:
        return len(self.y)

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def batch(self, indices: NDArray[np.intp]) -> tuple[Array, NDArray[np.int32]]:
        """Samples as float32 [b, ...] (uint8 scaled to 0..1) and their labels [b]."""
        x = self.x[indices]
        if x.dtype == np.uint8:
            x = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
        return x, self.y[indices]


def load(path: Path) -> Dataset:
    """Read and check ``path``; DataError says in one sentence what is wrong with it."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, expected an .npz file with the arrays x and y")
        with file:
            missing = [name for name in ("x", "y") if name not in file.files]
            if missing:
                there = ", ".join(file.files) or "nothing"
                raise DataError(f"{path} has no array {missing[0]!r} (there is {there}), expected x and y")
            x, y = file["x"], file["y"]
            classes = file["classes"] if "classes" in file.files else None
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"the data file {path} does not exist") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    try:
        return checked(x, y, classes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


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
    return Dataset(_inputs(x), y.astype(np.int32), count)


def _classes(y: NDArray[Any], classes: NDArray[Any] | None) -> int:
    if classes is None:
        return max(int(y.max()), 0) + 1
    if classes.ndim != 0 or classes.dtype.kind not in "iu" or not 1 <= int(classes) <= 1_000_000:
        raise DataError(f"classes is {str(classes)[:40]}, expected one whole number from 1 to 1000000")
    return int(classes)


def _inputs(x: NDArray[Any]) -> NDArray[Any]:
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
