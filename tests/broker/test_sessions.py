"""Sessions under bad manners: stolen ids, broken packets, sudden ends, deaf and silent clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from coordinator.broker import relay
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.broker.packets import frame
from tests.broker.client import Client, RawClient, text, until


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(lambda user, password, client_id: password == f"pw-of-{user}") as broker:
        yield broker


@pytest.fixture
def coordinator(broker: EmbeddedBroker) -> Iterator[Client]:
    with Client(broker.port, "coordinator") as client:
        assert client.subscribe("shoal/v1/d/+/up/#") == [1]
        yield client


def test_a_newcomer_with_the_same_user_and_client_id_takes_over(
    broker: EmbeddedBroker, coordinator: Client
) -> None:
    with Client(broker.port, "a", client_id="c", reconnect_on_failure=False) as old:
        old.subscribe("shoal/v1/d/a/#")
        with Client(broker.port, "a", client_id="c") as new:
            assert old.disconnected.wait(10)
            new.subscribe("shoal/v1/d/a/#")
            coordinator.publish("shoal/v1/d/a/x")
            until(lambda: new.received)
    assert old.received == []
    assert len(new.received) == 1


def test_another_user_with_the_same_client_id_takes_nothing(
    broker: EmbeddedBroker, coordinator: Client
) -> None:
    with Client(broker.port, "a", client_id="c") as a:
        a.subscribe("shoal/v1/d/a/#")
        with (
            Client(broker.port, "b", client_id="c"),
            Client(broker.port, "a", client_id="c", password="?") as thief,
        ):
            assert thief.code == 5
            coordinator.publish("shoal/v1/d/a/x")
            until(lambda: a.received)
        assert not a.disconnected.is_set()


def test_a_refused_connect_does_not_change_who_a_live_session_belongs_to(
    broker: EmbeddedBroker, coordinator: Client
) -> None:
    """In amqtt alone, a second CONNECT with the same kept session lends it the coordinator's name."""
    with Client(broker.port, "a", client_id="c", clean_session=False) as a:
        with Client(
            broker.port, "coordinator", client_id="c", clean_session=False, password="guess"
        ) as forger:
            assert forger.code == 5
        assert a.subscribe("shoal/#", "shoal/v1/d/b/#") == [0x80, 0x80]


def test_no_session_is_kept(broker: EmbeddedBroker, coordinator: Client) -> None:
    for _ in range(2):
        with Client(broker.port, "a", client_id="c", clean_session=False) as a:
            coordinator.publish("shoal/v1/d/a/x", b"before subscribing")
            a.subscribe("shoal/v1/d/a/#")
            coordinator.publish("shoal/v1/d/a/x", b"after")
            until(lambda: a.received)
            assert [payload for _, payload in a.received] == [b"after"]


@pytest.mark.parametrize("end", [b"\xe0\x00", b""], ids=["disconnect", "cut"])
def test_what_was_sent_before_the_end_arrives(
    broker: EmbeddedBroker, coordinator: Client, end: bytes
) -> None:
    topic, payloads = text("shoal/v1/d/a/up/x"), [b"%d" % number for number in range(1, 201)]
    packets = [frame(0x32, topic + int(payload).to_bytes(2, "big") + payload) for payload in payloads]
    with RawClient(broker.port, "a") as raw:
        raw.send(b"".join(packets) + end)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.ended()
    until(lambda: len(coordinator.received) >= 200)
    assert [payload for _, payload in coordinator.received] == payloads


def test_a_client_gone_while_connecting_leaves_nothing(broker: EmbeddedBroker) -> None:
    for end in (b"\xe0\x00", b""):
        raw = RawClient(broker.port, "a")
        raw.send(raw.connect + end)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.ended()
        raw.socket.close()
        until(lambda: broker.disconnect("a") == 0)
    with Client(broker.port, "a", client_id="raw") as client:
        assert client.code == 0


