"""Index tables of convolutions, by hand and against each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from coordinator.compiler.patches import Patches
from coordinator.compiler.spec import Conv2D


def test_a_row_of_four_pixels_under_a_kernel_of_three():
    """Padded on both ends; every output reads its neighbours, every pixel was read by its neighbours."""
    patches = Patches(Conv2D(1, (1, 3)), (1, 4))
    assert patches.forward().tolist() == [[[-1, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, -1]]]
    assert patches.backward().tolist() == [[1, 0, -1], [2, 1, 0], [3, 2, 1], [-1, 3, 2]]


def test_outputs_are_sorted_by_place_in_their_window():
    """Windows of two in a row of five: outputs 0 and 2, then 1 and 3; output 4 is in no window."""
    patches = Patches(Conv2D(1, (1, 1), (1, 1)), (1, 5), (1, 2))
    assert patches.forward().tolist() == [[[0], [2]], [[1], [3]]]
    assert patches.backward().tolist() == [[0], [2], [1], [3], [-1]]


CASES = [
    Patches(Conv2D(1, kernel, stride, padding), pixels, window)
    for pixels, kernel, stride, padding, window in itertools.product(
        [(5, 6), (7, 4)], [(3, 2), (1, 1)], [(1, 1), (2, 1), (3, 2)], ["same", "valid"], [(1, 1), (1, 2), (2, 1)]
    )
    if 0 not in Patches(Conv2D(1, kernel, stride, padding), pixels, window).pooled
]


@pytest.mark.parametrize("patches", CASES, ids=str)
def test_who_reads_what(patches):
    """Forward and backward tables list the same (output, pixel, tap) triples."""
    forward, backward = patches.forward(), patches.backward()
    assert forward.shape == (patches.window[0] * patches.window[1], patches.positions, patches.taps)
    flat = forward.reshape(-1, patches.taps)
    reads = {(out, flat[out, tap], tap) for out, tap in np.ndindex(*flat.shape) if flat[out, tap] >= 0}
    read_by = {(backward[p, t], p, t) for p, t in np.ndindex(*backward.shape) if backward[p, t] >= 0}
    assert reads == read_by
    assert reads
