"""Finished updates on their way to the coordinator, oldest first, one at a time. Sans-IO.

| when                                   | then                                                              |
|----------------------------------------|-------------------------------------------------------------------|
| an update is added, or moves to front  | announce it (with its body if that travels whole)                 |
| receipt ``missing``                    | send these chunks, a window at a time                             |
| the broker acknowledges a chunk        | the next chunk; the link's goodput is measured                    |
| a final receipt                        | the update is done; announce the next                             |
| silence for 10 to 20 s, backing off to | announce again, the next assignment's first if several wait; the  |
| 10 to 60 s with full jitter            | commits of one assignment never overtake each other. What the     |
|                                        | broker has not acknowledged yet is still on its way: not again    |
| a break before anything got through    | announce again in the smallest chunks: whatever the link is, one  |
|                                        | of them passes within the keepalive                               |
| connection or coordinator came back    | announce again: the receipt lists what is still missing           |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from attrs import define, evolve, field, frozen

from protocol.messages import Receipt, Update
from protocol.transfer import MIN_CHUNK, Sender, Window

PATIENCE = 10.0  # seconds in which an answer is not missed yet
JITTER, JITTER_LIMIT = 10.0, 50.0  # and up to so many more before announcing again
UNDER_WAY = 120.0  # seconds without a sign of the broker, after which paho's keepalive has ended the connection
MEASURABLE = 16 * 1024  # bytes; less says more about latency than about the link


class Chance(Protocol):
    """A random generator."""

    def uniform(self, a: float, b: float) -> float: ...


@frozen
class Tag:
    """A publish whose acknowledgement by the broker matters; ``index`` is None for an announcement."""

    assignment: str
    commit: int
    index: int | None = None


@frozen
class Piece:
    """Something to publish on ``leaf``."""

    leaf: str
    payload: bytes = field(repr=False)
    tag: Tag


@define
class _Upload:
    update: Update
    body: bytes = field(repr=False)
    sender: Sender = field(init=False)
    first_sent: float | None = None
    announced: float | None = None
    """When the announcement left that the broker has not acknowledged."""
    through: bool = True
    """Something of it has got through on this connection, or nothing was tried."""

    def __attrs_post_init__(self) -> None:
        self.sender = Sender(self.update, self.body)

    @property
    def under_way(self) -> bool:
        return self.announced is not None or self.sender.flying

    def broken(self) -> None:
        """The connection is gone."""
        self.announced = None
        if not self.through and self.update.chunk != MIN_CHUNK and self.update.size > MIN_CHUNK:
            self.update = evolve(self.update, chunk=MIN_CHUNK)
            self.sender = Sender(self.update, self.body)
        self.through = True


class Outbox:
    """All updates without a final receipt. ``goodput`` of the link in bytes/s, None if not yet measured."""

    def __init__(self, rng: Chance, updates: Iterable[tuple[Update, bytes]]) -> None:
        self._rng = rng
        self._queue = [_Upload(update, body) for update, body in updates]
        self.reachable = False
        self._due = math.inf
        self._jitter = JITTER
        self._heard = -math.inf  # the last sign of the broker
        self._window = Window()
        self._busy_since: float | None = None
        self._busy_bytes = 0
        self.goodput: float | None = None
        self.last_upload: float | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def assignments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(upload.update.assignment for upload in self._queue))

    @property
    def size(self) -> int:
        """Bytes of all bodies waiting."""
        return sum(upload.update.size for upload in self._queue)

    @property
    def wake_at(self) -> float:
        return self._due

    def add(self, update: Update, body: bytes, now: float) -> list[Piece]:
        self._queue.append(_Upload(update, body))
        return self._restart(now) if len(self._queue) == 1 else []

    def open(self, now: float) -> list[Piece]:
        """The way to the coordinator is open (again)."""
        self.reachable = True
        return self._restart(now)

    def close(self) -> None:
        self.reachable = False
        self._due = math.inf
        self._busy_since = None
        self._window = Window()
        for upload in self._queue:
            upload.broken()

    def receipt(self, receipt: Receipt, now: float) -> tuple[Update | None, list[Piece]]:
        """The update this receipt is final for (None otherwise), and what to publish now."""
        found = [u for u in self._queue if u.update.key == (receipt.assignment, receipt.commit)]
        if not found:
            return None, []
        upload, head = found[0], self._queue[0]
        if receipt.state == "missing":
            if upload is not head:
                return None, []
            upload.sender.missing(receipt.missing)
            self._jitter = JITTER
            return None, self._send(now)
        self._queue.remove(upload)
        if upload.first_sent is not None:
            self.last_upload = now - upload.first_sent
        return upload.update, self._restart(now) if upload is head else []

    def acknowledged(self, tag: Tag, now: float) -> list[Piece]:
        """The broker has this publish."""
        if not self._queue or self._queue[0].update.key != (tag.assignment, tag.commit):
            return []
        upload = self._queue[0]
        update, self._heard, upload.through = upload.update, now, True
        if tag.index is None:
            if upload.announced is not None and update.chunk and not upload.sender.flying:
                self._window.alone(now - upload.announced)
            upload.announced = None
            self._measure(update.size, now)
            return []
        upload.sender.arrived(tag.index)
        self._window.arrived(tag.index, now)
        self._measure(min(update.chunk, update.size - tag.index * update.chunk), now)
        return self._send(now)

    def tick(self, now: float) -> list[Piece]:
        if now < self._due:
            return []
        if self._queue[0].under_way and now < self._heard + UNDER_WAY:
            self._wait(now)
            return []
        self._jitter = min(2 * self._jitter, JITTER_LIMIT)
        # The next one gets its turn: an update nobody answers must not hold up the others for ever. The commits of
        # one assignment stay in order, for each builds on the one before.
        first = self._queue[0].update.assignment
        self._queue.sort(key=lambda upload: upload.update.assignment == first)
        return self._announce(now)

    def _restart(self, now: float) -> list[Piece]:
        self._jitter = JITTER
        return self._announce(now)

    def _announce(self, now: float) -> list[Piece]:
        if not self._queue or not self.reachable:
            self._due = math.inf
            return []
        upload = self._queue[0]
        if upload.first_sent is None:
            upload.first_sent = now
        self._wait(now)
        self._busy_since, self._busy_bytes = None if upload.update.chunk else now, 0
        upload.announced, upload.through = now, False
        self._heard = now
        self._window.forget()
        return [Piece("update", upload.sender.announce(), Tag(*upload.update.key))]

    def _send(self, now: float) -> list[Piece]:
        if not self.reachable:
            return []
        self._wait(now)
        upload = self._queue[0]
        if upload.sender.idle:
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since, self._busy_bytes = now, 0
        pieces = []
        for index, data in upload.sender.frames(self._window.size):
            self._window.sent(index, now)
            pieces.append(Piece("chunk", data, Tag(*upload.update.key, index)))
        return pieces

    def _wait(self, now: float) -> None:
        self._due = now + PATIENCE + self._rng.uniform(0, self._jitter)

    def _measure(self, arrived: int, now: float) -> None:
        """Fold what has arrived since the link became busy into the goodput."""
        if self._busy_since is None:
            return
        self._busy_bytes += arrived
        if self._busy_bytes < MEASURABLE:
            return
        found = self._busy_bytes / max(now - self._busy_since, 1e-3)
        self.goodput = found if self.goodput is None else 0.7 * self.goodput + 0.3 * found
        self._busy_since, self._busy_bytes = now, 0
