"""A session under test: its outputs decoded, a spool that survives, and time that passes when told to."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any

from attrs import evolve

from device_agent import conversation as c
from device_agent.batches import Order
from device_agent.outbox import Tag
from device_agent.position import Checkpoint, File, Position
from device_agent.session import LIMIT, Session
from device_agent.tally import Sums
from device_agent.trainer import LocalResult
from protocol import topics
from protocol.messages import (
    PROTOCOL,
    Assignment,
    Blob,
    CheckIn,
    DeviceEvent,
    Message,
    Plan,
    Receipt,
    Retry,
    Update,
)
from protocol.wire import decode, unframe

OFFER = CheckIn(
    id="0",
    protocol=PROTOCOL,
    agent="1.0",
    runtime="none",
    features=("train",),
    samples=10,
    input=(3,),
    classes=2,
    held=None,
    unsent=(),
)
PLAN = Plan(width=1.0, batch=4, steps=2, learning_rate=0.1, coding="float32")
RESULT = LocalResult(
    difference={},
    commit=1,
    last=True,
    version=7,
    merges=(),
    samples=8,
    steps=2,
    loss=0.5,
    accuracy=0.75,
    squared_gradient={"w": 1.0},
    squared_gradient_peak={"w": 2.0},
    seconds=3.0,
)


def assignment(check_in: str, name: str = "a1") -> Assignment:
    blob = Blob(sha256="0" * 64, size=1)
    return Assignment(
        id=name,
        kind="train",
        run="run",
        check_in=check_in,
        version=7,
        plan=PLAN,
        lease=600,
        artifact=blob,
        weights=blob,
    )


def checkpoint(name: str, commit: int, step: int = 0) -> Checkpoint:
    """Training of an assignment stands here, after so many commits."""
    position = Position(
        step=step,
        commit=commit,
        version=7,
        seconds=0.0,
        sums=Sums(steps=0, samples=0, loss=0.0, correct=0.0, squared=(), peak=()),
        order=Order(samples=10, row=10, epoch="", now="{}"),
    )
    return Checkpoint(
        assignment=name, position=position, weights=File(number=step + 1, size=4, sha256="0" * 64)
    )


def retry(check_in: str, seconds: float = 60) -> Retry:
    return Retry(check_in=check_in, seconds=seconds, reason="")


def receipt(
    update: Update, state: str, missing: tuple[tuple[int, int], ...] = (), sha256: str = ""
) -> Receipt:
    return Receipt(
        assignment=update.assignment,
        commit=update.commit,
        state=state,
        sha256=sha256 or update.sha256,
        missing=missing,
        reason="",
    )


class Device:
    """Drives one session; ``said`` are the messages published by the last input, ``did`` the other outputs.

    ``told`` and ``done`` are those of all inputs.

    Restarting keeps only what went through the spool outputs, like a machine whose power was cut.
    """

    def __init__(self, seed: int = 0, limit: int = LIMIT) -> None:
        self.now = 100.0
        self._limit = limit
        self.held: Assignment | None = None
        self.checkpoint: Checkpoint | None = None
        self.updates: dict[tuple[str, int], tuple[Update, bytes]] = {}
        self.events: dict[int, DeviceEvent] = {}
        self.finished: list[str] = []
        self.settled: list[tuple[str, bool]] = []
        self.told: list[tuple[str, Any]] = []
        self.done: list[Any] = []
        self._seed = seed
        self._boots = 0
        self.restart()

    def restart(self) -> None:
        self._boots += 1
        commits = self.checkpoint.position.commit if self.checkpoint else 0
        saved = c.Saved(self.held, commits, tuple(self.updates.values()), dict(self.events), tuple(self.finished))
        rng = Random(self._seed + self._boots)
        self.allowed: dict[str, int] = {}
        self.session = Session(OFFER, f"boot{self._boots}", 10.0, rng, saved, self.now, self._limit)
        self.said: list[tuple[str, Any]] = []
        self.did: list[Any] = []
        self.tags: list[Any] = []

    def feel(self, event: c.Event) -> list[tuple[str, Any]]:
        self.said, self.did = [], []
        for output in self.session.handle(event, self.now):
            self._do(output)
        self.told += self.said
        return self.said

    def connect(self) -> list[tuple[str, Any]]:
        return self.feel(c.Connected())

    def disconnect(self) -> list[tuple[str, Any]]:
        return self.feel(c.Disconnected())

    def hear(self, message: Message, retained: bool = False) -> list[tuple[str, Any]]:
        return self.feel(c.Received(message, retained))

    def train(
        self, name: str = "a1", body: bytes = b"body", residual: bytes | None = None
    ) -> list[tuple[str, Any]]:
        self.feel(c.Fetched(name, 1.5, 900))
        return self.feel(c.Trained(name, RESULT, 0, body, "region", residual))

    def later(self, seconds: float) -> list[tuple[str, Any]]:
        """Let time pass, waking the session whenever it asked for it; everything said meanwhile.

        The broker acknowledges all announcements.
        """
        said, end = self._announcements_arrive(), self.now + seconds
        while self.session.wake_at <= end:
            self.now = max(self.now, self.session.wake_at)
            said += [*self.feel(c.Tick()), *self._announcements_arrive()]
        self.now = end
        return said

    def _announcements_arrive(self) -> list[tuple[str, Any]]:
        arrived = [tag for tag in self.tags if isinstance(tag, Tag) and tag.index is None]
        self.tags = [tag for tag in self.tags if tag not in arrived]
        return [message for tag in arrived for message in self.feel(c.Acknowledged(tag))]

    @property
    def check_in(self) -> CheckIn:
        """The last check-in."""
        return [message for leaf, message in self.told if leaf == "check-in"][-1]

    @property
    def update(self) -> Update:
        """The last update announced."""
        return [message for leaf, message in self.told if leaf == "update"][-1]

    def _do(self, output: c.Output) -> None:
        match output:
            case c.Publish(leaf, payload, tag):
                channel = topics.CHANNELS[leaf]
                message, body = unframe(channel.message, payload) if channel.framed else (None, b"")
                if isinstance(message, Update):
                    self._check_spooled(message, body)
                self.said.append((leaf, message or decode(channel.message, payload)))
                if tag is not None:
                    self.tags.append(tag)
                return
            case c.Hold(held):
                if self.held is None or self.held.id != held.id:
                    self.checkpoint = None
                self.held = held
            case c.Drop(finished):
                self.held = self.checkpoint = None
                self.finished += [finished] if finished else []
            case c.Commit(update, body, _, _, checkpoint):
                assert update.key not in self.updates
                self.updates[update.key] = update, body
                self.checkpoint = checkpoint
                if checkpoint is None:
                    self.held = None
                    self.finished.append(update.assignment)
            case c.Save(checkpoint):
                assert self.held is not None
                assert checkpoint.assignment == self.held.id
                self.checkpoint = checkpoint
            case c.Allow(name, commit):
                self.allowed[name] = commit
            case c.Settle(update, give_back):
                del self.updates[update.key]
                self.settled.append((update.assignment, give_back))
            case c.Keep(number, event):
                self.events[number] = event
            case c.Discard(number):
                del self.events[number]
        self.did.append(output)
        self.done.append(output)

    def _check_spooled(self, update: Update, body: bytes) -> None:
        """What is announced was made durable before, and is what it says it is."""
        assert evolve(self.updates[update.key][0], chunk=update.chunk) == update
        if not update.chunk:
            assert hashlib.sha256(body).hexdigest() == update.sha256


def leaves(said: list[tuple[str, Any]]) -> list[str]:
    return [leaf for leaf, _ in said]


def other(update: Update) -> Update:
    return evolve(update, sha256="f" * 64)
