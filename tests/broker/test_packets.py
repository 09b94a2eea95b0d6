"""MQTT packets from the wire: bounds, contradictions, and what amqtt is given instead."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.broker.packets import (
    MalformedPacket,
    Will,
    build_connect,
    checked,
    frame,
    parse_connect,
    read_packet,
)


def read(data: bytes, limit: int = 1 << 20) -> tuple[int, bytes] | None:
    async def run() -> tuple[int, bytes] | None:
        stream = asyncio.StreamReader()
        stream.feed_data(data)
        stream.feed_eof()
        return await read_packet(stream, limit, None)

    return asyncio.run(run())


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(2, "big") + value.encode()


def connect(flags: int, payload: bytes) -> bytes:
    return text("MQTT") + bytes([4, flags, 0, 60]) + payload


@pytest.mark.parametrize(
    ("size", "header"), [(0, 2), (127, 2), (128, 3), (16_383, 3), (16_384, 4), (300_000, 4)]
)
def test_a_packet_comes_back_as_it_was_framed(size: int, header: int) -> None:
    framed = frame(0x30, bytes(size))
    assert len(framed) == header + size
    assert read(framed + b"\xc0\x00") == (0x30, bytes(size))


def test_a_packet_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedPacket, match="1048577 bytes is larger than the limit of 1048576"):
        read(frame(0x30, bytes((1 << 20) + 1))[:5])


def test_a_length_of_five_bytes_is_refused() -> None:
    with pytest.raises(MalformedPacket, match="four bytes"):
        read(b"\x30\x80\x80\x80\x80\x01")


@pytest.mark.parametrize("cut", range(6))
def test_a_stream_that_ends_within_a_packet_has_ended(cut: int) -> None:
    assert read(frame(0x30, b"abcd")[:cut]) is None


def test_connect_with_everything() -> None:
    body = connect(0xEE, text("boot-1") + text("w/t") + text("gone") + text("a") + text("secret"))
    packet = parse_connect(0x10, body)
    assert (packet.level, packet.client_id, packet.keep_alive) == (4, "boot-1", 60)
    assert packet.will == Will("w/t", b"gone", 1, True)
    assert (packet.username, packet.password) == ("a", "secret")
    assert "secret" not in repr(packet)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (connect(0x03, text("c")), "contradict"),  # reserved flag
        (connect(0x42, text("c") + text("pw")), "contradict"),  # password without user name
        (connect(0x0A, text("c")), "contradict"),  # quality of service of no will
        (connect(0x1E, text("c") + text("t") + text("m")), "contradict"),  # will of quality 3
        (connect(0xC2, text("c") + text("a")), "over the end"),
        (connect(0x82, text("c") + text("a") + b"!"), "1 bytes too many"),
        (connect(0x82, text("c") + b"\0\1\xff"), "UTF-8"),
        (connect(0x82, text("c") + text("a\0b")), "NUL"),
        (b"", "over the end"),
    ],
)
def test_connect_that_contradicts_itself(body: bytes, complaint: str) -> None:
    with pytest.raises(MalformedPacket, match=complaint):
        parse_connect(0x10, body)


def test_another_first_packet_or_protocol() -> None:
    with pytest.raises(MalformedPacket, match="no CONNECT"):
        parse_connect(0xC0, b"")
    assert parse_connect(0x10, text("MQTT") + b"\x05 whatever follows").level == 5
    assert parse_connect(0x10, text("MQIsdp") + b"\x03").level == 0


def test_the_connect_handed_on_is_clean_and_has_no_password() -> None:
    packet = read(build_connect("a/1", "a", Will("t", b"m", 1, False)))
    assert packet is not None
    again = parse_connect(*packet)
    assert (again.client_id, again.username, again.password, again.keep_alive) == ("a/1", "a", None, 0)
    assert again.will == Will("t", b"m", 1, False)


GOOD = {
    "qos 0": (0x30, text("t") + b"payload"),
    "qos 1": (0x32, text("t") + b"\0\1payload"),
    "qos 1 again": (0x3A, text("t") + b"\0\1"),
    "puback": (0x40, b"\0\1"),
    "subscribe": (0x82, b"\0\1" + text("a/#") + b"\1" + text("b") + b"\0"),
    "unsubscribe": (0xA2, b"\0\1" + text("a/#")),
    "ping": (0xC0, b""),
    "disconnect": (0xE0, b""),
}
BAD = {
    "qos 2": (0x34, text("t") + b"\0\1"),
    "qos 3": (0x36, text("t") + b"\0\1"),
    "qos 0 again": (0x38, text("t")),
    "qos 1 without id": (0x32, text("t") + b"\0\0"),
    "no topic": (0x30, text("")),
    "wildcard": (0x30, text("a/+")),
    "broker's topic": (0x30, text("$SYS/x")),
    "broken text": (0x30, b"\0\1\xff"),
    "topic over the end": (0x30, b"\0\5abc"),
    "puback too long": (0x40, b"\0\1\0"),
    "puback with flags": (0x41, b"\0\1"),
    "subscribe without flags": (0x80, b"\0\1" + text("a") + b"\0"),
    "subscribe to nothing": (0x82, b"\0\1"),
    "subscribe with qos 3": (0x82, b"\0\1" + text("a") + b"\3"),
    "ping with a packet inside": (0xC0, frame(0x31, text("t"))),
    "second connect": (0x10, connect(0x02, text("c"))),
    "connack": (0x20, b"\0\0"),
    "pubrel": (0x62, b"\0\1"),
    "reserved 0": (0x00, b""),
    "reserved 15": (0xF0, b""),
}


@pytest.mark.parametrize("packet", GOOD.values(), ids=GOOD.keys())
def test_what_a_client_may_send_is_handed_on_unchanged(packet: tuple[int, bytes]) -> None:
    assert checked(*packet, retained=None) == frame(*packet)


@pytest.mark.parametrize("packet", BAD.values(), ids=BAD.keys())
def test_what_no_client_may_send(packet: tuple[int, bytes]) -> None:
    with pytest.raises(MalformedPacket):
        checked(*packet, retained=None)


def test_the_retain_flag_stays_on_one_topic_only() -> None:
    assert checked(0x31, text("status"), retained="status")[0] == 0x31
    assert checked(0x31, text("other"), retained="status")[0] == 0x30
    assert checked(0x33, text("status") + b"\0\1", retained=None)[0] == 0x32


@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_bytes_are_a_packet_or_malformed(first: int, body: bytes) -> None:
    for examine in (lambda: parse_connect(first, body), lambda: checked(first, body, retained=None)):
        with suppress(MalformedPacket):
            examine()
