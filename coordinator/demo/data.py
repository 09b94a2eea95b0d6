"""The demo's data: test and control set for the coordinator, and the rest dealt out unevenly to the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from coordinator.errors import ShoalError
from coordinator.training.evaluation import read_arrays
from protocol.weights import Array

TEST_SHARE = 0.15
CONTROL_SHARE = 0.15
"""As large as the test set, so that the target is not a matter of luck."""
CONCENTRATION = 0.5
MAX_CLASSES = 1_000_000


@frozen(eq=False)
class Samples:
    """``x`` [n, *shape] float32 and labels ``y`` [n] int32 below ``classes``."""

    x: Array
    y: NDArray[np.int32]
    classes: int

    def pick(self, rows: NDArray[np.intp]) -> Samples:
        return Samples(self.x[rows], self.y[rows], self.classes)

    def save(self, path: Path, control: Samples | None = None) -> None:
        """Write an npz file, with ``control`` beside the samples if there is one."""
        beside = {} if control is None else {"control_x": control.x, "control_y": control.y}
        np.savez(path, x=self.x, y=self.y, classes=np.int32(self.classes), **beside)


def handwritten_digits() -> Samples:
    """1,797 handwritten digits of 8×8 pixels that scikit-learn carries, scaled to 0 … 1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ShoalError(
            "bad-dataset", "scikit-learn is missing: install shoal[demo], or name --data FILE.npz"
        ) from error
    bundle: Any = load_digits()
    return Samples((bundle.data / 16).astype(np.float32), bundle.target.astype(np.int32), 10)


def from_file(path: Path) -> Samples:
    """Samples of an npz file with arrays x and y; ShoalError ``bad-dataset``."""
    x, y = read_arrays(path)
    if x.ndim < 2 or y.dtype.kind not in "iu" or y.shape != x.shape[:1] or len(y) < 100 or y.min() < 0:
        raise ShoalError(
            "bad-dataset",
            f"{path} holds x {x.shape} and y {y.dtype} {y.shape}: expected at least 100 samples "
            "of finite numbers with whole labels from 0",
        )
    classes = int(y.max()) + 1
    if classes > min(MAX_CLASSES, len(y)):
        raise ShoalError(
            "bad-dataset",
            f"{path} holds the label {classes - 1}: labels count the classes from 0, and with {len(y)} samples "
            f"there are at most {min(MAX_CLASSES, len(y))}",
        )
    return Samples(x, y.astype(np.int32), classes)


def split(samples: Samples, rng: np.random.Generator) -> tuple[Samples, Samples, Samples]:
    """(test, control, train): what the coordinator reports on, what it decides by, and what it never sees."""
    rows = rng.permutation(len(samples.y))
    test = int(len(rows) * TEST_SHARE)
    control = test + int(len(rows) * CONTROL_SHARE)
    return samples.pick(rows[:test]), samples.pick(rows[test:control]), samples.pick(rows[control:])


def deal(samples: Samples, devices: int, rng: np.random.Generator) -> list[Samples]:
    """Every class is split among the devices by Dirichlet(0.5): some devices see hardly any of it.

    Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution, 2019 (arXiv 1909.06335). Everybody gets
    at least 16 samples, taken from who has most.
    """
    least = 16
    if len(samples.y) < devices * 2 * least:
        raise ShoalError("bad-dataset", f"{len(samples.y)} samples are too few for {devices} devices")
    hands: list[list[int]] = [[] for _ in range(devices)]
    for label in np.unique(samples.y):
        rows = np.flatnonzero(samples.y == label)
        cuts = (np.cumsum(rng.dirichlet([CONCENTRATION] * devices))[:-1] * len(rows)).astype(int)
        for hand, part in zip(hands, np.split(rows, cuts), strict=True):
            hand.extend(part.tolist())
    for hand in hands:
        while len(hand) < least:
            hand.append(max(hands, key=len).pop())
    return [samples.pick(np.array(hand, np.intp)) for hand in hands]
