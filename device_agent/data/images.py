"""Folders of images, one folder a class. Needs Pillow (extra ``images``)."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import DataError

from .budget import Budget
from .folder import label, listing
from .source import Samples, Source, Unreadable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 64_000_000  # of one file; more is taken for an attack
MODES = {"grey": "L", "rgb": "RGB"}


def samples(source: Source, budget: Budget, settled_before: float) -> Samples:
    """uint8 [n, height, width, 1 or 3]; images of another size are scaled to ``shape`` = [height, width, ...]."""
    path, pillow = source.where(), library()
    channels = len(MODES[source.color].replace("L", "1"))
    shape = source.shape or ()
    if len(shape) < 2 or (len(shape) == 3 and shape[2] != channels) or len(shape) > 3:
        raise DataError(
            f"shape in [data] is {list(shape)}, expected [height, width, {channels}] for {source.color} images"
        )
    found = listing(path, SUFFIXES, settled_before)
    labels = [label(file, path) for file in found.files]
    size = (len(found.files), shape[0], shape[1], channels)
    budget.ask(math.prod(size))
    x = np.empty(size, np.uint8)
    good: list[str] = []
    skipped: list[str] = []
    for index, file in enumerate(found.files):
        try:
            x[len(good)] = pixels(pillow, file, MODES[source.color], shape).reshape(size[1:])
        except Unreadable as error:
            skipped.append(str(error))
            continue
        good.append(labels[index])
    if not good:
        why = skipped[0] if skipped else f"{found.unsettled} are still being written" if found.unsettled else "none"
        raise DataError(f"the data is empty: {path} holds no image that can be read ({why})")
    return Samples(x[: len(good)], np.array(good), skipped=tuple(skipped))


def pixels(pillow: Any, file: Path, mode: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One image in a mode of ``MODES``, scaled to ``shape`` = (height, width, ...); Unreadable if it is none."""
    try:
        with pillow.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{file} has {image.width} × {image.height} pixels, expected at most {MAX_PIXELS}")
            scaled = image.convert(mode)
            if scaled.size != (shape[1], shape[0]):
                scaled = scaled.resize((shape[1], shape[0]), pillow.Resampling.BILINEAR)
            return np.asarray(scaled, np.uint8)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise Unreadable(f"{file} cannot be read as an image: {error}") from error


def library() -> Any:
    """Pillow; DataError where it is not installed."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise DataError("reading images needs Pillow: install the extra shoal[images]") from error
