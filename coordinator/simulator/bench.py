"""Where devices train: really, by the device's own trainer, on a clock that says what their own boards would take.

One interpreter per artifact serves the whole fleet: a device's training begins by loading its weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from coordinator.simulator.attic import Attic
from device_agent import feedback
from device_agent.dataset import Dataset
from device_agent.feedback import Base
from device_agent.runtime import StepResult, TrainStep
from device_agent.trainer import Diverged, LocalResult, seeded, train
from protocol.errors import ProtocolError
from protocol.messages import Assignment
from protocol.weights import Array, Weights

T = TypeVar("T")

KEPT: Final = 8
"""Interpreters, and weights of versions, that are kept."""
MEGABYTE: Final = 1 << 20


@frozen
class Trained:
    """``seconds`` of the device's own time until it is done; ``result`` without its difference, or why it failed."""

    seconds: float
    result: LocalResult | None
    body: bytes = b""
    region: str = ""
    residual: bytes | None = None
    shape_epoch: int = 0
    reason: str = ""


class _Clock:
    """The device's time; sleeping lets it pass."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Timed:
    """A step that takes its device's time."""

    def __init__(self, step: TrainStep, took: Callable[[int], float], clock: _Clock) -> None:
        self._step, self._took, self._clock = step, took, clock
        self.batch, self.shapes, self.options = step.batch, step.shapes, step.options

    def load(self, weights: Weights) -> None:
        self._step.load(weights)

    def step(
        self,
        x: Array,
        y: NDArray[np.int32],
        sample_weight: Array,
        learning_rate: float,
        options: Mapping[str, Array],
    ) -> StepResult:
        outcome = self._step.step(x, y, sample_weight, learning_rate, options)
        self._clock.now += self._took(self.batch)
        return outcome

    def weights(self) -> Weights:
        return self._step.weights()


class Bench:
    """Trains for all devices, one after the other."""

    def __init__(self, attic: Attic) -> None:
        self._attic = attic
        self._steps: OrderedDict[str, TrainStep] = OrderedDict()
        self._bases: OrderedDict[str, Base] = OrderedDict()
        self.updates = 0

    def train(
        self,
        assignment: Assignment,
        dataset: Dataset,
        residual: bytes | None,
        memory_mb: float,
        begin: float,
        took: Callable[[int, float], float],
    ) -> Trained:
        """Carry out ``assignment`` from moment ``begin``; ``took(batch, at)`` are the seconds of a step."""
        clock = _Clock(begin)
        try:
            step = self._step(assignment.artifact.sha256)
            base = self._base(assignment.weights.sha256)
            needed = _megabytes(step, base)
            if memory_mb and needed > memory_mb:
                raise MemoryError(f"a step needs {needed:.0f} MB beside the system, the board has {memory_mb:g} MB")
            timed = _Timed(step, lambda batch: took(batch, clock.now), clock)
            result = train(
                timed,
                base.weights,
                assignment.plan,
                dataset,
                seeded(assignment.id),
                on_progress=lambda _step, _loss: None,
                cancelled=lambda: False,
                pace=1.0,
                clock=clock,
                sleep=clock.sleep,
            )
            body, left = feedback.encode(result.difference, assignment.plan.coding, base.region, residual)
        except (Diverged, ProtocolError, ValueError, RuntimeError, MemoryError) as error:
            return Trained(clock.now - begin, None, reason=str(error) or type(error).__name__)
        self.updates += 1
        slim = evolve(result, difference={})
        return Trained(clock.now - begin, slim, body, base.region_text, left, base.shape_epoch)

    def _step(self, sha256: str) -> TrainStep:
        return _kept(self._steps, sha256, lambda: TrainStep(self._attic.get(sha256)))

    def _base(self, sha256: str) -> Base:
        return _kept(self._bases, sha256, lambda: feedback.read_base(self._attic.get(sha256)))


def _kept(shelf: OrderedDict[str, T], name: str, make: Callable[[], T]) -> T:
    """The thing of that name; the one used longest ago gives way."""
    if name not in shelf:
        shelf[name] = make()
        if len(shelf) > KEPT:
            shelf.popitem(last=False)
    shelf.move_to_end(name)
    return shelf[name]


def _megabytes(step: TrainStep, base: Base) -> float:
    """A rough account of an agent that trains: 60 MB of program, five copies of the weights, the batch."""
    floats = 5 * base.region.parameters + 20 * step.batch * int(np.prod(step.input_shape))
    return 60 + 4 * floats / MEGABYTE
