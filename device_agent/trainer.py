"""Local training: a number of SGD steps of one compiled step over the device's samples.

Pure but for the clock and the sleep it is given: the same assignment on the same data gives the same
difference.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from protocol.messages import Plan
from protocol.weights import Array, Weights, finite

from .dataset import Dataset

RECENT = 9  # steps whose median duration the pace stretches


class StepOutcome(Protocol):
    """Sums over one batch and, per tensor, the squared norm [T] of its mean-loss gradient."""

    @property
    def loss_sum(self) -> float: ...
    @property
    def correct(self) -> float: ...
    @property
    def squared_gradient(self) -> Array: ...


class Step(Protocol):
    """A compiled training step: keeps the weights between the calls."""

    @property
    def batch(self) -> int: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def load(self, weights: Weights) -> None: ...
    def step(
        self, x: Array, y: NDArray[np.int32], sample_weight: Array, learning_rate: float
    ) -> StepOutcome: ...
    def weights(self) -> Weights: ...


class Cancelled(Exception):
    """Training was asked to stop before its last step."""


class Diverged(Exception):
    """The loss, a gradient or a weight is no longer a finite number."""


@frozen(kw_only=True)
class LocalResult:
    """``difference`` = weights after − before; ``loss`` and ``accuracy``: means over the ``samples`` trained.

    ``squared_gradient`` (mean) and ``squared_gradient_peak`` (largest) run over the steps, per tensor.
    ``seconds`` are those of training, pacing included.
    """

    difference: Weights = field(repr=False)
    samples: int
    steps: int
    loss: float
    accuracy: float
    squared_gradient: dict[str, float]
    squared_gradient_peak: dict[str, float]
    seconds: float


def seeded(assignment: str) -> np.random.Generator:
    """The generator of one assignment: a repeat after a crash draws the same batches."""
    digest = hashlib.sha256(assignment.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def batches(
    samples: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Endless shuffled epochs as (indices [batch], sample weights [batch]).

    What is left at the end of an epoch is padded with sample 0 at weight 0.
    """
    while True:
        order = rng.permutation(samples)
        for start in range(0, samples, batch):
            part = order[start : start + batch]
            indices = np.zeros(batch, np.intp)
            weights = np.zeros(batch, np.float32)
            indices[: len(part)] = part
            weights[: len(part)] = 1
            yield indices, weights


class Pacer:
    """Stretches every step to ``pace`` × the median of the recent steps' own times."""

    def __init__(self, pace: float, clock: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._pace, self._clock, self._sleep = pace, clock, sleep
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._start = clock()

    def begin(self) -> None:
        self._start = self._clock()

    def end(self) -> None:
        if self._pace <= 1:
            return
        took = self._clock() - self._start
        self._recent.append(took)
        usual = sorted(self._recent)[len(self._recent) // 2]
        rest = self._pace * usual - took
        if rest > 0:
            self._sleep(rest)


def train(
    step: Step,
    weights: Weights,
    plan: Plan,
    dataset: Dataset,
    rng: np.random.Generator,
    *,
    on_progress: Callable[[int, float | None], None],
    cancelled: Callable[[], bool],
    pace: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> LocalResult:
    """Run ``plan.steps`` steps from ``weights``.

    ``on_progress(step, loss)`` hears the mean loss of every step's batch, and before the first (0, None).
    ``sleep(seconds)`` may return early. Raises Cancelled, or Diverged when a number stops being finite.
    """
    started = clock()
    pacer = Pacer(pace, clock, sleep)
    step.load(weights)
    on_progress(0, None)
    sums = _Sums(list(step.shapes))
    drawn = batches(len(dataset), step.batch, rng)
    for number in range(1, plan.steps + 1):
        if cancelled():
            raise Cancelled
        indices, sample_weight = next(drawn)
        pacer.begin()
        outcome = step.step(*dataset.batch(indices), sample_weight, plan.learning_rate)
        trained = int(np.count_nonzero(sample_weight))
        sums.add(outcome, trained)
        on_progress(number, outcome.loss_sum / trained)
        pacer.end()
    difference = step.weights()
    for name, start in weights.items():
        difference[name] -= start
    if not finite(difference):
        raise Diverged(f"a weight is not finite after {plan.steps} steps")
    return sums.result(difference, clock() - started)


class _Sums:
    """What is summed over the steps, for the tensors ``names``."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._steps = self._samples = 0
        self._loss = self._correct = 0.0
        self._squared = np.zeros(len(names))
        self._peak = np.zeros(len(names))

    def add(self, outcome: StepOutcome, samples: int) -> None:
        gradient = np.asarray(outcome.squared_gradient, np.float64)
        self._steps += 1
        if not (math.isfinite(outcome.loss_sum) and np.isfinite(gradient).all()):
            raise Diverged(f"the loss or a gradient is not finite at step {self._steps}")
        self._samples += samples
        self._loss += outcome.loss_sum
        self._correct += outcome.correct
        self._squared += gradient
        np.maximum(self._peak, gradient, out=self._peak)

    def result(self, difference: Weights, seconds: float) -> LocalResult:
        mean = self._squared / self._steps
        return LocalResult(
            difference=difference,
            samples=self._samples,
            steps=self._steps,
            loss=self._loss / self._samples,
            accuracy=min(max(self._correct / self._samples, 0.0), 1.0),
            squared_gradient=dict(zip(self._names, mean.tolist(), strict=True)),
            squared_gradient_peak=dict(zip(self._names, self._peak.tolist(), strict=True)),
            seconds=seconds,
        )
