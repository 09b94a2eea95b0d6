"""Where devices train: really, by the device's own trainer, on clocks that say what their own boards would take.

One interpreter per artifact serves the whole fleet: whoever trains has its own weights in it.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import numpy as np
from attrs import define, evolve, frozen
from numpy.typing import NDArray

from coordinator.errors import ShoalError
from coordinator.simulator.attic import Attic
from coordinator.simulator.course import FAILURES, Clock, Course, Stand
from device_agent import feedback
from device_agent.checkpoint import parted
from device_agent.dataset import Dataset
from device_agent.feedback import Base
from device_agent.position import Checkpoint
from device_agent.runtime import StepResult, TrainStep
from device_agent.trainer import PLANNED, LocalResult, Start, Step, Training, Unfit
from protocol.errors import ProtocolError
from protocol.messages import Assignment, Fresh
from protocol.weights import Array, Weights

T = TypeVar("T")
Took = Callable[[float], float]
"""Seconds of a step that begins at a moment."""

KEPT: Final = 8
"""Interpreters, and weights of versions, that are kept."""
MEGABYTE: Final = 1 << 20


@frozen
class Trained:
    """A commit: ``result`` without its difference, which is in ``body``; ``residual`` is what it leaves unsaid."""

    result: LocalResult
    body: bytes
    region: str
    residual: bytes | None
    shape_epoch: int


@frozen
class Begun:
    """What an artifact takes besides its batch; or why training cannot begin."""

    options: tuple[str, ...]
    reason: str = ""


@define(eq=False)
class _Shared:
    """An interpreter and, weakly, whose weights are in it."""

    step: TrainStep
    holder: weakref.ref[_Seat] | None = None


class _Seat:
    """A device's place at a shared interpreter. A step takes its device's time."""

    def __init__(self, shared: _Shared, base: Weights, stand: Stand | None, took: Took, clock: Clock) -> None:
        self._shared, self._anchor, self._took, self._clock = shared, base, took, clock
        step = shared.step
        self.batch, self.shapes = step.batch, step.shapes
        self.options: Mapping[str, tuple[int, ...]] = step.options
        self._aside = (base, None) if stand is None else self._parted(stand.states)

    def step(
        self,
        x: Array,
        y: NDArray[np.int32],
        sample_weight: Array,
        learning_rate: float,
        options: Mapping[str, float | Array],
    ) -> StepResult:
        try:
            return self._entered().step(x, y, sample_weight, learning_rate, options)
        finally:
            self._clock.now += self._took(self._clock.now)

    def loss(
        self, x: Array, y: NDArray[np.int32], sample_weight: Array, options: Mapping[str, float | Array]
    ) -> float:
        self._clock.now += self._took(self._clock.now)
        return self._entered().loss(x, y, sample_weight, options)

    def weights(self) -> Weights:
        return self._entered().weights()

    def states(self) -> Iterator[Array]:
        return self._entered().states()

    def change(self, new: Callable[[str, Array], Array]) -> None:
        self._entered().change(new)

    def _entered(self) -> TrainStep:
        """The interpreter, with this device's weights."""
        shared = self._shared
        holder = shared.holder() if shared.holder is not None else None
        if holder is not self:
            if holder is not None:
                holder._leave()
            weights, momentum = self._aside
            shared.step.load(weights, self._anchor, momentum)
            shared.holder = weakref.ref(self)
            self._aside = {}, None
        return shared.step

    def _leave(self) -> None:
        states = list(self._shared.step.states())
        count = len(self.shapes)
        momentum = dict(zip(self.shapes, states[count:], strict=True)) if self._shared.step.remembers else None
        self._aside = dict(zip(self.shapes, states[:count], strict=True)), momentum

    def _parted(self, states: Array) -> tuple[Weights, Weights | None]:
        weights, rest = parted(states, self.shapes)
        return weights, parted(rest, self.shapes)[0] if self._shared.step.remembers else None


class _Hollow:
    """Takes the time of a step and does nothing: for a past that is lived through once more."""

    def __init__(self, batch: int, options: tuple[str, ...], took: Took, clock: Clock) -> None:
        self.batch, self._took, self._clock = batch, took, clock
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.options: Mapping[str, tuple[int, ...]] = dict.fromkeys(options, (1,))

    def step(
        self,
        x: Array,
        y: NDArray[np.int32],
        sample_weight: Array,
        learning_rate: float,
        options: Mapping[str, float | Array],
    ) -> StepResult:
        self._clock.now += self._took(self._clock.now)
        return StepResult(0.0, 0.0, np.empty(0, np.float32), {})

    def loss(
        self, x: Array, y: NDArray[np.int32], sample_weight: Array, options: Mapping[str, float | Array]
    ) -> float:
        self._clock.now += self._took(self._clock.now)
        return 0.0

    def weights(self) -> Weights:
        return {}

    def states(self) -> Iterator[Array]:
        return iter(())

    def change(self, new: Callable[[str, Array], Array]) -> None:
        pass


