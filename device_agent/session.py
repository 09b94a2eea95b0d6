"""The device's side of the conversation with the coordinator, as a state machine. Sans-IO.

No clock, socket, file or chance of its own: :meth:`Session.handle` takes what happened and the time, and
returns what is to be done, in order. What must survive a power cut (:class:`Hold`, :class:`Drop`,
:class:`Commit`, :class:`Save`, :class:`Settle`, :class:`Keep`, :class:`Discard`) is on disk before the outputs
after it.

| what happened                    | what follows                                                            |
|----------------------------------|-------------------------------------------------------------------------|
| connected                        | tell kept events; announce unacknowledged updates, one at a time; check |
|                                  | in unless at work, naming the assignment held since before a restart    |
| no answer to a check-in for 10 s | check in again under a new id (backing off to 60 s)                     |
| assignment, answers our check-in | hold it, fetch its blobs; another one held before is dropped            |
| assignment already finished here | its update is announced again; check in later                           |
| retry, answers our check-in      | check in again after that many seconds                                  |
| an answer to another check-in    | nothing                                                                 |
| fetching or training failed      | drop the assignment, tell why, check in later (5 s, backing off to 300) |
| a commit is trained              | commit to the spool, announce the update; after the last check in at    |
|                                  | once, otherwise training has long gone on                               |
| anything else about the          | see :mod:`device_agent.work`: training, checkpoints, fresh models,      |
| assignment in hand               | amended plans                                                           |
| amend without a plan             | stop, drop the assignment, keep what is unsent, check in at once        |
| receipt, final                   | forget the update; unless stored, it goes back into the residual        |
| refused, expired or unknown      | also drop the rest of that assignment, if it is in hand                 |
| coordinator says offline         | nothing is sent for about a minute, or until it says online             |
| coordinator says it is back      | within 2 s announce again, and repeat a check-in without answer         |
| heartbeat is due                 | beat                                                                    |
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from attrs import evolve

from protocol.errors import ProtocolError
from protocol.messages import (
    Amend,
    Ask,
    Assignment,
    CheckIn,
    DeviceEvent,
    Fresh,
    Message,
    Progress,
    Receipt,
    Retry,
    Status,
)
from protocol.wire import encode

from .check_ins import CheckIns
from .conversation import (
    Acknowledged,
    Asked,
    Beat,
    Checkpointed,
    Commit,
    Connected,
    Disconnected,
    Drop,
    Event,
    Failed,
    Fetch,
    Fetched,
    FreshFailed,
    FreshFetched,
    Hold,
    Merged,
    Noticed,
    Output,
    Progressed,
    Publish,
    Received,
    Refused,
    Saved,
    Settle,
    Stop,
    Tick,
    Trained,
)
from .journal import Journal
from .outbox import Chance, Outbox, Piece, Tag
from .work import Work

RETURN = 2.0  # seconds over which the fleet spreads when the coordinator comes back
WAITING = 4  # updates without a receipt; no new work while there are more
LIMIT = 32 << 20  # bytes of them, the same
FINAL = ("refused", "expired", "unknown")  # receipts that end an assignment
FINISHED = 64  # assignments remembered as finished
QUIET = 60.0  # seconds that an offline coordinator is left alone
RETRY_LIMIT = 86400.0  # seconds


class Session:
    """``offer``: the check-in to send, but for its id, held and unsent; ids are ``<boot>.<counter>``. It may be
    replaced at any time; while it is None the device asks for no work.

    While updates of ``limit`` bytes or more wait, no new work is begun and no commit made but the last of an
    assignment.
    """

    def __init__(
        self, offer: CheckIn | None, boot: str, heartbeat: float, rng: Chance, saved: Saved, now: float,
        limit: int = LIMIT,
    ) -> None:  # fmt: skip
        self.offer = offer
        self.setback: str | None = None  # why the last assignment came to nothing
        self._limit = limit
        self._heartbeat = heartbeat
        self._rng = rng
        self._work = Work(saved.held, "held", saved.commits) if saved.held else None
        self._outbox = Outbox(rng, saved.updates)
        self._journal = Journal(saved.events)
        self._ask: Ask | None = None  # could not be sent yet
        self._asks_labels = saved.held is not None and saved.held.plan.labels
        self._finished = deque(saved.finished, maxlen=FINISHED)
        self._connected = False
        self._quiet_until = -math.inf  # the coordinator has said that it is offline
        self._check_ins = CheckIns(boot, rng, now)
        self._beat_at = now
        self._first_assignment: float | None = None
        self._out: list[Output] = []

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def state(self) -> str:
        return self._work.state if self._work else "idle"

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
        check_in = self._check_ins.due_at if self._wants_work else math.inf
        talk = min(check_in, self._outbox.wake_at if self._outbox.reachable else -math.inf)
        return min(self._beat_at, max(talk, self._quiet_until))

    def handle(self, event: Event, now: float) -> list[Output]:
        """What is to be done about ``event``, in this order."""
        _HANDLERS[type(event)](self, event, now)
        if self._work is not None:
            self._out += self._work.allowance(self._room)
        out, self._out = self._out, []  # they may be large
        return out

    # The link.

    def _connected_now(self, _: Connected, now: float) -> None:
        self._connected = True
        self._quiet_until = -math.inf
        self._check_ins.forget(now)
        self._out += self._journal.repeat()
        if self._ask is not None and self._work is not None and self._work.id == self._ask.assignment:
            self._publish("ask", self._ask)
        self._ask = None
        self._beat_at = now
        self._tick(Tick(), now)

    def _disconnected(self, _: Disconnected, now: float) -> None:
        self._connected = False
        self._outbox.close()

    def _acknowledged(self, event: Acknowledged, now: float) -> None:
        if isinstance(event.tag, Tag):
            self._pieces(self._outbox.acknowledged(event.tag, now))
        else:
            self._out += self._journal.told(event.tag)

    def _received(self, event: Received, now: float) -> None:
        match event.message:
            case Assignment() as assignment:
                self._assigned(assignment, now)
            case Retry(check_in=check_in, seconds=seconds):
                if self._check_ins.expects(check_in):
                    self._check_ins.rest(now, min(seconds, RETRY_LIMIT))
            case Receipt() as receipt:
                self._receipt(receipt, now)
            case Amend() as amend:
                self._amend(amend, now)
            case Fresh() as fresh:
                if self._work is not None and self._work.id == fresh.assignment:
                    self._out += self._work.offered(fresh)
            case Status() as status:
                self._coordinator(status, event.retained, now)

    def _coordinator(self, status: Status, retained: bool, now: float) -> None:
        if status.state == "online" and retained:
            return  # what we assume anyway
        # Offline, but not for ever: the word may be that of a connection long gone. Back online, it may have
        # missed what we said, and the whole fleet is about to repeat itself.
        quiet = QUIET * self._rng.uniform(0.75, 1.25) if status.state == "offline" else self._rng.uniform(0, RETURN)
        self._quiet_until = now + quiet
        self._outbox.close()
        self._check_ins.forget(now)

    # Work.

    @property
    def _room(self) -> bool:
        """Whether one more update may wait."""
        return len(self._outbox) < WAITING and self._outbox.size < self._limit

    @property
    def _wants_work(self) -> bool:
        free = self._work is None or self._work.state == "held"
        return free and self.offer is not None and self._room

    def _check_in(self, now: float) -> None:
        assert self.offer is not None
        held = self._work.id if self._work else None
        offer = evolve(self.offer, id=self._check_ins.next(now), held=held, unsent=self._outbox.assignments)
        if offer.labels and not self._asks_labels:
            offer = evolve(offer, labels=None)
        self._publish("check-in", offer)

    def _assigned(self, assignment: Assignment, now: float) -> None:
        if not self._check_ins.expects(assignment.check_in):
            return
        held = self._work
        again = held is not None and held.id == assignment.id
        if assignment.id in self._finished or (assignment.id in self._outbox.assignments and not again):
            # Training it again could end in other bytes under the same key.
            self._check_ins.pause(now)
            self._pieces(self._outbox.open(now))
            return
        if held is not None and again and held.commits >= assignment.plan.commits:
            self._end(held, "its commits have all been made", now)
            return
        if held is not None and not again:
            self._tell(
                "assignment-dropped", f"assignment {held.id} was held since a restart, but other work was given"
            )
            self._out.append(self._dropped(held))
        if self._first_assignment is None:
            self._first_assignment = now
        self._check_ins.answered()
        self._asks_labels = assignment.plan.labels
        self._work = Work(assignment, "fetching", held.commits if held is not None and again else 0)
        self._out += [Hold(assignment), Fetch(assignment)]

    def _worked(self, event: Any, now: float) -> None:
        """Something happened to the assignment in hand, if it still is."""
        if self._work is not None and self._work.id == event.assignment:
            self._carry_out(self._work.handle(event, now))

    def _carry_out(self, outcomes: Iterable[Output | Message]) -> None:
        for outcome in outcomes:
            match outcome:
                case Ask() if not self._connected:
                    self._ask = outcome
                case Ask():
                    self._publish("ask", outcome)
                case Progress():
                    self._publish("progress", outcome)
                case DeviceEvent():
                    self._note(outcome)
                case Message():
                    raise TypeError(f"nobody sends {type(outcome).__name__}")
                case _:
                    self._out.append(outcome)

    def _amend(self, amend: Amend, now: float) -> None:
        work = self._work
        if work is None or work.id != amend.assignment or work.outdated(amend):
            return
        if amend.plan is None or amend.plan.commits <= work.commits:
            self._end(work, amend.reason, now)
        else:
            self._carry_out(work.amend(amend.plan))

    def _end(self, work: Work, reason: str, now: float) -> None:
        """Nothing more is wanted of it."""
        self._work = None
        self._out += [Stop(work.id, reason), self._dropped(work)]
        self._check_ins.rest(now, 0)
        self._tick(Tick(), now)

    def _dropped(self, work: Work) -> Drop:
        if work.begun is not None:
            self._finished.append(work.begun)
        return Drop(work.begun)

    def _failed(self, event: Failed, now: float) -> None:
        work = self._work
        if work is None or work.id != event.assignment:
            return
        self._work = None
        self._out += [Stop(work.id, event.reason), self._dropped(work)]
        self.setback = f"{event.kind}: {event.reason}"
        self._tell(event.kind, f"assignment {event.assignment}: {event.reason}")
        self._check_ins.fail(now)

    def _trained(self, event: Trained, now: float) -> None:
        work = self._work
        if work is None or work.id != event.assignment or work.state != "training":
            return
        try:
            update = work.update(event, self._outbox.last_upload, self._outbox.goodput)
        except ProtocolError as error:
            self._failed(Failed(event.assignment, "training-failed", str(error)), now)
            return
        work.committed()
        self.setback = None
        self._check_ins.succeed()
        checkpoint = None if update.last else event.checkpoint
        self._out.append(Commit(update, event.body, event.region, event.residual, checkpoint))
        if update.last:
            if not event.result.last:
                self._out.append(Stop(work.id, "its last commit was made"))
            self._work = None
            self._finished.append(event.assignment)
            self._check_ins.rest(now, 0)
        self._pieces(self._outbox.add(update, event.body, now))
        self._tick(Tick(), now)

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
        work = self._work
        if update is not None and receipt.state in FINAL and work is not None and work.id == receipt.assignment:
            self._end(work, receipt.reason or receipt.state, now)
        self._tick(Tick(), now)

    def _noticed(self, event: Noticed, now: float) -> None:
        self._note(event.event)

    def _tell(self, kind: str, text: str) -> None:
        self._note(DeviceEvent(kind=kind, text=text[:2000]))

    def _note(self, event: DeviceEvent) -> None:
        self._out += self._journal.note(event, send=self._connected)

    # Time.

    def _tick(self, _: Tick, now: float) -> None:
        if not self._connected:
            return
        if now >= self._quiet_until:
            self._pieces(self._outbox.tick(now) if self._outbox.reachable else self._outbox.open(now))
            if self._wants_work and now >= self._check_ins.due_at:
                self._check_in(now)
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat
            self._out.append(self._beat(now))

    def _beat(self, now: float) -> Beat:
        name, step = (self._work.id, self._work.step) if self._work else (None, None)
        since = 0.0 if self._first_assignment is None else now - self._first_assignment
        goodput, upload = self._outbox.goodput, self._outbox.last_upload
        return Beat(self.state, name, step, self._outbox.size, since, goodput, upload)

    def _publish(self, leaf: str, message: Message) -> None:
        if self._connected:
            self._out.append(Publish(leaf, encode(message)))

    def _pieces(self, pieces: list[Piece]) -> None:
        self._out += [Publish(piece.leaf, piece.payload, piece.tag) for piece in pieces]


_HANDLERS: dict[type, Callable[[Session, Any, float], None]] = {
    Connected: Session._connected_now,
    Disconnected: Session._disconnected,
    Received: Session._received,
    Acknowledged: Session._acknowledged,
    **dict.fromkeys(
        (Fetched, Progressed, Asked, FreshFetched, FreshFailed, Merged, Refused, Checkpointed), Session._worked
    ),
    Trained: Session._trained,
    Failed: Session._failed,
    Noticed: Session._noticed,
    Tick: Session._tick,
}
