"""One assignment in training, in virtual time: the device's own training, batch by batch.

What a device is told (a changed plan, a fresh model, the end) counts from the next batch on. Most assignments are told
nothing: one with a single commit is trained in one go, ahead of time, and once more if something comes after all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import numpy as np
from attrs import frozen

from device_agent.conversation import Asked, Event, Failed, FreshFailed, Merged, Refused
from device_agent.position import Checkpoint, File, Position
from device_agent.tally import Diverged
from device_agent.trainer import LocalResult, Training, Unfit
from protocol.errors import ProtocolError
from protocol.messages import Assignment, Fresh, Merge, Plan
from protocol.weights import Array, Weights

FAILURES: Final = (Unfit, Diverged, ProtocolError, ValueError, RuntimeError, MemoryError)
"""What ends an assignment, and nothing else."""


class Clock:
    """A device's time; sleeping lets it pass."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@frozen(eq=False)
class Stand:
    """Where training stands, tensors included: weights and momentum [n], and the effective base [m], None while that
    is what the assignment came with."""

    position: Position
    states: Array
    base: Array | None


@frozen(eq=False)
class Committed:
    """A commit is made; training goes on from ``checkpoint`` and ``stand``, None after the last one."""

    result: LocalResult
    checkpoint: Checkpoint | None
    stand: Stand | None


class Workplace(Protocol):
    """Where the training of a course is done."""

    def training(self, course: Course, stand: Stand | None) -> Training:
        """A training that has not begun, or goes on from ``stand``."""

    def read(self, fresh: Fresh) -> Weights:
        """The weights of a fresh model; ProtocolError if they are of no use."""

    def left(self, course: Course) -> None:
        """Nothing of it is needed any more."""

    def fate(self, act: str, make: Callable[[], str]) -> str:
        """What ``make`` returns: why an act failed, empty if it did not."""


class Course:
    """The device's desk for one assignment, from moment ``now`` on."""

    def __init__(self, assignment: Assignment, now: float, stand: Stand | None, place: Workplace) -> None:
        self.assignment = assignment
        self.plan: Plan = assignment.plan
        self.allowed = 0
        self.fresh: Fresh | None = None
        self.stopped = False
        self.clock = Clock(now)
        self.turn = 0
        """Counts how often what lay ahead was given up."""
        self.over = False
        self._place = place
        self._began, self._start = now, stand
        self._stand = stand
        self._trained_by = self.plan
        self._told: list[Event | Committed] = []
        self._files: dict[int, Array] = {}
        self._batches = 0
        self._ahead = False
        self._training: Training | None = None

    def begin(self) -> None:
        """Train the first batch, or, when nothing but its one commit is to come, all of them."""
        if not self._open():
            return
        plan = self.plan
        self._ahead = plan.commits == 1 and plan.seconds is None and plan.refresh is None and self._start is None
        self.step()
        while self._ahead and not self.over and self._batches < plan.steps:
            self.settle()
            self.step()

    def step(self) -> None:
        """Train a batch by what the device knows now; the clock moves on to its end."""
        training = self._training
        assert training is not None
        self._trained_by = self.plan
        self._batches += 1
        self._try("step", training.step)

    def settle(self) -> list[Event | Committed]:
        """The last batch is over: what follows from it."""
        training = self._training
        if not self.over and training is not None:

            def settle() -> None:
                self.over = training.settle()

            self._try("settle", settle)
        told, self._told = self._told, []
        return told

    def amend(self, plan: Plan, now: float) -> None:
        self._come_back(now)
        self.plan = plan

    def take(self, fresh: Fresh, now: float) -> None:
        self._come_back(now)
        self.fresh = fresh

    def stand(self) -> Stand | None:
        """Where it stands now; None if there is nothing to go on from."""
        if self._training is None or self.over:
            return None
        self._training.keep()
        return self._stand

    def resume(self, stand: Stand | None) -> None:
        """Go on from ``stand`` with another training of the same plans."""
        if stand is None:
            return
        newest, self.plan = self.plan, self._trained_by
        self._stand = stand
        self._training = self._place.training(self, stand)
        self.plan = newest

    def close(self) -> None:
        """Nothing more comes of it."""
        self.over = True
        self._training = None
        self._place.left(self)

    # -- what training wants of its desk -------------------------------------------------------------------------

    def read(self, fresh: Fresh) -> Weights | None:
        found: list[Weights] = []

        def read() -> str:
            try:
                found.append(self._place.read(fresh))
            except ProtocolError as error:
                return str(error)
            return ""

        reason = self._place.fate(f"{self.assignment.id} read {fresh.version}", read)
        if not reason:
            return found[0]
        self.fresh = None
        self._told.append(FreshFailed(self.assignment.id, fresh.version, reason))
        return None

    def write(self, tensors: Iterable[Array]) -> File:
        values = [np.ravel(tensor) for tensor in tensors]
        return self.file(np.concatenate(values) if values else np.empty(0, np.float32))

    def file(self, values: Array) -> File:
        """A file of a checkpoint, in memory."""
        number = max(self._files, default=0) + 1
        self._files[number] = values
        return File(number=number, size=values.nbytes, sha256="")

    def progressed(self, step: int, loss: float | None) -> None:
        pass

    def asked(self, commit: int, step: int, version: int) -> None:
        self._told.append(Asked(self.assignment.id, commit, step, version))

    def merged(self, merge: Merge) -> None:
        self._told.append(Merged(self.assignment.id, merge))

    def refused(self, plan: Plan, kept: Plan, reason: str) -> None:
        self.plan = self._trained_by = kept
        self._told.append(Refused(self.assignment.id, plan, kept, reason))

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        base = None if checkpoint.base is None else self._files[checkpoint.base.number]
        self._stand = Stand(checkpoint.position, self._files[checkpoint.weights.number], base)
        named = {file.number for file in checkpoint.files}
        self._files = {number: values for number, values in self._files.items() if number in named}

    def committed(self, result: LocalResult, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.checkpointed(checkpoint)
        self._told.append(Committed(result, checkpoint, self._stand if checkpoint is not None else None))

    # -- ahead of time -------------------------------------------------------------------------------------------

    def _come_back(self, now: float) -> None:
        """Give up what was trained ahead: something has come by ``now`` that counts from the next batch on."""
        if not self._ahead:
            return
        self.turn += 1
        self.clock.now = self._began
        self._batches, self._ahead, self.over = 0, False, False
        self._told.clear()
        if self._open():
            self.step()
            while not self.over and self.clock.now < now:
                self.settle()
                self.step()

    def _open(self) -> bool:
        def open_() -> None:
            self._training = self._place.training(self, self._start)

        return self._try("begin", open_)

    def _try(self, act: str, do: Callable[[], None]) -> bool:
        """Whether it worked; otherwise the assignment has failed."""

        def make() -> str:
            try:
                do()
            except FAILURES as error:
                return str(error) or type(error).__name__
            return ""

        reason = self._place.fate(f"{self.assignment.id} {act} {self._batches}", make)
        if reason:
            self.over = True
            self._told.append(Failed(self.assignment.id, "training-failed", reason))
        return not reason
