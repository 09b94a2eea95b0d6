"""Blocks of outputs: what they read and which tap meets which, against the definition of a convolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coordinator.compiler.blocks import Blocks, reversed_, sliding


def test_two_neighbours_under_a_kernel_of_three():
    """They read four positions; the first meets the kernel from the first on, the second from the second on."""
    line = sliding(source=6, outputs=6, kernel=3, stride=1, before=1, width=2)
    assert line.taps == ((0, -1), (1, 0), (2, 1), (-1, 2))
    assert (line.blocks, line.step, line.offset, line.padding) == (3, 2, -1, (1, 1))


def test_the_gradient_of_a_stride_of_two():
    """Even pixels were read by tap 1 of one output, odd ones by tap 2 of it and tap 0 of the next."""
    line = reversed_(source=3, outputs=6, kernel=3, stride=2, before=1, width=2)
    assert line.taps == ((1, 2), (-1, 0))
    assert (line.blocks, line.step, line.offset) == (3, 1, 0)


def read(line, j, i):
    """(position, tap) pairs of output i of block j."""
    return {
        (j * line.step + line.offset + u, taps[i])
        for u, taps in enumerate(line.taps)
        if taps[i] >= 0 and 0 <= j * line.step + line.offset + u < line.source
    }


CASES = [
    (size, kernel, stride, before, width)
    for size, kernel, stride, width in itertools.product((5, 8), (1, 2, 3, 5), (1, 2, 3), (1, 2, 4))
    for before in {0, (kernel - 1) // 2}
    if kernel <= size
]


@pytest.mark.parametrize(("size", "kernel", "stride", "before", "width"), CASES)
def test_lines_are_what_the_definition_says(size, kernel, stride, before, width):
    made = (size + 2 * before - kernel) // stride + 1
    line = sliding(size, made, kernel, stride, before, width)
    back = reversed_(made, size, kernel, stride, before, width * stride)
    edges = {(o, o * stride + tap - before, tap) for o in range(made) for tap in range(kernel)}
    edges = {edge for edge in edges if 0 <= edge[1] < size}
    found = {(o, p, tap) for o in range(made) for p, tap in read(line, o // width, o % width)}
    assert found == edges
    found = {(o, p, tap) for p in range(size) for o, tap in read(back, p // back.width, p % back.width)}
    assert found == edges


def test_every_tap_stands_once_per_output_of_a_block():
    blocks = Blocks(sliding(4, 4, 3, 1, 1, 1), sliding(4, 4, 3, 1, 1, 2), (3, 3))
    flat = blocks.taps().reshape(-1)
    assert blocks.meetings().shape == (9, 2)
    for tap, where in enumerate(blocks.meetings()):
        assert flat[where].tolist() == [tap] * 2
    rows, columns = blocks.positions()
    assert (rows + columns).shape == (4, 2, 3, 4)
    assert (rows + columns)[1, 1, 0].tolist() == [6 + 2, 6 + 3, 6 + 4, 6 + 5]
    assert not blocks.plain
    assert not np.array_equal(blocks.taps()[:, 0], blocks.taps()[:, 1])
