"""Boards that speak as real agents do, with the agent's own session, and train nothing: an update is there at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from random import Random

import numpy as np
from attrs import define, field

from coordinator.broker.driver import Door
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from device_agent.conversation import (
    Acknowledged,
    Beat,
    Commit,
    Connected,
    Disconnected,
    Event,
    Fetch,
    Fetched,
    Output,
    Publish,
    Received,
    Saved,
    Settle,
    Tick,
    Train,
    Trained,
)
from device_agent.outbox import Tag
from device_agent.session import Session
from device_agent.trainer import LocalResult
from protocol import tensors, topics
from protocol.messages import FEATURES, PROTOCOL, Assignment, CheckIn
from protocol.subnetwork import Region, nested
from protocol.wire import decode

from .wire import Wire

INPUT, CLASSES = 64, 10
_DOWN = [leaf for leaf, channel in topics.CHANNELS.items() if channel.direction == "down"]


def model(size: int) -> str:
    """A spec whose whole update in float32 has about ``size`` bytes."""
    units = round((size / 4 - CLASSES) / (INPUT + 1 + CLASSES))
    layers = [{"dense": {"units": units}}, "relu", {"dense": {"units": CLASSES}}]
    return json.dumps({"name": f"noop-{size}", "input": [INPUT], "classes": CLASSES, "layers": layers})


def body(spec: str) -> tuple[bytes, list[str]]:
    """What every board sends for this model, and the names of its tensors."""
    given = layout(ModelSpec.from_json(spec))
    shapes = Region(given, nested(given, 1.0)).shapes
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0, 1e-3, shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors.encode(drawn), list(shapes)


@define(eq=False)
class Board:
    """One device. ``stored`` are the assignments whose updates the coordinator has acknowledged as stored."""

    door: Door
    body: bytes
    tensors: list[str]
    on_settled: Callable[[], None] = lambda: None
    stored: list[str] = field(factory=list)
    refused: int = 0
    _offer: CheckIn | None = None
    _session: Session | None = None
    _wire: Wire | None = None
    _tags: dict[int, Tag | int] = field(factory=dict)
    _timer: asyncio.TimerHandle | None = None
    _boots: int = 0

    async def join(self, *, eager: bool) -> None:
        """Connect, and take part at once or (not ``eager``) when asked for :meth:`once`."""
        offer = CheckIn(
            id="0", protocol=PROTOCOL, agent="bench", runtime="none", features=FEATURES, samples=100,
            input=(INPUT,), classes=CLASSES, held=None, unsent=(),
        )  # fmt: skip
        self._offer = offer
        self._session = Session(
            offer if eager else None, "boot", 1e6, Random(self.door.user), Saved(), time.monotonic()
        )
        await self.reconnect()

    async def reconnect(self) -> None:
        self._tags.clear()
        self._boots += 1
        self._wire = Wire(self._heard, self._acknowledged)
        name = f"{self.door.user}.{self._boots}"
        await self._wire.open(self.door.host, self.door.port, self.door.user, self.door.password, name)
        await self._wire.subscribe(*(topics.device_topic(self.door.user, leaf) for leaf in _DOWN))
        self._feed(Connected())

    def break_off(self) -> None:
        """Lose the connection without a word."""
        assert self._wire is not None
        self._wire.break_off()
        self._feed(Disconnected())

    def once(self) -> None:
        """Check in for one piece of work."""
        self._wish(self._offer)
        self._wish(None)

    def rest(self) -> None:
        self._wish(None)

    def _wish(self, offer: CheckIn | None) -> None:
        assert self._session is not None
        self._session.offer = offer
        self._feed(Tick())

    def _heard(self, topic: str, payload: bytes) -> None:
        _, channel = topics.parse(topic)
        self._feed(Received(decode(channel.message, payload)))

    def _acknowledged(self, id: int) -> None:
        tag = self._tags.pop(id, None)
        if tag is not None:
            self._feed(Acknowledged(tag))

    def _feed(self, event: Event) -> None:
        assert self._session is not None
        for output in self._session.handle(event, time.monotonic()):
            self._do(output)
        if self._timer is not None:
            self._timer.cancel()
        wait, self._timer = self._session.wake_at - time.monotonic(), None
        if wait < 3600:
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.001), self._feed, Tick())

    def _do(self, output: Output) -> None:
        match output:
            case Publish(leaf, payload, tag):
                assert self._wire is not None
                id = self._wire.publish(topics.device_topic(self.door.user, leaf), payload, topics.CHANNELS[leaf].qos)
                if tag is not None:
                    self._tags[id] = tag
            case Fetch(assignment):
                asyncio.get_running_loop().call_soon(self._feed, Fetched(assignment.id, 0.001, 1000))
            case Train(assignment, commits):
                asyncio.get_running_loop().call_soon(self._feed, self._trained(assignment, commits + 1))
            case Settle(update, give_back):
                if give_back:
                    self.refused += 1
                else:
                    self.stored.append(update.assignment)
                self.on_settled()
            case Commit() | Beat():
                pass
            case _:
                pass

    def _trained(self, assignment: Assignment, commit: int) -> Trained:
        squares = dict.fromkeys(self.tensors, 0.25)
        plan = assignment.plan
        result = LocalResult(
            difference={}, commit=commit, last=commit == plan.commits, version=assignment.version, merges=(),
            samples=plan.steps * plan.batch, steps=plan.steps, loss=0.5, accuracy=0.5, squared_gradient=squares,
            squared_gradient_peak=squares, seconds=0.001,
        )  # fmt: skip
        return Trained(assignment.id, result, 0, self.body, "", None)
