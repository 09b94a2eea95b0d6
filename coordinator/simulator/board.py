"""One simulated device: the agent's real session, a spool in memory, and the conditions it lives under."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from attrs import evolve

from coordinator.simulator.account import Account, Tally
from coordinator.simulator.bench import Trained
from coordinator.simulator.conditions import Presence, Speed, Wire
from coordinator.simulator.population import Group
from coordinator.simulator.spool import Spool, Spooled
from device_agent import feedback
from device_agent.conversation import (
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
    Output,
    Progressed,
    Publish,
    Received,
    Settle,
    Tick,
    Train,
)
from device_agent.conversation import Trained as Ready
from device_agent.dataset import Dataset
from device_agent.session import Session
from protocol.messages import Assignment, CheckIn, Chunk, Message, Receipt, Retry, Update
from protocol.topics import CHANNELS
from protocol.wire import decode, frame, unframe

NEVER = 1e9
"""Seconds between two heartbeats: nobody looks at telemetry here."""
CACHED = 8
"""Artifacts a device keeps."""



class Fleet(Protocol):
    """What a board needs of the world around it."""

    @property
    def remembering(self) -> bool:
        """Whether the past is lived through once more."""

    def at(self, time: float, call: Callable[[float], None]) -> None:
        """Have ``call`` made at ``time``."""

    def hear(self, board: Board, message: Message, body: bytes, now: float) -> None:
        """The coordinator gets a message of ``board``."""

    def train(self, board: Board, assignment: Assignment, now: float) -> Trained:
        """What training comes to that begins now."""

    def settled(self, assignment: str) -> None:
        """An update has its final receipt."""

    @property
    def spent(self) -> Tally:
        """Of all boards."""


class Board:
    """A device. All times are virtual seconds since 1970."""

    def __init__(
        self,
        id: str,
        group: Group,
        dataset: Dataset,
        offer: CheckIn,
        conditions: tuple[Speed, Wire, Presence],
        chance: Random,
        fleet: Fleet,
    ) -> None:
        self.id, self.group, self.dataset = id, group, dataset
        self.speed, self._wire, self._presence = conditions
        self.account = Account(group.energy, fleet.spent)
        self.spool = Spool()
        self._offer, self._chance, self._fleet = offer, chance, fleet
        self._session: Session | None = None
        self._boots = 0
        self._online = False
        self._tick_at = math.inf
        self._artifacts: list[str] = []
        self._link_free = 0.0
        self._sent: dict[tuple[str, int], float] = {}  # share of an update that has arrived
        self._sending: dict[tuple[str, int], tuple[float, float]] = {}  # begin and end
        self._fetching: tuple[Assignment, int, float, float] | None = None  # size, begin, end
        self._connection = 0
        self._working = 0
        self._flat = False

    # -- coming and going ----------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Switched on for the first time."""
        self.account.since = now
        self._boot(now)
        self._look(now)
        crash = self._presence.crash(now)
        if crash < math.inf:
            self._fleet.at(crash, self._crash)

    def close(self, now: float) -> None:
        """The simulation ends: what is going on counts up to now."""
        self._account(now)

    def _boot(self, now: float) -> None:
        self._boots += 1
        boot = f"b{self._boots}"
        self._session = Session(self._offer, boot, NEVER, self._chance, self.spool.saved(), now)
        self._tick_at = math.inf

    def _look(self, now: float) -> None:
        """Come or go as presence says, and look again when that may change."""
        there = self._presence.there(now) and not self._flat
        if self._session is not None and there != self._online:
            self._connect(now) if there else self._disconnect(now)
        if (turn := self._presence.next(now)) < math.inf:
            self._fleet.at(turn, self._look)

    def _connect(self, now: float) -> None:
        self._account(now)
        self._online = True
        self._connection += 1
        self._link_free = now
        if self._fetching is not None:
            assignment, size, begin, end = self._fetching
            self._resume_fetch(assignment, size, end - begin, now)
        self._handle(Connected(), now)

    def _disconnect(self, now: float) -> None:
        self._account(now)
        self._online = False
        for key, (begin, end) in self._sending.items():
            done = min(max(now - begin, 0.0) / max(end - begin, 1e-9), 1.0)
            self._sent[key] = self._sent.get(key, 0.0) + (1 - self._sent.get(key, 0.0)) * done
            self._working -= 1
        self._sending.clear()
        if self._fetching is not None:
            assignment, size, _, end = self._fetching
            self._fetching = assignment, size, now, max(end, now)
            self._working -= 1
        self._handle(Disconnected(), now)

    def _crash(self, now: float) -> None:
        """The power is cut: what is in memory is lost, the spool is not."""
        if self._session is not None:
            self.account.own.crashes += 1
            if self._online:
                self._disconnect(now)
            self._account(now)
            self._fetching = None
            self._working = 0
            self._sent.clear()
            self._session = None
            self._connection += 1
            self._fleet.at(now + self.group.availability.restart, self._restart)
        self._fleet.at(self._presence.crash(now), self._crash)

    def _restart(self, now: float) -> None:
        self._boot(now)
        if self._presence.there(now) and not self._flat:
            self._connect(now)

    # -- the session ---------------------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> None:
        """A message of the coordinator has left for this board."""
        connection = self._connection

        def arrive(at: float) -> None:
            if self._online and connection == self._connection:
                self._handle(Received(self._known(message)), at)

        self._fleet.at(now + self._wire.latency, arrive)

    def _known(self, message: Message) -> Message:
        """What a message means to this board. While remembering, updates have other bytes than they had: their receipts
        are about those."""
        if isinstance(message, Retry):
            return evolve(message, seconds=max(message.seconds, self.group.availability.check_in))
        if self._fleet.remembering and isinstance(message, Receipt):
            spooled = self.spool.updates.get((message.assignment, message.commit))
            return message if spooled is None else evolve(message, sha256=spooled.update.sha256)
        return message

    def _handle(self, event: Event, now: float) -> None:
        if self._session is None:
            return
        for output in self._session.handle(event, now):
            self._do(output, now)
        self._schedule(now)

    def _schedule(self, now: float) -> None:
        if self._session is None:
            return
        wake = max(self._session.wake_at, now)
        if wake < self._tick_at:
            self._tick_at = wake
            self._fleet.at(wake, self._tick)

    def _tick(self, now: float) -> None:
        if now != self._tick_at:
            return  # an earlier one was wished for since
        self._tick_at = math.inf
        self._handle(Tick(), now)

    def _do(self, output: Output, now: float) -> None:
        match output:
            case Publish("update", payload, tag):
                self._upload(payload, tag, now)
            case Publish(leaf, payload, tag):
                self._say(leaf, payload, tag, now)
            case Fetch(assignment):
                self._fetch(assignment, now)
            case Train(assignment):
                self._train(assignment, now)
            case Hold(assignment):
                self.spool.held = assignment
            case Drop():
                self.spool.held = None
            case Commit(update, body, region, residual):
                self.spool.held = None
                self.spool.updates[update.key] = Spooled(update, body, region)
                self.spool.residual = residual
                self.spool.finished.append(update.assignment)
            case Settle(update, give_back):
                self._settle(update, give_back)
            case Keep(number, event):
                self.spool.events[number] = event
            case Discard(number):
                self.spool.events.pop(number, None)
            case Beat():
                pass

    def _settle(self, update: Update, give_back: bool) -> None:
        spooled = self.spool.updates.pop(update.key, None)
        self._fleet.settled(update.assignment)
        self._sent.pop(update.key, None)
        if give_back and spooled is not None and not self._fleet.remembering:
            self.spool.residual = feedback.give_back(
                spooled.body, update.coding, spooled.region, self.spool.residual
            )

    # -- the link ------------------------------------------------------------------------------------------------

    def _say(self, leaf: str, payload: bytes, tag: Any, now: float) -> None:
        """A short message: it takes its time, but nothing waits for it."""
        self.account.count(len(payload), 0)
        message, connection = decode(CHANNELS[leaf].message, payload), self._connection
        arrival = now + self._wire.message(len(payload))

        def arrive(at: float) -> None:
            if connection == self._connection and self._online:
                self._fleet.hear(self, message, b"", at)
                if tag is not None:
                    self._handle(Acknowledged(tag), at)

        self._fleet.at(arrival, arrive)

    def _upload(self, payload: bytes, tag: Any, now: float) -> None:
        """An update with its body, chunks and all: one transfer, that goes on where it was broken off."""
        update, _ = unframe(Update, payload)
        key = update.key
        if key in self._sending:
            return  # it was announced again while it is on its way
        chunks = -(-update.size // update.chunk) if update.chunk else 0
        whole = len(payload) + (update.size + chunks * _chunk_head(update) if chunks else 0)
        left = max(1, round(whole * (1 - self._sent.get(key, 0.0))))
        begin = max(now, self._link_free)
        end = self._link_free = begin + self._wire.up(left, begin)
        self._sending[key] = begin, end
        connection = self._connection
        self._account(now)
        self._working += 1

        def arrive(at: float) -> None:
            if connection != self._connection or key not in self._sending:
                return
            self._account(at)
            self._working -= 1
            del self._sending[key]
            self._spend(0.0, end - begin, at)
            self.account.count(left, 0)
            spooled = self.spool.updates.get(key)
            if spooled is not None:
                self._sent[key] = 1.0
                self._fleet.hear(self, update, spooled.body, at)
            self._handle(Acknowledged(tag), at)

        self._fleet.at(end, arrive)

    def _fetch(self, assignment: Assignment, now: float) -> None:
        size = assignment.weights.size
        if assignment.artifact.sha256 not in self._artifacts:
            size += assignment.artifact.size
            self._artifacts = [*self._artifacts[1 - CACHED :], assignment.artifact.sha256]
        self._resume_fetch(assignment, size, self._wire.down(size, now), now)

    def _resume_fetch(self, assignment: Assignment, size: int, left: float, now: float) -> None:
        self._fetching = assignment, size, now, now + left
        connection = self._connection
        self._account(now)
        self._working += 1

        def arrive(at: float) -> None:
            if connection != self._connection or self._fetching is None:
                return
            self._account(at)
            self._working -= 1
            self._fetching = None
            self._spend(0.0, left, at)
            self.account.count(0, size)
            self._handle(Fetched(assignment.id, left, size), at)

        self._fleet.at(now + left, arrive)

    # -- training ------------------------------------------------------------------------------------------------

    def _train(self, assignment: Assignment, now: float) -> None:
        """Trained at once; it is ready when this board would have done it."""
        trained, boot = self._fleet.train(self, assignment, now), self._boots
        self._handle(Progressed(assignment.id, 0, None), now)
        self._account(now)
        self._working += 1

        def done(at: float) -> None:
            if boot != self._boots or self._session is None:
                return  # it crashed meanwhile
            self._account(at)
            self._working -= 1
            self._spend(trained.seconds, 0.0, at)
            if trained.result is None:
                self._handle(Failed(assignment.id, "training-failed", trained.reason), at)
                return
            ready = Ready(
                assignment.id, trained.result, trained.shape_epoch, trained.body, trained.region, trained.residual
            )
            self._handle(ready, at)

        self._fleet.at(now + trained.seconds, done)

    # -- accounts ------------------------------------------------------------------------------------------------

    def _account(self, now: float) -> None:
        self.account.until(now, self._online, self._working > 0)

    def _spend(self, training: float, transfer: float, now: float) -> None:
        self.account.spend(training, transfer)
        if self.account.empty and not self._flat:
            self._run_down(now)

    def _run_down(self, now: float) -> None:
        """The battery is empty: away until half of it is filled again."""
        self._flat = True
        if self._online:
            self._disconnect(now)

        def charged(at: float) -> None:
            self._account(at)
            self._flat = False
            if self._session is not None and not self._online and self._presence.there(at):
                self._connect(at)

        if (filled := self.account.charging) < math.inf:
            self._fleet.at(now + filled, charged)


def _chunk_head(update: Update) -> int:
    chunk = Chunk(assignment=update.assignment, commit=update.commit, index=update.size // update.chunk)
    return len(frame(chunk, b""))
