"""Which positions of an image a block of neighbouring outputs reads, and which kernel tap meets which.

One matrix product makes all outputs of a block: a row holds every position that any of them reads, and the matrix
holds the kernel once per output, shifted, with zeros elsewhere. Products with few columns are slow, and outputs that
share what they read need it only once; against that stand the products with zeros. The gradient of a strided
convolution is made in blocks of its stride, for otherwise most of what it reads is holes.
"""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from .fields import Pair

Index = NDArray[np.int32]
_WIDTHS = (1, 2, 4, 8)  # outputs of a block along one side


@frozen
class Line:
    """One side of an image: ``blocks`` of ``width`` outputs each, of which ``outputs`` are wanted.

    Block j reads positions j·step + offset + u of ``source``; output i of the block meets them with ``taps``[u][i] of
    the kernel, -1 for none.
    """

    source: int
    outputs: int
    step: int
    offset: int
    taps: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        return len(self.taps[0])

    @property
    def reads(self) -> int:
        return len(self.taps)

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.width)

    @property
    def padding(self) -> Pair:
        """Positions to add before and after the source, negative to drop some."""
        end = (self.blocks - 1) * self.step + self.offset + self.reads
        return -self.offset, end - self.source

    @property
    def padded(self) -> int:
        return (self.blocks - 1) * self.step + self.reads


def sliding(source: int, outputs: int, kernel: int, stride: int, before: int, width: int) -> Line:
    """Outputs of a convolution, each reading ``kernel`` positions from output·stride - before on."""
    reads = (width - 1) * stride + kernel
    taps = tuple(tuple(_tap(u - i * stride, kernel) for i in range(width)) for u in range(reads))
    return Line(source, outputs, width * stride, -before, taps)


def reversed_(source: int, outputs: int, kernel: int, stride: int, before: int, width: int) -> Line:
    """Its gradient: position p reads every (p + before - tap) / stride that is whole; width is a multiple of stride."""
    first = -((kernel - 1 - before) // stride)
    last = (width - 1 + before) // stride
    taps = tuple(tuple(_tap(i + before - q * stride, kernel) for i in range(width)) for q in range(first, last + 1))
    return Line(source, outputs, width // stride, first, taps)


def _tap(number: int, kernel: int) -> int:
    return number if 0 <= number < kernel else -1


@frozen
class Blocks:
    """Both sides of an image together, for a kernel of ``kernel`` taps."""

    rows: Line
    columns: Line
    kernel: Pair

    @property
    def made(self) -> Pair:
        """Rows and columns of outputs, overhanging ones included."""
        return self.rows.blocks * self.rows.width, self.columns.blocks * self.columns.width

    @property
    def reads(self) -> int:
        return self.rows.reads * self.columns.reads

    @property
    def width(self) -> int:
        return self.rows.width * self.columns.width

    @property
    def count(self) -> int:
        return self.rows.blocks * self.columns.blocks

    @property
    def plain(self) -> bool:
        """True if every output stands alone and meets the kernel as it is."""
        return self.width == 1 and np.array_equal(self.taps().reshape(-1), np.arange(math.prod(self.kernel)))

    def positions(self) -> tuple[Index, Index]:
        """Position read, as a sum: of [block row, 1, read row, 1] and [1, block column, 1, read column]."""
        row = np.arange(self.rows.blocks)[:, None, None, None] * self.rows.step
        row = (row + np.arange(self.rows.reads)[None, None, :, None]) * self.columns.padded
        column = np.arange(self.columns.blocks)[None, :, None, None] * self.columns.step
        return row.astype(np.int32), (column + np.arange(self.columns.reads)).astype(np.int32)

    def taps(self) -> Index:
        """Kernel tap that meets [read, output of the block], -1 for none."""
        rows, columns = np.array(self.rows.taps), np.array(self.columns.taps)
        row, column = rows[:, None, :, None], columns[None, :, None, :]
        tap = np.where((row >= 0) & (column >= 0), row * self.kernel[1] + column, -1)
        return tap.reshape(self.reads, self.width).astype(np.int32)

    def meetings(self) -> Index:
        """Where in :meth:`taps`, flattened, each tap stands: [tap, as often as it does]; -1 fills up."""
        flat = self.taps().reshape(-1)
        found = [np.flatnonzero(flat == tap) for tap in range(math.prod(self.kernel))]
        filled = np.full((len(found), max(1, *(len(where) for where in found))), -1, np.int32)
        for tap, where in enumerate(found):
            filled[tap, : len(where)] = where
        return filled


def convolution(
    pixels: Pair, made: Pair, kernel: Pair, stride: Pair, before: Pair, channels: int, columns: int
) -> Blocks:
    """Blocks for a convolution to ``channels`` on a runtime that is fast at products of ``columns`` or more."""
    rows = sliding(pixels[0], made[0], kernel[0], stride[0], before[0], 1)
    widths = [w for w in _WIDTHS if made[1] % w == 0]
    lines = [sliding(pixels[1], made[1], kernel[1], stride[1], before[1], width) for width in widths]
    return Blocks(rows, min(lines, key=lambda line: _effort(rows, line, channels, columns)), kernel)


def gradient(made: Pair, pixels: Pair, kernel: Pair, stride: Pair, before: Pair, channels: int, columns: int) -> Blocks:
    """Blocks for the gradient by the ``pixels`` of the convolution that made ``made``."""
    rows = reversed_(made[0], pixels[0], kernel[0], stride[0], before[0], stride[0])
    widths = [stride[1] * w for w in _WIDTHS]
    fitting = [w for w in widths if w == stride[1] or (w <= max(_WIDTHS) and pixels[1] % w == 0)]
    lines = [reversed_(made[1], pixels[1], kernel[1], stride[1], before[1], width) for width in fitting]
    return Blocks(rows, min(lines, key=lambda line: _effort(rows, line, channels, columns)), kernel)


def _effort(rows: Line, columns: Line, channels: int, wanted: int) -> float:
    """Multiply-adds per output and input channel, those counted that fill up a product's columns."""
    width = rows.width * columns.width
    return rows.reads * columns.reads * -(-width * channels // wanted) * wanted / width
