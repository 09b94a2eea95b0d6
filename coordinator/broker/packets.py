"""MQTT 3.1.1 packets as they arrive from the network: whole, bounded and well-formed, or refused.

Section numbers in comments are those of the OASIS standard MQTT Version 3.1.1.
"""

from __future__ import annotations

import asyncio

from attrs import field, frozen

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 10, 12, 14

ACCEPTED, BAD_PROTOCOL, UNAVAILABLE, NOT_AUTHORISED = 0, 1, 3, 5
"""Return codes of CONNACK (3.2.2.3)."""

_RETAIN = 0x01


class MalformedPacket(Exception):
    """What the peer sent is not a packet this broker takes; the connection must end."""


@frozen
class Will:
    """The message a client leaves to be published when its connection breaks."""

    topic: str
    message: bytes
    qos: int
    retain: bool


@frozen
class Connect:
    """The first packet of a connection. `keep_alive` in seconds, 0 = none."""

    level: int
    client_id: str
    keep_alive: int
    will: Will | None
    username: str | None
    password: str | None = field(repr=False)


class _Fields:
    """Takes the fields of a packet's body one after another."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._body):
            raise MalformedPacket("a field reaches over the end of its packet")
        taken = self._body[self._at : end]
        self._at = end
        return taken

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def binary(self) -> bytes:
        return self.take(self.integer(2))

    def text(self) -> str:
        try:
            text = self.binary().decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedPacket("a text is not valid UTF-8") from None
        if "\0" in text:
            raise MalformedPacket("a text holds a NUL")  # 1.5.3
        return text

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def end(self) -> None:
        if self.left:
            raise MalformedPacket(f"{self.left} bytes too many in a packet")


async def read_packet(
    reader: asyncio.StreamReader, limit: int, patience: float | None
) -> tuple[int, bytes] | None:
    """The first byte and the body of the next packet; None at the end of the stream.

    `limit`: largest body in bytes, checked before it is read. `patience`: seconds without a single byte after
    which TimeoutError is raised (a slow link is not a dead one), None = for ever.
    """
    async with asyncio.timeout(patience):
        first = await reader.read(1)
    if not first:
        return None
    size = shift = 0
    while True:
        async with asyncio.timeout(patience):
            byte = await reader.read(1)
        if not byte:
            return None
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
        if shift > 21:
            raise MalformedPacket("the length of a packet takes more than four bytes")  # 2.2.3
    if size > limit:
        raise MalformedPacket(f"a packet of {size} bytes is larger than the limit of {limit}")
    body = bytearray()
    while len(body) < size:
        async with asyncio.timeout(patience):
            part = await reader.read(size - len(body))
        if not part:
            return None
        body += part
    return first[0], bytes(body)


def frame(first: int, body: bytes) -> bytes:
    """A packet's bytes from its first byte (kind and flags) and its body."""
    size, length = len(body), bytearray()
    while True:
        size, low = divmod(size, 0x80)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([first]) + bytes(length) + body


def connack(code: int) -> bytes:
    """The answer to CONNECT, without a kept session."""
    return bytes([0x20, 2, 0, code])


def parse_connect(first: int, body: bytes) -> Connect:
    """CONNECT (3.1). Other protocol levels than 4 come back with that level and nothing else."""
    if first != CONNECT << 4:
        raise MalformedPacket("the first packet is no CONNECT")
    fields = _Fields(body)
    protocol, level = fields.text(), fields.integer(1)
    if (protocol, level) != ("MQTT", 4):
        return Connect(level if protocol == "MQTT" else 0, "", 0, None, None, None)
    flags = fields.integer(1)
    will_qos = flags >> 3 & 3
    if flags & 0x01 or will_qos == 3 or (flags & 0x38 and not flags & 0x04) or flags & 0xC0 == 0x40:
        raise MalformedPacket(f"the CONNECT flags {flags:#04x} contradict each other")
    keep_alive, client_id = fields.integer(2), fields.text()
    will = None
    if flags & 0x04:
        will = Will(fields.text(), fields.binary(), will_qos, bool(flags & 0x20))
    username = fields.text() if flags & 0x80 else None
    password = fields.text() if flags & 0x40 else None
    fields.end()
    return Connect(level, client_id, keep_alive, will, username, password)


def build_connect(client_id: str, username: str, will: Will | None) -> bytes:
    """A CONNECT for a clean session, without password and keep-alive."""

    def prefixed(value: bytes) -> bytes:
        return len(value).to_bytes(2, "big") + value

    flags, payload = 0x82, prefixed(client_id.encode())
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        payload += prefixed(will.topic.encode()) + prefixed(will.message)
    payload += prefixed(username.encode())
    return frame(CONNECT << 4, prefixed(b"MQTT") + bytes([4, flags, 0, 0]) + payload)


def checked(first: int, body: bytes, *, retained: str | None) -> bytes:
    """The bytes of a packet a connected client may send, or MalformedPacket.

    `retained`: the one topic on which this client may leave a retained message; elsewhere the flag is
    cleared.
    """
    kind, flags = first >> 4, first & 0x0F
    if kind == PUBLISH:
        topic = _check_publish(flags, body)
        return frame(first if topic == retained else first & ~_RETAIN, body)
    fields = _Fields(body)
    if kind in (SUBSCRIBE, UNSUBSCRIBE) and flags == 2:
        fields.integer(2)
        if not fields.left:
            raise MalformedPacket("a subscription names no topic filter")  # 3.8.3, 3.10.3
        while fields.left:
            fields.text()
            if kind == SUBSCRIBE and fields.integer(1) > 2:
                raise MalformedPacket("a subscription asks for an unknown quality of service")
    elif kind == PUBACK and flags == 0:
        fields.integer(2)
    elif kind not in (PINGREQ, DISCONNECT) or flags:
        raise MalformedPacket(f"a packet that begins with {first:#04x} is not expected here")
    fields.end()
    return frame(first, body)


def _check_publish(flags: int, body: bytes) -> str:
    qos = flags >> 1 & 3
    if qos > 1:
        raise MalformedPacket(f"messages of quality of service {qos} are not taken, only of 0 and 1")
    if flags & 0x08 and not qos:
        raise MalformedPacket("a message of quality of service 0 is marked as sent again")  # 3.3.1.1
    fields = _Fields(body)
    topic = fields.text()
    if not topic or topic.startswith("$") or "+" in topic or "#" in topic:
        raise MalformedPacket("a message must name a topic without wildcards that does not begin with $")
    if qos and not fields.integer(2):
        raise MalformedPacket("a message of quality of service 1 has no packet id")
    return topic