def test_a_will_must_be_one_the_device_may_publish(broker: EmbeddedBroker, coordinator: Client) -> None:
    forger = Client(broker.port, "a")
    forger.paho.will_set("shoal/v1/d/b/up/x", b"from b?", 1)
    with forger:
        assert forger.code == 5
    honest = Client(broker.port, "a", reconnect_on_failure=False)
    honest.paho.will_set("shoal/v1/d/a/up/x", b"gone", 1)
    with honest:
        broker.disconnect("a")
        until(lambda: coordinator.received)
    assert coordinator.received == [("shoal/v1/d/a/up/x", b"gone")]


BROKEN = {
    "too large": b"\x30\xff\xff\xff\x7f",
    "endless length": b"\x30\xff\xff\xff\xff\xff",
    "wildcard topic": frame(0x30, text("shoal/v1/d/a/#")),
    "topic of the broker": frame(0x30, text("$SYS/x")),
    "quality of service 2": frame(0x34, text("shoal/v1/d/a/up/x") + b"\0\1"),
    "packet in a packet": frame(0xC0, frame(0x31, text("shoal/v1/d/a/up/x") + b"smuggled")),
    "reserved": b"\xf0\x00",
}


@pytest.mark.parametrize("packet", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_packet_ends_its_connection_only(
    broker: EmbeddedBroker, coordinator: Client, packet: bytes
) -> None:
    with RawClient(broker.port, "a") as raw:
        raw.send(packet)
        assert raw.ended()
    with Client(broker.port, "b") as b:
        b.publish("shoal/v1/d/b/up/x")
        until(lambda: coordinator.received)
    assert coordinator.received == [("shoal/v1/d/b/up/x", b"")]


def test_a_stranger_who_does_not_begin_with_connect_is_dropped(broker: EmbeddedBroker) -> None:
    raw = RawClient(broker.port, "a")
    raw.send(b"\xc0\x00")
    assert raw.ended()
    raw.socket.close()


def test_a_client_silent_beyond_its_keep_alive_is_dropped(broker: EmbeddedBroker) -> None:
    with RawClient(broker.port, "a", keep_alive=1) as raw:
        assert raw.ended()


def test_a_device_may_name_64_filters(broker: EmbeddedBroker) -> None:
    with Client(broker.port, "a") as a:
        filters = [f"shoal/v1/d/a/{number}" for number in range(70)]
        assert a.subscribe(*filters) == [1] * 64 + [0x80] * 6
        assert a.subscribe(*filters[:2]) == [1, 1]


def test_a_device_that_does_not_take_its_messages_is_cut_off(
    broker: EmbeddedBroker, coordinator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_DEVICE_ROOM", 100_000)
    with RawClient(broker.port, "a") as deaf:
        deaf.send(frame(0x82, b"\0\1" + text("shoal/v1/d/a/x") + b"\1"))
        assert deaf.socket.recv(5) == b"\x90\x03\x00\x01\x01"
        for _ in range(4):
            coordinator.publish("shoal/v1/d/a/x", bytes(30_000))
        assert deaf.ended()
    assert not coordinator.disconnected.is_set()


def test_devices_wait_while_the_coordinator_does_not_take_their_messages(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the broker's memory is bounded, and nothing is lost on the way."""
    monkeypatch.setattr(relay, "_UPWARD_ROOM", 200_000)
    with Client(broker.port, "coordinator", manual_ack=True) as slow, Client(broker.port, "a") as a:
        slow.subscribe("shoal/v1/d/+/up")
        for number in range(100):
            a.paho.publish("shoal/v1/d/a/up", number.to_bytes(1, "big") + bytes(50_000), 1)
        until(lambda: len(slow.received) >= 4)
        assert not threading.Event().wait(0.3)
        assert len(slow.received) < 50
        taken: list[int] = []
        while len(taken) < 100:
            until(lambda: len(slow.messages) > len(taken))
            taken.append(slow.messages[len(taken)].mid)
            slow.paho.ack(taken[-1], 1)
    assert [payload[0] for _, payload in slow.received] == list(range(100))
