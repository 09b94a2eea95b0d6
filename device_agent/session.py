"""The device's side of the conversation with the coordinator, as a state machine. Sans-IO.

No clock, socket, file or chance of its own: :meth:`Session.handle` takes what happened and the time, and
returns what is to be done, in order. What must survive a power cut (:class:`Hold`, :class:`Drop`,
:class:`Commit`, :class:`Settle`, :class:`Keep`, :class:`Discard`) is on disk before the outputs after it.

| what happened                    | what follows                                                            |
|----------------------------------|-------------------------------------------------------------------------|
| connected                        | tell kept events; announce unacknowledged updates, one at a time; check |
|                                  | in unless at work, naming the assignment held since before a restart    |
| no answer to a check-in for 10 s | check in again under a new id (backing off to 60 s)                     |
| assignment, answers our check-in | hold it, fetch its blobs; another one held before is dropped            |
| assignment already finished here | its update is announced again; check in later                           |
| retry, answers our check-in      | check in again after that many seconds                                  |
| an answer to another check-in    | nothing                                                                 |
| both blobs fetched               | train                                                                   |
| fetching or training failed      | drop the assignment, tell why, check in later (5 s, backing off to 300) |
| trained                          | commit to the spool, announce the update, check in at once              |
| receipt, final                   | forget the update; unless stored, it goes back into the residual        |
| coordinator says offline         | nothing is sent for about a minute, or until it says online             |
| coordinator says it is back      | within 2 s announce again, and repeat a check-in without answer         |
| told to pause                    | no check-in until told to resume; what is in hand is finished           |
| heartbeat is due                 | beat                                                                    |
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, evolve

from protocol.errors import ProtocolError
from protocol.messages import (
    Assignment,
    CheckIn,
    DeviceEvent,
    Lineage,
    Message,
    Progress,
    Receipt,
    Retry,
    Status,
    Timings,
    Update,
)
from protocol.transfer import described
from protocol.wire import encode

from .conversation import (
    Acknowledged,
    Beat,
    Commit,
    Connected,
    Discard,
    Disconnected,
    Drop,
    Event,
    Failed,
    Fetch,
    Fetched,
    Hold,
    Keep,
    Noticed,
    Output,
    Progressed,
    Publish,
    Received,
    Saved,
    Settle,
    Steered,
    Tick,
    Train,
    Trained,
)
from .outbox import Chance, Outbox, Piece, Tag

ANSWER, ANSWER_LIMIT = 10.0, 60.0  # seconds to wait for the answer to a check-in
SETBACK, SETBACK_LIMIT = 5.0, 300.0  # seconds before the next check-in after a failure
RETURN = 2.0  # seconds over which the fleet spreads when the coordinator comes back
PROGRESS = 2.0  # seconds between two progress messages
WAITING = 4  # updates without a receipt; no new work while there are more
EVENTS = 50  # events kept while offline; the oldest give way
FINISHED = 64  # assignments remembered as finished
QUIET = 60.0  # seconds that an offline coordinator is left alone
RETRY_LIMIT = 86400.0  # seconds


@define
class _Work:
    """The assignment in hand. ``state`` is held (not begun in this process), fetching or training."""

    assignment: Assignment
    state: str
    step: int | None = None
    told: float = -math.inf
    download: float = 0.0
    bytes_down: int = 0


class Session:
    """``offer``: the check-in to send, but for its id, held and unsent; ids are ``<boot>.<counter>``."""

    def __init__(
        self, offer: CheckIn, boot: str, heartbeat: float, rng: Chance, saved: Saved, now: float
    ) -> None:
        self._offer = offer
        self._boot = boot
        self._heartbeat = heartbeat
        self._rng = rng
        self._work = _Work(saved.held, "held") if saved.held else None
        self._outbox = Outbox(rng, saved.updates)
        self._events = dict(saved.events)
        self._event_number = max(saved.events, default=0)
        self._finished = deque(saved.finished, maxlen=FINISHED)
        self._connected = False
        self._paused = False
        self._quiet_until = -math.inf  # the coordinator has said that it is offline
        self._counter = 0
        self._pending: str | None = None  # the check-in that waits for its answer
        self._check_in_at = now
        self._answer = ANSWER
        self._setbacks = 0
        self._beat_at = now
        self._first_assignment: float | None = None
        self._out: list[Output] = []

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def state(self) -> str:
        return self._work.state if self._work else "paused" if self._paused else "idle"

    @property
    def assignment(self) -> Assignment | None:
        return self._work.assignment if self._work else None

    @property
    def waiting(self) -> int:
        """Updates without a final receipt."""
        return len(self._outbox)

    @property
    def wake_at(self) -> float:
        """When a :class:`Tick` is due at the latest; infinite while there is no connection."""
        if not self._connected:
            return math.inf
        check_in = self._check_in_at if self._wants_work else math.inf
        talk = min(check_in, self._outbox.wake_at if self._outbox.reachable else -math.inf)
        return min(self._beat_at, max(talk, self._quiet_until))

    def handle(self, event: Event, now: float) -> list[Output]:
        """What is to be done about ``event``, in this order."""
        self._out = []
        _HANDLERS[type(event)](self, event, now)
        return self._out

    # The link.

    def _connected_now(self, _: Connected, now: float) -> None:
        self._connected = True
        self._quiet_until = -math.inf
        self._forget_check_in(now)
        for number, event in self._events.items():
            self._publish("event", event, number)
        self._beat_at = now
        self._tick(Tick(), now)

    def _disconnected(self, _: Disconnected, now: float) -> None:
        self._connected = False
        self._outbox.close()

    def _acknowledged(self, event: Acknowledged, now: float) -> None:
        if isinstance(event.tag, Tag):
            self._pieces(self._outbox.acknowledged(event.tag, now))
        elif self._events.pop(event.tag, None) is not None:
            self._out.append(Discard(event.tag))

    def _received(self, event: Received, now: float) -> None:
        match event.message:
            case Assignment() as assignment:
                self._assigned(assignment, now)
            case Retry() as retry:
                self._told_to_wait(retry, now)
            case Receipt() as receipt:
                self._receipt(receipt, now)
            case Status() as status:
                self._coordinator(status, event.retained, now)

    def _coordinator(self, status: Status, retained: bool, now: float) -> None:
        if status.state == "online" and retained:
            return  # what we assume anyway
        # Offline, but not for ever: the word may be that of a connection long gone. Back online, it may have
        # missed what we said, and the whole fleet is about to repeat itself.
        quiet = self._jittered(QUIET) if status.state == "offline" else self._rng.uniform(0, RETURN)
        self._quiet_until = now + quiet
        self._outbox.close()
        self._forget_check_in(now)

    def _forget_check_in(self, now: float) -> None:
        """Its answer cannot come any more: ask again as soon as possible."""
        if self._pending is not None:
            self._rest(now, 0)

    # Work.

    @property
    def _wants_work(self) -> bool:
        return not self._paused and (self._work is None or self._work.state == "held") and len(self._outbox) < WAITING

    def _check_in(self, now: float) -> None:
        self._counter += 1
        self._pending = f"{self._boot}.{self._counter}"
        self._check_in_at = now + self._jittered(self._answer)
        self._answer = min(2 * self._answer, ANSWER_LIMIT)
        held = self._work.assignment.id if self._work else None
        offer = evolve(self._offer, id=self._pending, held=held, unsent=self._outbox.assignments)
        self._publish("check-in", offer)

    def _steered(self, event: Steered, now: float) -> None:
        self._paused = event.paused
        self._tick(Tick(), now)

    def _told_to_wait(self, retry: Retry, now: float) -> None:
        if retry.check_in == self._pending:
            self._rest(now, min(retry.seconds, RETRY_LIMIT))

    def _rest(self, now: float, seconds: float) -> None:
        self._pending, self._answer = None, ANSWER
        self._check_in_at = now + seconds

    def _assigned(self, assignment: Assignment, now: float) -> None:
        if assignment.check_in != self._pending:
            return
        if assignment.id in self._outbox.assignments or assignment.id in self._finished:
            # Training it again could end in other bytes under the same key.
            self._rest(now, self._jittered(SETBACK))
            self._pieces(self._outbox.open(now))
            return
        if self._work is not None and self._work.assignment.id != assignment.id:
            held = self._work.assignment.id
            self._tell(
                "assignment-dropped", f"assignment {held} was held since a restart, but other work was given"
            )
        if self._first_assignment is None:
            self._first_assignment = now
        self._pending, self._answer = None, ANSWER
        self._work = _Work(assignment, "fetching")
        self._out += [Hold(assignment), Fetch(assignment)]

    def _fetched(self, event: Fetched, now: float) -> None:
        work = self._working_on(event.assignment, "fetching")
        if work is None:
            return
        work.state, work.download, work.bytes_down = "training", event.seconds, event.size
        self._out.append(Train(work.assignment))

    def _progressed(self, event: Progressed, now: float) -> None:
        work = self._working_on(event.assignment, "training")
        if work is None:
            return
        work.step = event.step
        if event.step == 0 or now - work.told >= PROGRESS:
            work.told = now
            self._publish("progress", Progress(assignment=event.assignment, step=event.step, loss=event.loss))

    def _failed(self, event: Failed, now: float) -> None:
        if self._work is None or self._work.assignment.id != event.assignment:
            return
        self._work = None
        self._out.append(Drop())
        self._tell(event.kind, f"assignment {event.assignment}: {event.reason}"[:2000])
        wait = min(SETBACK * 2**self._setbacks, SETBACK_LIMIT)
        self._setbacks = min(self._setbacks + 1, 10)
        self._rest(now, self._jittered(wait))

    def _trained(self, event: Trained, now: float) -> None:
        work = self._working_on(event.assignment, "training")
        if work is None:
            return
        try:
            update = self._update(work, event)
        except ProtocolError as error:
            self._failed(Failed(event.assignment, "training-failed", str(error)), now)
            return
        self._work = None
        self._setbacks = 0
        self._finished.append(event.assignment)
        self._out.append(Commit(update, event.body, event.region, event.residual))
        self._pieces(self._outbox.add(update, event.body, now))
        self._check_in_at = now
        self._tick(Tick(), now)

    def _update(self, work: _Work, event: Trained) -> Update:
        assignment, result = work.assignment, event.result
        update = Update(
            assignment=assignment.id,
            commit=1,
            run=assignment.run,
            lineage=Lineage(version=assignment.version, shape_epoch=event.shape_epoch),
            samples=result.samples,
            steps=result.steps,
            loss=result.loss,
            accuracy=result.accuracy,
            squared_gradient=result.squared_gradient,
            squared_gradient_peak=result.squared_gradient_peak,
            timings=Timings(download=work.download, train=result.seconds, upload=self._outbox.last_upload),
            bytes_down=work.bytes_down,
            coding=assignment.plan.coding,
            size=len(event.body),
            sha256="0" * 64,
            chunk=0,
        )
        update = described(update, event.body, self._outbox.goodput)
        encode(update)  # too long a message is found out now, not after it was committed
        return update

    def _working_on(self, assignment: str, state: str) -> _Work | None:
        work = self._work
        return work if work and work.assignment.id == assignment and work.state == state else None

    # Updates and events.

    def _receipt(self, receipt: Receipt, now: float) -> None:
        update, pieces = self._outbox.receipt(receipt, now)
        if update is not None:
            self._out.append(Settle(update, give_back=receipt.state != "stored"))
            if receipt.state == "stored" and receipt.sha256 != update.sha256:
                self._tell(
                    "update-replaced", f"the coordinator has other bytes for assignment {update.assignment}"
                )
        self._pieces(pieces)
        self._tick(Tick(), now)

    def _noticed(self, event: Noticed, now: float) -> None:
        self._tell(event.event.kind, event.event.text)

    def _tell(self, kind: str, text: str) -> None:
        if len(self._events) >= EVENTS:
            oldest = min(self._events)
            del self._events[oldest]
            self._out.append(Discard(oldest))
        self._event_number += 1
        event = DeviceEvent(kind=kind, text=text)
        self._events[self._event_number] = event
        self._out.append(Keep(self._event_number, event))
        self._publish("event", event, self._event_number)

    # Time.

    def _tick(self, _: Tick, now: float) -> None:
        if not self._connected:
            return
        if now >= self._quiet_until:
            self._pieces(self._outbox.tick(now) if self._outbox.reachable else self._outbox.open(now))
            if self._wants_work and now >= self._check_in_at:
                self._check_in(now)
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat
            self._out.append(self._beat(now))

    def _beat(self, now: float) -> Beat:
        work = self._work
        since = 0.0 if self._first_assignment is None else now - self._first_assignment
        return Beat(
            self.state,
            work.assignment.id if work else None,
            work.step if work else None,
            self._outbox.size,
            since,
        )

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.75, 1.25)

    def _publish(self, leaf: str, message: Message, tag: int | None = None) -> None:
        if self._connected:
            self._out.append(Publish(leaf, encode(message), tag))

    def _pieces(self, pieces: list[Piece]) -> None:
        self._out += [Publish(piece.leaf, piece.payload, piece.tag) for piece in pieces]


_HANDLERS: dict[type, Callable[[Session, Any, float], None]] = {
    Connected: Session._connected_now,
    Disconnected: Session._disconnected,
    Received: Session._received,
    Acknowledged: Session._acknowledged,
    Fetched: Session._fetched,
    Failed: Session._failed,
    Progressed: Session._progressed,
    Trained: Session._trained,
    Noticed: Session._noticed,
    Steered: Session._steered,
    Tick: Session._tick,
}
