"""A board's training: the course in hand, batch after batch, and what it tells the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.simulator.course import Committed, Course, Stand
from coordinator.simulator.fleet import Fleet
from device_agent.conversation import Allow, Amended, Progressed, TakeFresh, Train
from device_agent.conversation import Trained as Ready
from protocol.messages import Assignment

if TYPE_CHECKING:
    from coordinator.simulator.board import Board


class Practice:
    """``course`` is what is being trained; ``stand`` is where it stood at the commit made last."""

    def __init__(self, board: Board, fleet: Fleet) -> None:
        self.course: Course | None = None
        self.stand: Stand | None = None
        self._board, self._fleet = board, fleet
        self._until = 0.0  # training is accounted for up to here

    def told(self, what: Train | Allow | Amended | TakeFresh, now: float) -> None:
        """What the session wants done."""
        if isinstance(what, Train):
            self._begin(what.assignment, now)
            return
        course = self._course_of(what.assignment)
        if course is None:
            return
        turn = course.turn
        match what:
            case Allow(_, commit):
                course.allowed = commit
            case Amended(_, plan):
                course.amend(plan, now)
            case TakeFresh(_, fresh):
                course.take(fresh, now)
        if course.turn != turn:  # it was ahead of what has come
            self._await(course)

    def stop(self, assignment: str, now: float) -> None:
        if self._course_of(assignment) is not None:
            self.leave(now)

    def leave(self, now: float) -> None:
        """No more training, for now."""
        course, self.course = self.course, None
        if course is not None:
            self._board.account.work(now, -1)
            self._board.spend(now - self._until, 0.0, now)
            course.close()

    def _course_of(self, assignment: str) -> Course | None:
        return self.course if self.course is not None and self.course.assignment.id == assignment else None

    def _begin(self, assignment: Assignment, now: float) -> None:
        board = self._board
        board.account.work(now, 1)
        self._until = now
        stand = board.spool.stand
        course = self.course = self._fleet.course(board, assignment, now)
        board.handle(Progressed(assignment.id, 0 if stand is None else stand.position.step, None), now)
        course.begin()
        self._await(course)

    def _await(self, course: Course) -> None:
        """Look again when the batch is over, unless the course has turned by then."""
        turn = course.turn

        def over(now: float) -> None:
            if course is self.course and course.turn == turn:
                self._batch_over(course, now)

        self._fleet.at(course.clock.now, over)

    def _batch_over(self, course: Course, now: float) -> None:
        seconds, self._until = now - self._until, now
        self._board.account.until(now)
        self._board.spend(seconds, 0.0, now)
        for told in course.settle():
            if course is not self.course:
                return  # nothing more is wanted of it
            self._board.handle(self._ready(course, told) if isinstance(told, Committed) else told, now)
        if course is not self.course:
            return
        if course.over:
            self.leave(now)
        else:
            course.step()
            self._await(course)

    def _ready(self, course: Course, made: Committed) -> Ready:
        trained = self._fleet.committed(self._board, course, made.result)
        self.stand = made.stand
        parts = (trained.shape_epoch, trained.body, trained.region, trained.residual)
        return Ready(course.assignment.id, trained.result, *parts, made.checkpoint)
