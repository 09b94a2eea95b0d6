"""Carrying an update's body: in one message if small, otherwise in chunks with a list of what is missing.

Sans-IO, both sides. The sender announces the update; the receiver answers with the chunks it lacks; the
sender keeps at most a window of them in flight, as many as the link carries without delay. After any break the
sender announces again and only what is missing travels.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Sequence

from attrs import evolve

from .errors import ProtocolError
from .messages import Chunk, Update
from .wire import frame

MESSAGE_LIMIT = 96 * 1024
MIN_CHUNK, MAX_CHUNK = 4 * 1024, 96 * 1024
UNMEASURED = 16 * 1024  # bytes that a link nobody has measured carries in one message
MOST = 16  # chunks in flight
USUAL = 8  # chunks in flight that a chunk's size reckons with
DELAY = 0.3  # seconds that a full window may keep the link busy, so that a heartbeat waits no longer
AIM = DELAY / 4  # what the window aims at: the link may be a quarter as fast in the next moment


def chunk_size(size: int, goodput: float | None) -> int:
    """Bytes per chunk for a body of ``size`` bytes over a link of ``goodput`` bytes/s; 0 sends it whole.

    Eight of them keep the link busy for 0.3 s, between 4 and 96 KiB; 4 KiB for a link nobody has measured.
    """
    room = UNMEASURED if goodput is None else goodput * DELAY
    if size <= min(MESSAGE_LIMIT, room):
        return 0
    return int(min(MAX_CHUNK, max(MIN_CHUNK, (room if goodput is not None else 0) / USUAL)))


class Window:
    """How many chunks may be in flight: AIMD on the time until their acknowledgement.

    What is in flight is goodput × acknowledgement time (Little's law): where a chunk takes at most 75 ms longer than a
    message that has the link to itself, window × chunk ≤ 75 ms of goodput, and no more than 0.3 s where the link then
    falls to a quarter of its speed, as cellular ones do. The window grows by one in every round trip while one more
    would still be in time; where a chunk was late it falls to what would have been in time, by half at least, once for
    all that left before.
    """

    def __init__(self) -> None:
        self._size = 1.0
        self._alone = math.inf
        self._shrunk = -math.inf
        self._sent: dict[int, tuple[float, int]] = {}

    @property
    def size(self) -> int:
        return int(self._size)

    def alone(self, seconds: float) -> None:
        """A message that had the link to itself took so long."""
        self._alone = min(self._alone, seconds)

    def sent(self, index: int, now: float) -> None:
        self._sent[index] = now, len(self._sent) + 1

    def arrived(self, index: int, now: float) -> None:
        if index not in self._sent:
            return
        sent, depth = self._sent.pop(index)
        waited = now - sent - (self._alone if self._alone < math.inf else 0.0)
        if waited > AIM:
            if sent >= self._shrunk:
                self._size = max(1.0, self._size * min(0.5, AIM / waited))
                self._shrunk = now
        elif waited / depth * (self.size + 1) <= AIM:
            self._size = min(float(MOST), self._size + 1 / self._size)

    def forget(self) -> None:
        """Nothing is in flight any more."""
        self._sent.clear()


class Sender:
    """The device's side of one update's upload."""

    def __init__(self, update: Update, body: bytes) -> None:
        self.update = update
        self._body = body
        self._queue: deque[int] = deque()
        self._flying: set[int] = set()

    def announce(self) -> bytes:
        """The framed update: with its body if that travels whole, otherwise alone."""
        self._queue.clear()
        self._flying.clear()
        return frame(self.update, b"" if self.update.chunk else self._body)

    def missing(self, ranges: Iterable[tuple[int, int]]) -> None:
        """The receiver lacks these chunks: queue them, unless they are on their way."""
        wanted = (index for first, last in ranges for index in range(first, min(last, self._last) + 1))
        self._queue = deque(index for index in wanted if index not in self._flying)

    def frames(self, window: int) -> list[tuple[int, bytes]]:
        """Chunks that may leave now, as (index, frame): ``window`` minus what is in flight."""
        ready: list[tuple[int, bytes]] = []
        while self._queue and len(self._flying) < window:
            index = self._queue.popleft()
            self._flying.add(index)
            chunk = Chunk(assignment=self.update.assignment, commit=self.update.commit, index=index)
            at = index * self.update.chunk
            ready.append((index, frame(chunk, self._body[at : at + self.update.chunk])))
        return ready

    def arrived(self, index: int) -> None:
        """The broker has acknowledged a chunk."""
        self._flying.discard(index)

    @property
    def flying(self) -> bool:
        return bool(self._flying)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._flying

    @property
    def _last(self) -> int:
        return (self.update.size - 1) // self.update.chunk if self.update.chunk else -1


class Receiver:
    """The coordinator's side: collects one update's body. At most ``limit`` bytes are ever allocated."""

    def __init__(self, update: Update, limit: int) -> None:
        if update.size > limit:
            raise ProtocolError(f"the update announces {update.size} bytes, at most {limit} are expected")
        if update.chunk and not MIN_CHUNK <= update.chunk <= MAX_CHUNK:
            raise ProtocolError(f"chunks of {update.chunk} bytes are announced, expected {MIN_CHUNK} to {MAX_CHUNK}")
        if not update.chunk and update.size > MESSAGE_LIMIT:
            raise ProtocolError(f"a body of {update.size} bytes is too large for one message of {MESSAGE_LIMIT}")
        self.update = update
        self._body = bytearray(update.size)
        self._have = bytearray(-(-update.size // update.chunk) if update.chunk else 1)

    def whole(self, body: bytes) -> None:
        """The body came in one message."""
        if self.update.chunk or len(body) != self.update.size:
            raise ProtocolError(f"a body of {len(body)} bytes came whole, {self.update.size} were announced")
        self._body[:] = body
        self._have[0] = 1

    def chunk(self, index: int, data: bytes) -> None:
        if not self.update.chunk or not 0 <= index < len(self._have):
            raise ProtocolError(f"chunk {index} was not announced, there are {len(self._have)}")
        at = index * self.update.chunk
        expected = min(self.update.chunk, self.update.size - at)
        if len(data) != expected:
            raise ProtocolError(f"chunk {index} has {len(data)} bytes, expected {expected}")
        self._body[at : at + expected] = data
        self._have[index] = 1

    def missing(self) -> tuple[tuple[int, int], ...]:
        """Ranges [first, last] of chunks that have not come, at most 1000 of them."""
        return tuple(_ranges(self._have))[:1000]

    def body(self) -> bytes:
        """The complete body; ProtocolError if its hash is not the announced one (all is missing again)."""
        if not all(self._have):
            raise ProtocolError(f"{self._have.count(0)} chunks are missing")
        body = bytes(self._body)
        if hashlib.sha256(body).hexdigest() != self.update.sha256:
            self._have = bytearray(len(self._have))
            raise ProtocolError("the body's sha256 is not the announced one")
        return body


def _ranges(have: Sequence[int]) -> Iterable[tuple[int, int]]:
    first = None
    for index, present in enumerate([*have, 1]):
        if not present and first is None:
            first = index
        elif present and first is not None:
            yield first, index - 1
            first = None


def described(update: Update, body: bytes, goodput: float | None) -> Update:
    """The update with size, hash and chunk size of its body filled in."""
    return evolve(
        update,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        chunk=chunk_size(len(body), goodput),
    )
