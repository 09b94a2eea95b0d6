"""Training data: what is accepted, and one clear sentence for everything else."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from device_agent.dataset import checked
from device_agent.errors import DataError

X = np.zeros((4, 3), np.float32)
Y = np.array([0, 1, 2, 1])


def test_images_stay_small_and_are_scaled_batch_by_batch() -> None:
    dataset = checked(np.array([[[0], [51]], [[255], [102]]], np.uint8), np.array([0, 1]))
    assert dataset.x.dtype == np.uint8
    x, y = dataset.batch(np.array([1, 0]))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[:, :, 0], [[1, 0.4], [0, 0.2]], rtol=1e-6)
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("x", "y", "classes", "sentence"),
    [
        (X[:0], Y[:0], None, "the data is empty"),
        (X, Y[:3], None, r"y has shape \(3,\), expected one label for each of the 4 samples"),
        (X[:, 0], Y, None, r"x has shape \(4,\)"),
        (np.zeros((4, 0), np.float32), Y, None, r"x has shape \(4, 0\)"),
        (X, Y.astype(float), None, "y is float64, expected whole numbers"),
        (X, np.array([0, 1, -1, 2]), None, r"y\[2\] is -1, expected a class number from 0 to 2"),
        (X, Y, np.array(2), r"y\[2\] is 2, expected a class number from 0 to 1"),
        (X, Y, np.array([3]), r"classes is \[3\], expected one whole number"),
        (X, Y, np.array(0), "classes is 0"),
        (X.astype(np.int64), Y, None, "x is int64, expected float32, or uint8 for images"),
        (X.astype(object), Y, None, "x is object"),
        (
            np.where(np.arange(12).reshape(4, 3) == 7, np.nan, 0).astype(np.float32),
            Y,
            None,
            r"x\[2\] holds NaN",
        ),
        (np.full((4, 3), 1e300), Y, None, r"x\[0\] holds NaN or an infinite value"),
    ],
)
def test_bad_arrays(x: np.ndarray, y: np.ndarray, classes: np.ndarray | None, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        checked(x, y, classes)


def test_rows_make_a_view_without_a_copy() -> None:
    whole = checked(X + np.arange(4, dtype=np.float32)[:, None], Y)
    view = evolve(whole, rows=np.array([3, 1]))
    x, y = view.batch(np.array([0, 1]))
    assert (len(view), view.x is whole.x) == (2, True)
    assert (x[:, 0].tolist(), y.tolist()) == ([3, 1], [1, 1])
    assert (whole.histogram(), view.histogram()) == ((1, 2, 1), (0, 2, 0))
