"""What a board needs of the world around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from coordinator.simulator.account import Tally
from coordinator.simulator.bench import Trained
from coordinator.simulator.course import Course
from device_agent.trainer import LocalResult
from protocol.messages import Assignment, Message

if TYPE_CHECKING:
    from coordinator.simulator.board import Board


class Fleet(Protocol):
    """The world, as boards see it."""

    @property
    def remembering(self) -> bool:
        """Whether the past is lived through once more."""

    def at(self, time: float, call: Callable[[float], None]) -> None:
        """Have ``call`` made at ``time``."""

    def hear(self, board: Board, message: Message, body: bytes, now: float) -> None:
        """The coordinator gets a message of ``board``."""

    def course(self, board: Board, assignment: Assignment, now: float) -> Course:
        """Training of ``board`` that begins now."""

    def committed(self, board: Board, course: Course, result: LocalResult) -> Trained:
        """What a commit comes to that is made now."""

    @property
    def spent(self) -> Tally:
        """Of all boards."""
