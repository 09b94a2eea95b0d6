"""The coordinator's side of a simulation: messages become inputs of the live engine, its effects rows and answers.

What the steward does over MQTT and with fsyncs happens here at once and in memory; the engine, the strategies, the
ledger and the evaluation are the live ones. A new effect of the engine is one more case in :meth:`Desk._follow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen
from sqlalchemy.orm import Session

from coordinator.simulator.attic import Attic
from coordinator.store import ledger
from coordinator.store.ledger import Delivery, Ledger
from coordinator.strategies.base import DeviceView
from coordinator.training.evaluation import Evaluation
from coordinator.training.inputs import (
    Changed,
    CheckedIn,
    Closed,
    Deferred,
    Delivered,
    Evaluated,
    Input,
    Offered,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.live import LiveRun
from coordinator.training.runs import ENDED, receipt
from protocol.messages import Assignment, Blob, CheckIn, DeviceEvent, Message, Progress, Receipt, Retry, Update

HEARTBEAT: Final = 10.0
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
class Desk:
    """``groups`` names each device's group; ``due(now)`` says whether a version made now is to be measured."""

    run: LiveRun
    attic: Attic
    evaluation: Evaluation
    session: Session
    groups: dict[str, str]
    due: Callable[[float], bool]
    idle: dict[str, float] = field(factory=dict)
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
                self.idle.pop(device, None)
                view = DeviceView(device, self.groups[device], message.samples)
                self._handle(CheckedIn(view, message), answer)
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

    def _update(self, device: str, update: Update, body: bytes, answer: Answer) -> None:
        entry = ledger.entry(self.session, *update.key) if update.assignment not in self.run.engine.core.open else None
        if entry is not None:
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
        book = Ledger(self.session, self.run.id, self._now, HEARTBEAT)
        if isinstance(given, Evaluated):
            book.evaluated(given)
        versions: list[int] = []
        for effect in self.run.engine.handle(given, self._now):
            match effect:
                case Offered():
                    self._offer(effect, book, answer)
                case Deferred():
                    self._defer(effect, answer)
                case Settled():
                    self.run.released(effect.update.assignment)
                    book.settled(effect, (0, 0))
                    answer.settled += 1
                    answer.sends.append((effect.device, receipt(effect)))
                case Closed():
                    self.run.released(effect.assignment)
                    book.closed(effect)
                case Versioned():
                    book.versioned(effect)
                    versions.append(effect.version)
                case Changed():
                    book.changed(effect)
                    if effect.state in (*ENDED, "paused"):
                        answer.ended = f"{effect.state}: {effect.reason}"
        self.run.sweep()
        if versions and self.due(self._now):
            self._measure(answer, versions[-1])

    def _measure(self, answer: Answer, version: int) -> None:
        accuracy, loss = self.evaluation.measure(self.run.engine.core.weights)
        answer.points.append(Point(version, accuracy, loss))
        self._handle(Evaluated(version, accuracy, loss), answer)

    def _offer(self, offer: Offered, book: Ledger, answer: Answer) -> None:
        if offer.again:
            artifact, weights = ledger.delivery(self.session, offer.assignment)
            delivery = Delivery(artifact, self.attic.size(artifact), weights, self.attic.size(weights))
        else:
            delivery = self.run.delivery(offer)
            book.offered(offer, delivery)
        message = Assignment(
            id=offer.assignment,
            kind="train",
            run=self.run.id,
            check_in=offer.check_in,
            version=offer.version,
            plan=offer.plan,
            lease=max(0.0, offer.expires_at - self._now),
            artifact=Blob(sha256=delivery.artifact, size=delivery.artifact_size),
            weights=Blob(sha256=delivery.weights, size=delivery.weights_size),
        )
        answer.sends.append((offer.device, message))

    def _defer(self, effect: Deferred, answer: Answer) -> None:
        self.idle[effect.device] = self._now
        seconds = max(2.0, len(self.idle) / CHECK_INS) if effect.seconds is None else effect.seconds
        answer.sends.append((effect.device, Retry(check_in=effect.check_in, seconds=seconds, reason=effect.reason)))
