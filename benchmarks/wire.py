"""An MQTT 3.1.1 client of a few lines on asyncio: thousands of them fit into one process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14


@define(eq=False)
class Wire(asyncio.BufferedProtocol):
    """One connection. ``on_message(topic, payload)``; ``on_acknowledged(id)`` for what was published at QoS 1."""

    on_message: Callable[[str, bytes], None]
    on_acknowledged: Callable[[int], None] = lambda _: None
    on_lost: Callable[[], None] = lambda: None
    _buffer: bytearray = field(factory=lambda: bytearray(4096))
    _end: int = 0
    _transport: Any = None
    _answer: asyncio.Future[bytes] | None = None
    _id: int = 0

    async def open(
        self, host: str, port: int, user: str, password: str, client_id: str, ca: Path | None = None
    ) -> None:
        """Connect and be accepted; ConnectionError with the return code if not."""
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context(cafile=str(ca)) if ca else None
        await loop.create_connection(lambda: self, host, port, ssl=context)
        head = _text("MQTT") + b"\x04\xc2\x00\x00"
        answer = await self._ask(_packet(CONNECT << 4, head + _text(client_id) + _text(user) + _text(password)))
        if answer[1]:
            raise ConnectionError(f"{user} was refused with return code {answer[1]}")

    async def subscribe(self, *filters: str) -> None:
        body = self._next() + b"".join(_text(one) + b"\x01" for one in filters)
        answer = await self._ask(_packet(SUBSCRIBE << 4 | 2, body))
        if any(code > 1 for code in answer[2:]):
            raise ConnectionError(f"the subscription was refused: {answer[2:].hex()}")

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        """The id that will be acknowledged, 0 at QoS 0."""
        name = self._next() if qos else b""
        self._transport.write(_packet(PUBLISH << 4 | qos << 1, _text(topic) + name + payload))
        return int.from_bytes(name, "big")

    def break_off(self) -> None:
        """As a cable that is pulled would."""
        self._transport.abort()

    async def _ask(self, packet: bytes) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(packet)
        return await asyncio.wait_for(self._answer, 30)

    def _next(self) -> bytes:
        self._id = self._id % 65_535 + 1
        return self._id.to_bytes(2, "big")

    # -- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the broker hung up"))
        self.on_lost()

    def get_buffer(self, _: int) -> memoryview:
        if self._end == len(self._buffer):
            self._buffer.extend(bytes(len(self._buffer)))
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, count: int) -> None:
        self._end += count
        at = 0
        while (found := self._whole(at)) is not None:
            kind, start, stop = found
            self._take(kind, bytes(self._buffer[start:stop]))
            at = stop
        if at:
            self._buffer[: self._end - at] = self._buffer[at : self._end]
            self._end -= at

    def _whole(self, at: int) -> tuple[int, int, int] | None:
        length, shift, place = 0, 0, at + 1
        while True:
            if place >= self._end:
                return None
            length |= (self._buffer[place] & 127) << shift
            shift += 7
            place += 1
            if self._buffer[place - 1] < 128:
                break
        return (self._buffer[at], place, place + length) if place + length <= self._end else None

    def _take(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind in (CONNACK, SUBACK) and self._answer is not None:
            self._answer.set_result(body)
        elif kind == PUBACK:
            self.on_acknowledged(int.from_bytes(body[:2], "big"))
        elif kind == PUBLISH:
            end = 2 + int.from_bytes(body[:2], "big")
            qos = first >> 1 & 3
            if qos:
                self._transport.write(_packet(PUBACK << 4, body[end : end + 2]))
            self.on_message(body[2:end].decode(), body[end + 2 * bool(qos) :])


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def _packet(first: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while True:
        left, digit = divmod(left, 128)
        length.append(digit | (128 if left else 0))
        if not left:
            return bytes([first]) + bytes(length) + body
