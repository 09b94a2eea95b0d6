"""A link of changing speed, with delay and outages: a TCP proxy on this machine, one queue in each direction."""

from __future__ import annotations

import asyncio
import bisect
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

SLOT: Final = 0.1
"""Seconds that a rate holds."""
PACKET: Final = 1460
_BUFFER: Final = 16 << 10  # bytes that the kernel may hold for us: what waits, waits with who sent it


@frozen(eq=False)
class Rates:
    """``slots``: bytes that pass in each slot of 0.1 s, over and over again from the link's start."""

    slots: NDArray[np.float64]

    @classmethod
    def steady(cls, rate: float) -> Rates:
        """``rate`` in bytes/s."""
        return cls(np.array([rate * SLOT]))

    def during(self, start: float, end: float) -> float:
        """Mean bytes/s from ``start`` to ``end``, in s since the link's start."""
        first, last = int(start / SLOT), max(int(start / SLOT) + 1, math.ceil(end / SLOT))
        return float(np.take(self.slots, range(first, last), mode="wrap").mean()) / SLOT

    def passed(self, size: int, start: float) -> float:
        """When ``size`` bytes that begin at ``start`` are through."""
        now = start
        while True:
            slot = int(now / SLOT + 1e-9)
            rate, end = self.slots[slot % len(self.slots)] / SLOT, (slot + 1) * SLOT
            if rate * (end - now) >= size:
                return now + size / rate
            size, now = size - rate * (end - now), end


@frozen
class Outage:
    """Nothing passes from ``start`` to ``end``, in s since the link's start; with ``cut`` connections break."""

    start: float
    end: float
    cut: bool = False


@define(eq=False)
class _Direction:
    rates: Rates
    busy_until: float = 0.0
    bytes: int = 0


@define(eq=False, slots=False)
class ShapedLink:
    """Listens on ``port`` and passes everything on to ``target`` on this machine, ``delay`` s later in each direction.

    A context manager; :attr:`now` is s since its start. ``outages`` are in order and do not overlap.
    """

    target: int
    up: Rates
    down: Rates
    delay: float = 0.02
    outages: Sequence[Outage] = ()
    port: int = 0
    connections: list[float] = field(factory=list)
    """When each was made."""
    _writers: set[asyncio.StreamWriter] = field(factory=set)
    _started: float = 0.0

    def __enter__(self) -> Self:
        self._up, self._down = _Direction(self.up), _Direction(self.down)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.port = self._listener.getsockname()[1]
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="shaped-link", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def now(self) -> float:
        return time.monotonic() - self._started

    @property
    def sent(self) -> tuple[int, int]:
        """Bytes taken from the devices, and for them."""
        return self._up.bytes, self._down.bytes

    def out(self, start: float, end: float) -> bool:
        """Whether there was an outage between."""
        first = bisect.bisect_left(self.outages, start, key=lambda outage: outage.end)
        return first < len(self.outages) and self.outages[first].start <= end

    def cut(self) -> None:
        """Break all connections."""
        self._loop.call_soon_threadsafe(self._break)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready.set))
        self._loop.close()

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._stopping = asyncio.Event()
        self._started = time.monotonic()
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=PACKET)
        cutting = asyncio.create_task(self._cut_at_outages())
        ready()
        await self._stopping.wait()
        server.close()
        cutting.cancel()
        self._break()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _cut_at_outages(self) -> None:
        for outage in self.outages:
            await asyncio.sleep(max(0.0, outage.start - self.now))
            if outage.cut:
                self._break()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(self.now)
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target, limit=PACKET)
            self._writers |= {writer, far}
            await asyncio.gather(self._pump(reader, far, self._up), self._pump(far_reader, writer, self._down))
        except (OSError, asyncio.CancelledError):
            pass  # the server's own callback would report a cancellation as an error
        finally:
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Direction) -> None:
        while data := await reader.read(PACKET):
            way.bytes += len(data)
            way.busy_until = self._through(len(data), max(way.busy_until, self.now), way.rates)
            await asyncio.sleep(max(0.0, way.busy_until - self.now))
            self._loop.call_later(self.delay, _write, writer, data)
        await asyncio.sleep(self.delay)
        raise ConnectionResetError  # and the other direction ends too

    def _through(self, size: int, start: float, rates: Rates) -> float:
        end = rates.passed(size, start)
        while self.out(start, end):
            first = bisect.bisect_left(self.outages, start, key=lambda outage: outage.end)
            start = self.outages[first].end + 1e-6
            end = rates.passed(size, start)
        return end


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)


def outages(share: float, mean: float, until: float, seed: int) -> tuple[Outage, ...]:
    """Outages of ``mean`` s (exponential) that take ``share`` of the time, every other one breaking connections."""
    chance, now, found = np.random.default_rng(seed), 0.0, []
    while now < until:
        start = now + 1.0 + chance.exponential(mean * (1 - share) / share - 1.0)
        now = start + chance.exponential(mean)
        found.append(Outage(start, now, cut=len(found) % 2 == 1))
    return tuple(found)
