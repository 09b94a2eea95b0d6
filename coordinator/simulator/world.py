"""The event loop in virtual time: a heap of moments, the fleet, and the coordinator's desk in the middle."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Final

from attrs import define, field, frozen

from coordinator.simulator.account import Tally
from coordinator.simulator.bench import Begun, Bench, Trained
from coordinator.simulator.board import Board
from coordinator.simulator.course import Course, Stand
from coordinator.simulator.desk import Answer, Desk
from coordinator.simulator.record import Record
from coordinator.simulator.until import Until
from device_agent.trainer import LocalResult, Training, Unfit
from protocol.messages import Assignment, Fresh, Message
from protocol.weights import Weights

BEGIN: Final = 946_684_800.0
"""Virtual time begins at 2000-01-01 00:00 UTC."""
FINENESS: Final = 0.01
"""A version is measured when this share of the time gone by has passed since the last one that was."""

Call = Callable[[float], None]


@frozen
class Mark:
    """A measured version and what the whole fleet had spent by then: seconds since the beginning, bytes, seconds of
    training, joules, updates settled."""

    version: int
    seconds: float
    accuracy: float
    loss: float
    bytes_up: int
    bytes_down: int
    training: float
    joules: float
    updates: int


@define
class Pace:
    """Which versions are measured."""

    fineness: float
    measured: float = BEGIN

    def due(self, now: float) -> bool:
        if now - self.measured < self.fineness * (now - BEGIN):
            return False
        self.measured = now
        return True


@define
class World:
    """``boards`` are started in order; ``desk`` is the coordinator's side. Both hear and speak in virtual time."""

    desk: Desk
    bench: Bench
    until: Until
    record: Record
    boards: dict[str, Board] = field(factory=dict)
    curve: list[Mark] = field(factory=list)
    now: float = BEGIN
    ended: str = ""
    updates: int = 0
    version: int = 0
    _heap: list[tuple[float, int, Call]] = field(factory=list)
    _numbers: Iterable[int] = field(factory=count)
    _deadline: float = math.inf
    _woken: float = math.inf
    spent: Tally = field(factory=Tally)
    steps: int = 0

    @property
    def remembering(self) -> bool:
        return self.record.remembering

    @property
    def gone(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now - BEGIN

    def begin(self) -> None:
        """The run starts and every board is switched on."""
        self._take(self.record.answer(partial(self.desk.begin, BEGIN)), BEGIN)
        for board in self.boards.values():
            board.start(BEGIN)

    def step(self) -> bool:
        """One event; False when the simulation is over."""
        if self.ended:
            return False
        if not self._heap:
            self.ended = "nothing more can happen: every device waits for ever"
            return False
        horizon = BEGIN + self.until.seconds
        if self._heap[0][0] >= horizon:
            self.now = horizon
            self.ended = self._met()
            return False
        self.steps += 1
        self.now, _, call = heapq.heappop(self._heap)
        call(self.now)
        return True

    # -- what boards need ----------------------------------------------------------------------------------------

    def at(self, time: float, call: Call) -> None:
        heapq.heappush(self._heap, (time, next(iter(self._numbers)), call))

    def hear(self, board: Board, message: Message, body: bytes, now: float) -> None:
        answer = self.record.answer(partial(self.desk.hear, board.id, message, body, now))
        self._take(answer, now)

    def course(self, board: Board, assignment: Assignment, now: float) -> Course:
        dataset, memory = board.dataset, board.group.memory_mb
        begun = self.record.begun(lambda: self.bench.begun(assignment, dataset, memory))
        place = _Place(self, board, assignment, board.speed.assignment(), begun)
        return Course(assignment, now, board.spool.stand, place)

    def committed(self, board: Board, course: Course, result: LocalResult) -> Trained:
        key = f"{course.assignment.id}/{result.commit}"
        return self.record.trained(
            key, lambda: self.bench.encoded(result, course.assignment, board.spool.residual)
        )

    # -- what the coordinator says -------------------------------------------------------------------------------

    def _take(self, answer: Answer, now: float) -> None:
        self.updates += answer.settled
        self.version = answer.version
        for point in answer.points:
            self._mark(point.version, point.accuracy, point.loss, now)
        for device, message in answer.sends:
            self.boards[device].receive(message, now)
        self.ended = self.ended or answer.ended or (self._met() if answer.points or answer.settled else "")
        self._wake(answer.deadline, now)

    def _mark(self, version: int, accuracy: float, loss: float, now: float) -> None:
        spent = self.spent
        mark = Mark(
            version, now - BEGIN, accuracy, loss, spent.bytes_up, spent.bytes_down, spent.training, spent.joules,
            self.updates,
        )  # fmt: skip
        self.curve.append(mark)

    def _met(self) -> str:
        return self.until.met(self.gone, self.version, self.updates, [mark.accuracy for mark in self.curve[-3:]])

    def _wake(self, deadline: float | None, now: float) -> None:
        """Have the desk ticked at its deadline; earlier wishes that are overtaken find nothing due."""
        self._deadline = math.inf if deadline is None else max(deadline, now)
        if self._deadline < self._woken:
            self._woken = self._deadline
            self.at(self._woken, self._tick)

    def _tick(self, now: float) -> None:
        if now != self._woken:
            return
        self._woken = math.inf
        if now < self._deadline:
            self._wake(self._deadline, now)
            return
        self._take(self.record.answer(partial(self.desk.tick, now)), now)


@frozen(eq=False)
class _Place:
    """Where a board trains one assignment, ``factor`` times as long as its board usually takes."""

    world: World
    board: Board
    assignment: Assignment
    factor: float
    begun: Begun

    def training(self, course: Course, stand: Stand | None) -> Training:
        if self.begun.reason:
            raise Unfit(self.begun.reason)
        plan, speed = self.assignment.plan, self.board.speed

        def took(at: float) -> float:
            return self.factor * speed.step(plan.width, plan.batch, at)

        bench, dataset = self.world.bench, self.board.dataset
        if self.world.remembering:
            return bench.hollow(course, dataset, stand, took, self.begun.options)
        return bench.training(course, dataset, stand, took)

    def read(self, fresh: Fresh) -> Weights:
        return {} if self.world.remembering else self.world.bench.read(fresh, self.assignment)

    def left(self, course: Course) -> None:
        self.world.bench.left(course.assignment)

    def fate(self, act: str, make: Callable[[], str]) -> str:
        return self.world.record.fate(act, make)
