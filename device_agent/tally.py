"""What is summed over the steps of one commit."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from attrs import frozen

from protocol.messages import Message
from protocol.weights import Array


class Diverged(Exception):
    """The loss, a gradient or a weight is no longer a finite number."""


class StepOutcome(Protocol):
    """Sums over one batch and, per tensor, the squared norm [T] of its mean-loss gradient."""

    @property
    def loss_sum(self) -> float: ...
    @property
    def correct(self) -> float: ...
    @property
    def squared_gradient(self) -> Array: ...


@frozen(kw_only=True)
class Sums(Message):
    """A :class:`Tally` at rest."""

    steps: int
    samples: int
    loss: float
    correct: float
    squared: tuple[float, ...]
    peak: tuple[float, ...]


class Tally:
    """Sums over the steps so far, for the tensors ``names``; they go on from ``sums``."""

    def __init__(self, names: list[str], sums: Sums | None = None) -> None:
        self._names = names
        self.steps = sums.steps if sums else 0
        self.samples = sums.samples if sums else 0
        self._loss = sums.loss if sums else 0.0
        self._correct = sums.correct if sums else 0.0
        self._squared = np.array(sums.squared if sums else np.zeros(len(names)), np.float64)
        self._peak = np.array(sums.peak if sums else np.zeros(len(names)), np.float64)

    def add(self, outcome: StepOutcome, samples: int, step: int) -> None:
        """One step over ``samples`` samples; Diverged at ``step`` if a number is not finite."""
        gradient = np.asarray(outcome.squared_gradient, np.float64)
        if not (math.isfinite(outcome.loss_sum) and np.isfinite(gradient).all()):
            raise Diverged(f"the loss or a gradient is not finite at step {step}")
        self.steps += 1
        self.samples += samples
        self._loss += outcome.loss_sum
        self._correct += outcome.correct
        self._squared += gradient
        np.maximum(self._peak, gradient, out=self._peak)

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return self._loss / self.samples

    @property
    def accuracy(self) -> float:
        return min(max(self._correct / self.samples, 0.0), 1.0)

    @property
    def squared_gradient(self) -> dict[str, float]:
        """Mean over the steps, per tensor."""
        return dict(zip(self._names, (self._squared / self.steps).tolist(), strict=True))

    @property
    def squared_gradient_peak(self) -> dict[str, float]:
        """Largest of the steps, per tensor."""
        return dict(zip(self._names, self._peak.tolist(), strict=True))

    def sums(self) -> Sums:
        return Sums(
            steps=self.steps,
            samples=self.samples,
            loss=self._loss,
            correct=self._correct,
            squared=tuple(self._squared.tolist()),
            peak=tuple(self._peak.tolist()),
        )
