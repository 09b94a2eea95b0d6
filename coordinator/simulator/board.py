"""One simulated device: the agent's real session, a spool in memory, and the conditions it lives under."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from attrs import evolve, frozen

from coordinator.simulator.account import Account
from coordinator.simulator.conditions import Presence, Speed, Wire
from coordinator.simulator.fleet import Fleet
from coordinator.simulator.population import Group
from coordinator.simulator.practice import Practice
from coordinator.simulator.spool import Spool
from device_agent import feedback
from device_agent.conversation import (
    Acknowledged,
    Allow,
    Amended,
    Beat,
    Commit,
    Connected,
    Discard,
    Disconnected,
    Drop,
    Event,
    Fetch,
    Fetched,
    FetchFresh,
    FreshFetched,
    Hold,
    Keep,
    Output,
    Publish,
    Received,
    Settle,
    Stop,
    TakeFresh,
    Tick,
    Train,
)
from device_agent.dataset import Dataset
from device_agent.session import Session
from protocol.messages import Assignment, CheckIn, Chunk, Message, Receipt, Retry, Update
from protocol.topics import CHANNELS
from protocol.wire import decode, frame, unframe

NEVER = 1e9
"""Seconds between two heartbeats: nobody looks at telemetry here."""
CACHED = 8
"""Artifacts a device keeps."""


@frozen(eq=False)
class _Fetching:
    """A download of ``size`` bytes for an assignment; ``there(seconds)`` is what the session hears at its end."""

    assignment: str
    size: int
    begin: float
    end: float
    there: Callable[[float], Event]


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
        self._fetching: _Fetching | None = None
        self._connection = 0
        self.practice = Practice(self, fleet)
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
        self.account.until(now)

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
        self.account.link(now, True)
        self._online = True
        self._connection += 1
        self._link_free = now
        if self._fetching is not None:
            self._resume_fetch(self._fetching, self._fetching.end - self._fetching.begin, now)
        self.handle(Connected(), now)

    def _disconnect(self, now: float) -> None:
        self.account.link(now, False)
        self._online = False
        for key, (begin, end) in self._sending.items():
            done = min(max(now - begin, 0.0) / max(end - begin, 1e-9), 1.0)
            self._sent[key] = self._sent.get(key, 0.0) + (1 - self._sent.get(key, 0.0)) * done
            self.account.work(now, -1)
        self._sending.clear()
        if self._fetching is not None:
            self._fetching = evolve(self._fetching, begin=now, end=max(self._fetching.end, now))
            self.account.work(now, -1)
        self.handle(Disconnected(), now)

    def _crash(self, now: float) -> None:
        """The power is cut: what is in memory is lost, the spool is not."""
        if self._session is not None:
            self.account.own.crashes += 1
            self.practice.leave(now)
            if self._online:
                self._disconnect(now)
            self._fetching = None
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
                self.handle(Received(self._known(message)), at)

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

    def handle(self, event: Event, now: float) -> None:
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
        self.handle(Tick(), now)

    def _do(self, output: Output, now: float) -> None:
        match output:
            case Publish("update", payload, tag):
                self._upload(payload, tag, now)
            case Publish(leaf, payload, tag):
                self._say(leaf, payload, tag, now)
            case Fetch(assignment):
                self._fetch(assignment, now)
            case FetchFresh(assignment, fresh):
                size = fresh.weights.size
                there = partial(FreshFetched, assignment.id, fresh.version, size=size)
                self._begin_fetch(assignment.id, size, there, now)
            case Train() | Allow() | Amended() | TakeFresh():
                self.practice.told(output, now)
            case Stop(assignment):
                self._stop(assignment, now)
            case Hold(assignment):
                self.spool.hold(assignment)
            case Drop(finished):
                self.spool.drop(finished)
            case Commit():
                self.spool.commit(output, self.practice.stand)
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
                    self.handle(Acknowledged(tag), at)

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
        self.account.work(now, 1)

        def arrive(at: float) -> None:
            if connection != self._connection or key not in self._sending:
                return
            self.account.work(at, -1)
            del self._sending[key]
            self.spend(0.0, end - begin, at)
            self.account.count(left, 0)
            spooled = self.spool.updates.get(key)
            if spooled is not None:
                self._sent[key] = 1.0
                self._fleet.hear(self, update, spooled.body, at)
            self.handle(Acknowledged(tag), at)

        self._fleet.at(end, arrive)

    def _fetch(self, assignment: Assignment, now: float) -> None:
        size = assignment.weights.size
        if assignment.artifact.sha256 not in self._artifacts:
            size += assignment.artifact.size
            self._artifacts = [*self._artifacts[1 - CACHED :], assignment.artifact.sha256]
        self._begin_fetch(assignment.id, size, partial(Fetched, assignment.id, size=size), now)

    def _begin_fetch(self, assignment: str, size: int, there: Callable[[float], Event], now: float) -> None:
        self._resume_fetch(_Fetching(assignment, size, now, now, there), self._wire.down(size, now), now)

    def _resume_fetch(self, fetching: _Fetching, left: float, now: float) -> None:
        going = self._fetching = evolve(fetching, begin=now, end=now + left)
        self.account.work(now, 1)

        def arrive(at: float) -> None:
            if self._fetching is not going:
                return
            self.account.work(at, -1)
            self._fetching = None
            self.spend(0.0, left, at)
            self.account.count(0, going.size)
            self.handle(going.there(left), at)

        self._fleet.at(now + left, arrive)

    def _stop(self, assignment: str, now: float) -> None:
        self.practice.stop(assignment, now)
        if self._fetching is not None and self._fetching.assignment == assignment:
            self.account.work(now, -1 if self._online else 0)
            self._fetching = None

    # -- accounts ------------------------------------------------------------------------------------------------

    def spend(self, training: float, transfer: float, now: float) -> None:
        self.account.spend(training, transfer)
        if self.account.empty and not self._flat:
            self._run_down(now)

    def _run_down(self, now: float) -> None:
        """The battery is empty: away until half of it is filled again."""
        self._flat = True
        if self._online:
            self._disconnect(now)

        def charged(at: float) -> None:
            self.account.until(at)
            self._flat = False
            if self._session is not None and not self._online and self._presence.there(at):
                self._connect(at)

        if (filled := self.account.charging) < math.inf:
            self._fleet.at(now + filled, charged)


def _chunk_head(update: Update) -> int:
    chunk = Chunk(assignment=update.assignment, commit=update.commit, index=update.size // update.chunk)
    return len(frame(chunk, b""))
