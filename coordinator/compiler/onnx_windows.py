"""Paddings of ONNX as those there are here: "same" and "valid"."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen

from protocol.weights import Array

from .fields import Padding


@frozen
class Window:
    """A convolution's reach along every side; the kernel stands at ``offsets`` of one of ``sizes``, zeros around it."""

    padding: Padding
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]

    def widened(self, kernel: Array) -> Array:
        """kernel[*sides, …] with the zeros."""
        sides = len(self.sizes)
        if kernel.shape[:sides] == self.sizes:
            return kernel
        wide = np.zeros((*self.sizes, *kernel.shape[sides:]), kernel.dtype)
        place = tuple(slice(o, o + n) for o, n in zip(self.offsets, kernel.shape[:sides], strict=True))
        wide[place] = kernel
        return wide


def pads(attributes: dict[str, Any], pixels: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and after every side, whichever way the file says it."""
    strides = attributes.get("strides", [1] * len(kernel))
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(pixels, kernel, strides, strict=True)]
        halves = [(total // 2, total - total // 2) for total in totals]
        return [half[::-1] for half in halves] if auto == "SAME_LOWER" else halves
    given = attributes.get("pads", [0] * 2 * len(kernel))
    return list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))


def window(
    pixels: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padded: Sequence[tuple[int, int]]
) -> Window | None:
    """The smallest reach that reads what the file's convolution reads, None if there is none.

    Where "same" puts its padding elsewhere (an even side, a stride), zeros around the kernel make up for it.
    """
    found: list[Window] = []
    sides = list(zip(pixels, kernel, strides, padded, strict=True))
    for padding in ("valid", "same"):
        fitting = [_fitting(padding, *side) for side in sides]
        for choice in itertools.islice(itertools.product(*fitting), 1):
            found.append(Window(padding, tuple(size for size, _ in choice), tuple(offset for _, offset in choice)))
    return min(found, key=lambda w: int(np.prod(w.sizes)), default=None)


def _fitting(padding: str, n: int, kernel: int, stride: int, padded: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes and offsets that do for one side, the smallest first."""
    before, after = padded
    outputs = (n + before + after - kernel) // stride + 1
    if padding == "valid":
        return [(kernel, 0)] if padded == (0, 0) or (before == 0 and (n - kernel) // stride + 1 == outputs) else []
    if outputs != -(-n // stride):
        return []
    found: list[tuple[int, int]] = []
    for size in range(kernel, kernel + 2 * max(before, after, stride) + 1):
        offset = max((outputs - 1) * stride + size - n, 0) // 2 - before
        if 0 <= offset <= size - kernel:
            found.append((size, offset))
    return found
