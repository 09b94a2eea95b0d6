"""Finished updates on their way to the coordinator, oldest first, one at a time. Sans-IO.

| when                                   | then                                                              |
|----------------------------------------|-------------------------------------------------------------------|
| an update is added, or moves to front  | announce it (with its body if that travels whole)                 |
| receipt ``missing``                    | send these chunks, a window at a time                             |
| the broker acknowledges a chunk        | the next chunk; the link's goodput is measured                    |
| a final receipt                        | the update is done; announce the next                             |
| silence for 15 s (backing off to 60 s) | announce again, the next assignment's first if several wait; the  |
|                                        | commits of one assignment never overtake each other               |
| connection or coordinator came back    | announce again: the receipt lists what is still missing           |
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from attrs import define, field, frozen

from protocol.messages import Receipt, Update
from protocol.transfer import Sender

PATIENCE, PATIENCE_LIMIT = 15.0, 60.0  # seconds without a receipt before announcing again
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
    sender: Sender
    first_sent: float | None = None


class Outbox:
    """All updates without a final receipt. ``goodput`` of the link in bytes/s, None if not yet measured."""

    def __init__(self, rng: Chance, updates: Iterable[tuple[Update, bytes]]) -> None:
        self._rng = rng
        self._queue = [_Upload(update, Sender(update, body)) for update, body in updates]
        self.reachable = False
        self._due = math.inf
        self._patience = PATIENCE
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
        self._queue.append(_Upload(update, Sender(update, body)))
        return self._restart(now) if len(self._queue) == 1 else []

    def open(self, now: float) -> list[Piece]:
        """The way to the coordinator is open (again)."""
        self.reachable = True
        return self._restart(now)

    def close(self) -> None:
        self.reachable = False
        self._due = math.inf
        self._busy_since = None

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
            self._patience = PATIENCE
            return None, self._send(now)
        self._queue.remove(upload)
        if upload.first_sent is not None:
            self.last_upload = now - upload.first_sent
        return upload.update, self._restart(now) if upload is head else []

    def acknowledged(self, tag: Tag, now: float) -> list[Piece]:
        """The broker has this publish."""
        if not self._queue or self._queue[0].update.key != (tag.assignment, tag.commit):
            return []
        update, sender = self._queue[0].update, self._queue[0].sender
        if tag.index is None:
            self._measure(update.size, now)
            return []
        sender.arrived(tag.index)
        self._measure(min(update.chunk, update.size - tag.index * update.chunk), now)
        return self._send(now)

    def tick(self, now: float) -> list[Piece]:
        if now < self._due:
            return []
        self._patience = min(2 * self._patience, PATIENCE_LIMIT)
        # The next one gets its turn: an update nobody answers must not hold up the others for ever. The commits of
        # one assignment stay in order, for each builds on the one before.
        first = self._queue[0].update.assignment
        self._queue.sort(key=lambda upload: upload.update.assignment == first)
        return self._announce(now)

    def _restart(self, now: float) -> list[Piece]:
        self._patience = PATIENCE
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
        return [
            Piece("chunk", data, Tag(*upload.update.key, index)) for index, data in upload.sender.frames()
        ]

    def _wait(self, now: float) -> None:
        self._due = now + self._patience * self._rng.uniform(0.75, 1.25)

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
