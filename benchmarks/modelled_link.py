"""The agent's outbox on a link of changing speed, in virtual time: what the window alone does."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any, Final

from attrs import define, evolve, field

from device_agent.outbox import Outbox, Piece
from protocol.messages import Chunk, Lineage, Receipt, Timings, Update
from protocol.transfer import Receiver, described
from protocol.wire import unframe

from .shaped_link import Rates

HEADER: Final = 60
"""Bytes of topic and packet around a payload."""
BEAT: Final = 700
"""Bytes of a heartbeat with them."""
_UPDATE: Final = Update(
    assignment="a-0", commit=1, run="modelled", lineage=Lineage(version=0, shape_epoch=0), samples=64, steps=4,
    loss=1.0,
    accuracy=0.5, squared_gradient={"w": 0.5}, squared_gradient_peak={"w": 0.5}, bytes_down=1000, coding="int8",
    timings=Timings(download=1.0, train=1.0, upload=None), size=1, sha256="0" * 64, chunk=0,
)  # fmt: skip


@define
class ModelledLink:
    """One update after the other, each of ``size`` bytes, up a link of ``delay`` s in each direction, and a heartbeat
    every second; what comes down takes no time but the delay."""

    up: Rates
    size: int = 230_000
    delay: float = 0.02
    sent: int = 0
    stored: int = 0
    beats: list[tuple[float, float]] = field(factory=list)
    """When each left, and how long it waited and travelled, both in s."""
    _outbox: Outbox = field(factory=lambda: Outbox(random.Random(0), []))
    _events: list[tuple[float, int, str, Any]] = field(factory=list)
    _order: itertools.count[int] = field(factory=itertools.count)
    _busy: float = 0.0
    _receiver: Receiver | None = None
    _updates: int = 0

    def run(self, seconds: float) -> None:
        self._outbox.open(0.0)
        self._next(0.0)
        self._later(0.5, "beat", None)
        while self._events and self._events[0][0] <= seconds:
            now, _, kind, what = heapq.heappop(self._events)
            match kind:
                case "beat":
                    self._busy = self.up.passed(BEAT, max(self._busy, now))
                    self.beats.append((now, self._busy - now))
                    self._later(now + 1.0, "beat", None)
                case "arrived":
                    self._arrived(what, now)
                case "acknowledged":
                    self._publish(self._outbox.acknowledged(what.tag, now), now)
                case "receipt":
                    done, pieces = self._outbox.receipt(what, now)
                    self._publish(pieces, now)
                    if done is not None:
                        self.stored += 1
                        self._next(now)

    def _later(self, at: float, kind: str, what: object) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, what))

    def _next(self, now: float) -> None:
        self._updates += 1
        body = bytes(self.size)
        update = described(evolve(_UPDATE, assignment=f"a-{self._updates}"), body, self._outbox.goodput)
        self._receiver = Receiver(update, self.size)
        self._publish(self._outbox.add(update, body, now), now)

    def _publish(self, pieces: list[Piece], now: float) -> None:
        for piece in pieces:
            size = len(piece.payload) + HEADER
            self.sent += size
            self._busy = self.up.passed(size, max(self._busy, now))
            self._later(self._busy + self.delay, "arrived", piece)

    def _arrived(self, piece: Piece, now: float) -> None:
        receiver = self._receiver
        assert receiver is not None
        answer = now + self.delay
        self._later(answer, "acknowledged", piece)
        if piece.leaf == "chunk":
            chunk, data = unframe(Chunk, piece.payload)
            receiver.chunk(chunk.index, data)
        elif receiver.update.chunk:
            self._later(answer, "receipt", _receipt(receiver, "missing"))
        else:
            receiver.whole(unframe(Update, piece.payload)[1])
        if not receiver.missing():
            self._later(answer, "receipt", _receipt(receiver, "stored"))


def _receipt(receiver: Receiver, state: str) -> Receipt:
    update = receiver.update
    return Receipt(
        assignment=update.assignment, commit=update.commit, state=state, sha256=update.sha256,
        missing=receiver.missing(), reason="",
    )  # fmt: skip
