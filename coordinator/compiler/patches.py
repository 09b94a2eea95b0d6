"""Which pixels a convolution reads for every output, when a maximum over windows of its outputs follows.

Outputs are numbered by their place inside the pooling window first: all that stand top left in their windows, then all
that stand right of those, and so on. Each of these *phases* is a contiguous block, and the maximum is one of whole
blocks. Outputs in no window are never computed. Without pooling the window is (1, 1) and there is one phase.
"""

from __future__ import annotations

import math

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from .fields import Pair
from .kinds import Conv2D

Index = NDArray[np.int32]


@frozen
class Patches:
    """The geometry of ``layer`` on an image of ``pixels`` (rows, columns), followed by a maximum over ``window``."""

    layer: Conv2D
    pixels: Pair
    window: Pair = (1, 1)

    @property
    def before(self) -> Pair:
        """Padding above and to the left."""
        return self.layer.padding_before(self.pixels)

    @property
    def pooled(self) -> Pair:
        """Rows and columns of windows."""
        rows, columns = self.layer.output((*self.pixels, 1))[:2]
        return rows // self.window[0], columns // self.window[1]

    @property
    def positions(self) -> int:
        """Outputs of one phase."""
        return math.prod(self.pooled)

    @property
    def taps(self) -> int:
        return math.prod(self.layer.kernel)

    def forward(self) -> Index:
        """Pixel under [phase, position, tap], -1 in the padding."""
        sizes = (*self.window, *self.pooled, *self.layer.kernel)
        down, across, row, column, tap_row, tap_column = np.ix_(*map(np.arange, sizes))
        row = (row * self.window[0] + down) * self.layer.stride[0] + tap_row - self.before[0]
        column = (column * self.window[1] + across) * self.layer.stride[1] + tap_column - self.before[1]
        inside = (row >= 0) & (row < self.pixels[0]) & (column >= 0) & (column < self.pixels[1])
        index = np.where(inside, row * self.pixels[1] + column, -1)
        return index.astype(np.int32).reshape(-1, self.positions, self.taps)

    def backward(self) -> Index:
        """Output, numbered by phase and position, that read [pixel, tap]; -1 where none did."""
        row, column, tap_row, tap_column = np.ix_(*map(np.arange, (*self.pixels, *self.layer.kernel)))
        row, row_rest = np.divmod(row + self.before[0] - tap_row, self.layer.stride[0])
        column, column_rest = np.divmod(column + self.before[1] - tap_column, self.layer.stride[1])
        (rows, columns), (high, wide) = self.pooled, self.window
        read = (row_rest == 0) & (column_rest == 0)
        read &= (row >= 0) & (row < rows * high) & (column >= 0) & (column < columns * wide)
        phase = row % high * wide + column % wide
        number = phase * self.positions + row // high * columns + column // wide
        return np.where(read, number, -1).astype(np.int32).reshape(-1, self.taps)
