"""The coordinator's side of a simulation: messages become inputs of the live engine, its effects rows and answers.

What the steward does over MQTT and with fsyncs happens here at once and in memory; the engine, the strategies, the
ledger, the consequences and the evaluation are the live ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store import ledger
from coordinator.store.ledger import Ledger
from coordinator.strategies.base import DeviceView
from coordinator.training import computations
from coordinator.training.consequences import Consequences
from coordinator.training.evaluation import Evaluation
from coordinator.training.inputs import (
    Answered,
    Asked,
    Changed,
    CheckedIn,
    Deferred,
    Delivered,
    Evaluated,
    Input,
    Quarantined,
    Requested,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.live import LiveRun
from coordinator.training.runs import ENDED
from coordinator.training.turn import Turn
from protocol.messages import Ask, CheckIn, DeviceEvent, Message, Progress, Receipt, Retry, Update

HEARTBEAT: Final = 10.0
QUARANTINE: Final = 600.0
"""Seconds until a device in quarantine asks again."""
CHECK_INS: Final = 50
"""Check-ins per second that devices without work cause together, as in a live fleet."""


@frozen
class Point:
    """A measured version."""

    version: int
    accuracy: float
    loss: float


@define
class Answer:
    """What the coordinator says to what it heard: messages to devices, when it wants to be asked for leases and wakes
    (seconds since 1970), whether the run has ended and why, what it measured and how many updates it has settled."""

    sends: list[tuple[str, Message]] = field(factory=list)
    deadline: float | None = None
    ended: str = ""
    points: list[Point] = field(factory=list)
    version: int = 0
    settled: int = 0


@define
class _Spoken(Turn):
    """A turn whose messages stay what they are: nobody has to read them from bytes."""

    said: list[tuple[str, Message]] = field(factory=list)

    def send(self, device: str, leaf: str, message: Message) -> None:
        self.said.append((device, message))


@define
class Desk:
    """``groups`` names each device's group; ``due(now)`` says whether a version made now is to be measured."""

    run: LiveRun
    evaluation: Evaluation
    session: Session
    groups: dict[str, str]
    due: Callable[[float], bool]
    idle: dict[str, float] = field(factory=dict)
    quarantined: dict[str, str] = field(factory=dict)
    _now: float = 0.0

    def begin(self, now: float) -> Answer:
        """The run starts: version 0 is measured."""
        answer = Answer()
        self._now = now
        self._measure(answer, 0)
        return self._closed(answer)

    def hear(self, device: str, message: Message, body: bytes, now: float) -> Answer:
        """A message is here; an update with its complete ``body``."""
        answer = Answer()
        self._now = now
        match message:
            case CheckIn():
                self._check_in(device, message, answer)
            case Ask():
                if message.assignment in self.run.engine.core.open:  # any other question is late
                    self._handle(Asked(device, message), answer)
            case Update():
                self._update(device, message, body, answer)
            case Progress():
                ledger.take(self.session, now, device, message.assignment)
            case DeviceEvent():
                kind = f"device-{message.kind}"[:40]
                ledger.note(self.session, now, kind, message.text, run=self.run.id, device=device)
        return self._closed(answer)

    def tick(self, now: float) -> Answer:
        """The deadline has come."""
        answer = Answer()
        self._now = now
        self._handle(Ticked(), answer)
        return self._closed(answer)

    def tell(self, given: Input, now: float) -> Answer:
        """Anything else an engine can be told, e.g. an operator's command."""
        answer = Answer()
        self._now = now
        self._handle(given, answer)
        return self._closed(answer)

    def _closed(self, answer: Answer) -> Answer:
        answer.deadline, answer.version = self.run.engine.deadline, self.run.engine.core.version
        return answer

    def _check_in(self, device: str, check_in: CheckIn, answer: Answer) -> None:
        if (reason := self.quarantined.get(device)) is not None:
            text = f"the device is in quarantine: {reason}"[:2000]
            answer.sends.append((device, Retry(check_in=check_in.id, seconds=QUARANTINE, reason=text)))
            return
        self.idle.pop(device, None)
        view = DeviceView(device, self.groups[device], check_in.samples)
        self._handle(CheckedIn(view, check_in), answer)

    def _update(self, device: str, update: Update, body: bytes, answer: Answer) -> None:
        work = self.run.engine.core.open.get(update.assignment)
        known = work is None or update.commit <= work.commits
        if known and (entry := ledger.known(self.session, *update.key)[1]) is not None:
            state = "stored" if entry.outcome == "applied" else entry.outcome
            again = Receipt(
                assignment=update.assignment,
                commit=update.commit,
                state=state,
                sha256=entry.sha256,
                missing=(),
                reason=entry.reason,
            )
            answer.sends.append((device, again))
            return
        self._handle(Delivered(device, update, body), answer)

    def _handle(self, given: Input, answer: Answer) -> None:
        turn = _Spoken(self.session, self._now)
        book = Ledger(self.session, self.run.id, self._now, HEARTBEAT)
        if isinstance(given, Evaluated):
            book.evaluated(given)
        pace = max(2.0, len(self.idle) / CHECK_INS)
        runtime = given.check_in.runtime if isinstance(given, CheckedIn) else ""
        follow = Consequences(turn, self.run, book, pace, runtime, (0, 0), None)
        versions: list[int] = []
        questions: list[int] = []
        for effect in self.run.engine.handle(given, self._now):
            follow.of(effect)
            match effect:
                case Versioned():
                    versions.append(effect.version)
                case Requested():
                    questions.append(effect.number)
                case Settled():
                    answer.settled += 1
                case Deferred():
                    self.idle[effect.device] = self._now
                case Quarantined():
                    self.quarantined[effect.device] = effect.reason
                case Changed() if effect.state in (*ENDED, "paused"):
                    answer.ended = f"{effect.state}: {effect.reason}"
        answer.sends += turn.said
        for step in turn.after:
            step()
        self.run.sweep()
        for number in questions:
            self._handle(Answered(number, self._found(number)), answer)
        if versions and self.due(self._now):
            self._measure(answer, versions[-1])

    def _measure(self, answer: Answer, version: int) -> None:
        weights = self.run.engine.core.weights
        accuracy, loss = self.evaluation.measure(weights)
        answer.points.append(Point(version, accuracy, loss))
        control = self.evaluation.control(weights) if self.evaluation.has_control else (None, None)
        self._handle(Evaluated(version, accuracy, loss, *control), answer)

    def _found(self, number: int) -> dict[str, float]:
        """A member's question, answered at once: computing takes no virtual time."""
        core = self.run.engine.core
        try:
            return computations.found(core.questions[number], self.evaluation, core.version, core.weights)
        except (ShoalError, ValueError, ArithmeticError, KeyError):
            return {"failed": 1.0}
