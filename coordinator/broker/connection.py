"""One client's connection as amqtt sees it: a reader of whole, checked packets and a writer that gives up.

amqtt itself bounds neither the size of a packet nor the time it waits for one (its broker ignores the
keep-alive), and takes bytes left over from a malformed packet for the next one. Both ends are held here
instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from amqtt.adapters import ReaderAdapter, WriterAdapter
from attrs import evolve

from coordinator.broker.access import COORDINATOR, STATUS
from coordinator.broker.packets import (
    DISCONNECT,
    PUBLISH,
    Connect,
    MalformedPacket,
    build_connect,
    checked,
    read_packet,
)

log = logging.getLogger(__name__)

_STALL = 60.0
"""Seconds a peer may leave its side unread before it is cut off."""


class PacketReader(ReaderAdapter):
    """Feeds amqtt from a buffer that never holds more than one packet."""

    def __init__(
        self,
        stream: asyncio.StreamReader,
        connect: Connect,
        session_id: str,
        max_packet: int,
        before_read: Callable[[], Awaitable[None]],
        before_end: Callable[[int], Awaitable[None]],
    ) -> None:
        """`before_read` is awaited before a packet is taken from the network; `before_end`, with the number
        of messages the client has published, before amqtt hears that it has gone."""
        assert connect.username is not None
        self._stream = stream
        self._username = connect.username
        self._retained = STATUS if self._username == COORDINATOR else None
        self._max_packet = max_packet
        self._patience = 1.5 * connect.keep_alive or None  # 3.1.2.10
        self._before_read = before_read
        self._before_end = before_end
        will = connect.will
        if will is not None and will.topic != self._retained:
            will = evolve(will, retain=False)
        self._packet = build_connect(session_id, self._username, will)
        self._at = 0
        self._published = 0
        self._ended = False

    async def read(self, n: int = -1) -> bytes:
        if self._at == len(self._packet):
            await self._fill()
        end = len(self._packet) if n < 0 else self._at + n
        taken = self._packet[self._at : end]
        self._at += len(taken)
        return taken

    async def _fill(self) -> None:
        await asyncio.sleep(0)  # others have their turn; after CONNECT, amqtt needs it to get ready
        await self._before_read()
        packet = None if self._ended else await self._next()
        if packet is None or packet[0] >> 4 == DISCONNECT:
            self._ended = True
            await self._before_end(self._published)
        elif packet[0] >> 4 == PUBLISH:
            self._published += 1
        if packet is None:
            raise asyncio.IncompleteReadError(b"", None)  # what amqtt takes for the end
        self._packet, self._at = packet, 0

    async def _next(self) -> bytes | None:
        try:
            packet = await read_packet(self._stream, self._max_packet, self._patience)
            return packet and checked(*packet, retained=self._retained)
        except MalformedPacket as error:
            log.warning("connection of %r closed: %s", self._username, error)
        except TimeoutError:
            log.info("connection of %r closed: silent for more than 1.5 times its keep-alive", self._username)
        except OSError:
            pass
        return None

    def feed_eof(self) -> None:
        self._stream.feed_eof()


class PacketWriter(WriterAdapter):
    """Writes to the network; a peer that does not read for `_STALL` seconds is cut off."""

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        if not self._stream.is_closing():
            self._stream.write(data)

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(_STALL):
                await self._stream.drain()
        except TimeoutError:
            self._stream.transport.abort()
            raise ConnectionResetError("the peer stopped reading") from None

    def get_peer_info(self) -> tuple[str, int]:
        peer = self._stream.get_extra_info("peername") or ("gone", 0)
        return str(peer[0]), int(peer[1])

    def get_ssl_info(self) -> None:
        """Nothing: clients prove who they are by password, not by certificate."""

    async def close(self) -> None:
        self._stream.close()