class Bench:
    """Trains for all devices."""

    def __init__(self, attic: Attic) -> None:
        self._attic = attic
        self._steps: OrderedDict[str, _Shared] = OrderedDict()
        self._bases: OrderedDict[str, Base] = OrderedDict()
        self._lent: set[str] = set()
        self.updates = 0

    def begun(self, assignment: Assignment, dataset: Dataset, memory_mb: float) -> Begun:
        """Whether a board of ``memory_mb`` (0: enough) can train it at all."""
        try:
            step, base = self._step(assignment).step, self._base(assignment.weights.sha256)
            needed = _megabytes(step, base)
            if memory_mb and needed > memory_mb:
                raise MemoryError(f"a step needs {needed:.0f} MB beside the system, the board has {memory_mb:g} MB")
            if step.batch != assignment.plan.batch or dict(step.shapes) != base.region.shapes:
                raise Unfit("artifact, weights and plan do not go together")
            if tuple(step.input_shape) != dataset.input:
                raise Unfit(f"the artifact takes samples of shape {step.input_shape}, the data has {dataset.input}")
        except (*FAILURES, ShoalError) as error:
            return Begun((), str(error) or type(error).__name__)
        return Begun(tuple(name for name in step.options if name in PLANNED))

    def training(self, course: Course, dataset: Dataset, stand: Stand | None, took: Took) -> Training:
        """From ``stand`` or from the start, at the time of the course's clock."""
        assignment = course.assignment
        if assignment.id not in self._lent:
            self._lent.add(assignment.id)
            self._attic.lend(assignment.weights.sha256)
        shared, base = self._step(assignment), self._base(assignment.weights.sha256)
        seat = _Seat(shared, base.weights, stand, took, course.clock)
        kept = stand.base if stand is not None else None
        weights = base.weights if kept is None else parted(kept.copy(), seat.shapes)[0]
        return _training(seat, course, dataset, weights, stand)

    def hollow(
        self, course: Course, dataset: Dataset, stand: Stand | None, took: Took, options: tuple[str, ...]
    ) -> Training:
        """One that takes the same time, and comes to nothing."""
        return _training(_Hollow(course.plan.batch, options, took, course.clock), course, dataset, {}, stand)

    def read(self, fresh: Fresh, assignment: Assignment) -> Weights:
        """The weights of a fresh model; ProtocolError unless they are the part of the model that is trained."""
        try:
            base, new = self._base(assignment.weights.sha256), self._base(fresh.weights.sha256)
        except ShoalError as error:
            raise ProtocolError("it is not there any more") from error
        if (new.region_text, new.shape_epoch) != (base.region_text, base.shape_epoch):
            raise ProtocolError("it is not the part of the model that is being trained")
        return new.weights

    def encoded(self, result: LocalResult, assignment: Assignment, residual: bytes | None) -> Trained:
        """The commit as it travels."""
        base = self._base(assignment.weights.sha256)
        body, left = feedback.encode(result.difference, assignment.plan.coding, base.region, residual)
        self.updates += 1
        return Trained(evolve(result, difference={}), body, base.region_text, left, base.shape_epoch)

    def left(self, assignment: Assignment) -> None:
        """Nobody trains it any more."""
        if assignment.id in self._lent:
            self._lent.discard(assignment.id)
            self._attic.handed_back(assignment.weights.sha256)

    def _step(self, assignment: Assignment) -> _Shared:
        sha256 = assignment.artifact.sha256
        return _kept(self._steps, sha256, lambda: _Shared(TrainStep(self._attic.get(sha256))))

    def _base(self, sha256: str) -> Base:
        return _kept(self._bases, sha256, lambda: feedback.read_base(self._attic.get(sha256)))


def _training(step: Step, course: Course, dataset: Dataset, base: Weights, stand: Stand | None) -> Training:
    """No checkpoints but those of commits."""
    assignment, checkpoint = course.assignment, None
    if stand is not None:
        weights, own = course.file(stand.states), None if stand.base is None else course.file(stand.base)
        checkpoint = Checkpoint(assignment=assignment.id, position=stand.position, weights=weights, base=own)
    owned = checkpoint is not None and checkpoint.base is not None
    return Training(
        step,
        Start(assignment=assignment.id, version=assignment.version, base=base, owned=owned, checkpoint=checkpoint),
        dataset,
        course,
        checkpoint_every=np.inf,
        pace=1.0,
        clock=course.clock,
        sleep=course.clock.sleep,
    )


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
