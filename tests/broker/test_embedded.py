"""The embedded broker, by real MQTT clients: who gets in, what passes, how it starts and ends."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from coordinator.broker.access import STATUS
from coordinator.broker.driver import BrokerError
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.fleet.authority import TlsFiles, establish
from tests.broker.client import Client, until


def known(username: str, password: str, client_id: str) -> bool:
    return password == f"pw-of-{username}"


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(known) as broker:
        yield broker


@pytest.fixture
def coordinator(broker: EmbeddedBroker) -> Iterator[Client]:
    with Client(broker.port, "coordinator") as client:
        assert client.subscribe("shoal/v1/d/+/up/#") == [1]
        yield client


def test_authenticate_is_given_what_the_client_sent() -> None:
    asked = []

    def remember(*who: str) -> bool:
        asked.append(who)
        return True

    with (
        EmbeddedBroker(remember) as broker,
        Client(broker.port, "a", password="ß secret", client_id="boot-7"),
    ):
        assert asked == [("a", "ß secret", "boot-7")]


def test_a_wrong_password_is_refused(broker: EmbeddedBroker) -> None:
    with Client(broker.port, "a", password="wrong") as client:
        assert client.code == 5


@pytest.mark.parametrize(("user", "password"), [(None, None), ("a", None)])
def test_nobody_is_anonymous(broker: EmbeddedBroker, user: str | None, password: str | None) -> None:
    client = Client(broker.port, "a")
    client.paho.username_pw_set(user, password)
    with client:
        assert client.code == 5


def test_a_user_name_that_is_no_topic_level_is_refused(broker: EmbeddedBroker) -> None:
    with Client(broker.port, "+") as client:
        assert client.code == 5


def test_mqtt_5_is_refused(broker: EmbeddedBroker) -> None:
    with Client(broker.port, "a", protocol=mqtt.MQTTv5) as client:
        assert client.code


def test_a_failing_authentication_refuses_for_now_and_keeps_the_password_out_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(username: str, password: str, client_id: str) -> bool:
        raise ConnectionError(f"no database for {password}")

    caplog.set_level(logging.DEBUG)
    with EmbeddedBroker(fail) as broker, Client(broker.port, "a") as client:
        assert client.code == 3
    with EmbeddedBroker(known) as broker:
        with Client(broker.port, "a") as client:
            client.publish("shoal/v1/d/a/up/x")
        with Client(broker.port, "a", password="pw-of-b"):
            pass
    assert "no database" in caplog.text
    assert "pw-of" not in caplog.text
    assert {r.levelno for r in caplog.records if r.name.startswith(("amqtt", "transitions"))} <= {
        logging.WARNING
    }


def test_messages_to_foreign_topics_are_dropped(broker: EmbeddedBroker, coordinator: Client) -> None:
    with Client(broker.port, "a") as a, Client(broker.port, "b") as b:
        assert b.subscribe("shoal/v1/d/b/#", STATUS) == [1, 1]
        for topic in ("shoal/v1/d/b/up/x", STATUS, "shoal/v1/d/ab/up/x", "other", "shoal/v1/d/a/up/own"):
            a.publish(topic, b"?")
        coordinator.publish("shoal/v1/d/b/last")
        until(lambda: b.received and coordinator.received)
    assert coordinator.received == [("shoal/v1/d/a/up/own", b"?")]
    assert b.received == [("shoal/v1/d/b/last", b"")]


def test_foreign_filters_are_refused_and_deliver_nothing(broker: EmbeddedBroker, coordinator: Client) -> None:
    foreign = ("#", "+/#", "shoal/#", "shoal/v1/d/+/x", "shoal/v1/d/b/x", "shoal/v1/d/a", "$SYS/#")
    with Client(broker.port, "a") as a, Client(broker.port, "b") as b:
        assert a.subscribe(*foreign, "shoal/v1/d/a/#") == [0x80] * len(foreign) + [1]
        b.publish("shoal/v1/d/b/x", b"not for a")
        coordinator.publish("shoal/v1/d/b/x", b"nor this")
        coordinator.publish("shoal/v1/d/a/x", b"but this")
        until(lambda: a.received)
    assert a.received == [("shoal/v1/d/a/x", b"but this")]


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 98_304, 250_000])
def test_messages_both_ways(broker: EmbeddedBroker, coordinator: Client, qos: int, size: int) -> None:
    payload = os.urandom(size)
    with Client(broker.port, "a") as a:
        a.subscribe("shoal/v1/d/a/down", qos=qos)
        a.publish("shoal/v1/d/a/up/x", payload, qos)
        coordinator.publish("shoal/v1/d/a/down", payload, qos)
        until(lambda: a.received and coordinator.received)
        assert a.received == [("shoal/v1/d/a/down", payload)]
        assert a.messages[0].qos == qos
    assert coordinator.received == [("shoal/v1/d/a/up/x", payload)]


def test_a_packet_over_the_limit_disconnects_its_sender_only(
    broker: EmbeddedBroker, coordinator: Client
) -> None:
    with Client(broker.port, "a", reconnect_on_failure=False) as a, Client(broker.port, "b") as b:
        a.paho.publish("shoal/v1/d/a/up/x", bytes(300 << 10), 1)
        assert a.disconnected.wait(10)
        b.publish("shoal/v1/d/b/up/x", b"still here")
        until(lambda: coordinator.received)
    assert coordinator.received == [("shoal/v1/d/b/up/x", b"still here")]


def test_only_the_coordinators_status_is_retained(broker: EmbeddedBroker, coordinator: Client) -> None:
    coordinator.publish(STATUS, b"online", retain=True)
    coordinator.publish("shoal/v1/d/a/down", b"kept?", retain=True)
    leaving = Client(broker.port, "a", reconnect_on_failure=False)
    leaving.paho.will_set("shoal/v1/d/a/will", b"kept?", 1, retain=True)
    with leaving:
        leaving.publish("shoal/v1/d/a/up/x", b"kept?", retain=True)
        broker.disconnect("a")
    with Client(broker.port, "a") as a:
        a.subscribe("shoal/v1/d/a/#", STATUS)
        coordinator.publish("shoal/v1/d/a/down", b"end")
        until(lambda: ("shoal/v1/d/a/down", b"end") in a.received)
        assert {payload for _, payload in a.received} == {b"online", b"end"}


def test_300_updates_of_90_000_bytes_with_manual_acknowledgement(broker: EmbeddedBroker) -> None:
    payloads = [number.to_bytes(4, "big") + bytes(89_996) for number in range(300)]
    coordinator = Client(broker.port, "coordinator", manual_ack=True)
    remember = coordinator.paho.on_message
    assert remember is not None

    def acknowledge(client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        remember(client, data, message)
        client.ack(message.mid, message.qos)

    coordinator.paho.on_message = acknowledge
    with coordinator, Client(broker.port, "a") as a:
        coordinator.subscribe("shoal/v1/d/+/update")
        for payload in payloads:
            a.paho.publish("shoal/v1/d/a/update", payload, 1)
        until(lambda: len(coordinator.received) >= 300)
    assert [payload for _, payload in coordinator.received] == payloads


def test_fifty_clients_at_once_while_messages_flow(broker: EmbeddedBroker) -> None:
    """Connecting and subscribing changes amqtt's tables under the messages; not one may be lost."""
    devices = [f"d{number}" for number in range(50)]

    def live(device: str) -> None:
        with Client(broker.port, device) as client:
            assert client.code == 0
            assert client.subscribe(*(f"shoal/v1/d/{device}/down{i or ''}" for i in range(40))) == [1] * 40
            client.publish(f"shoal/v1/d/{device}/up/x", device.encode())
            hub.publish(f"shoal/v1/d/{device}/down", device.encode())
            until(lambda: client.received)
            assert client.received == [(f"shoal/v1/d/{device}/down", device.encode())]

    with Client(broker.port, "busy") as busy, Client(broker.port, "coordinator") as hub:
        busy.subscribe("shoal/v1/d/busy/#")  # the coordinator is the second to get its messages
        hub.subscribe("shoal/v1/d/+/up/#")
        with ThreadPoolExecutor(50) as pool:
            done = [pool.submit(live, device) for device in devices]
            for number in range(300):
                busy.paho.publish("shoal/v1/d/busy/up/x", str(number).encode(), 1)
            for outcome in done:
                outcome.result()
        until(lambda: len(hub.received) >= 350 and len(busy.received) >= 300)
    got = [payload.decode() for topic, payload in hub.received]
    assert sorted(got) == sorted([*devices, *map(str, range(300))])


def test_disconnect_ends_a_user_for_good(broker: EmbeddedBroker) -> None:
    revoked: set[str] = set()
    with (
        EmbeddedBroker(lambda user, *rest: user not in revoked) as broker,
        Client(broker.port, "a") as one,
        Client(broker.port, "a") as two,
        Client(broker.port, "ab") as other,
    ):
        revoked.add("a")
        assert broker.disconnect("a") == 2
        assert one.disconnected.wait(10)
        assert two.disconnected.wait(10)
        assert not other.disconnected.is_set()
        assert broker.disconnect("nobody") == 0
        with Client(broker.port, "a") as again:
            assert again.code == 5


def test_disconnect_reaches_who_is_just_being_admitted() -> None:
    asked, answer = threading.Event(), threading.Event()

    def slowly(*who: str) -> bool:
        asked.set()
        return answer.wait(10)

    with EmbeddedBroker(slowly) as broker:
        client = Client(broker.port, "a", reconnect_on_failure=False)
        client.paho.connect("127.0.0.1", broker.port)
        client.paho.loop_start()
        assert asked.wait(10)
        threading.Timer(0.05, answer.set).start()
        assert broker.disconnect("a") == 1
        assert client.disconnected.wait(10)
        assert client.code is None
        client.paho.loop_stop()


def test_stop_leaves_no_thread_and_no_port_and_start_takes_the_same_one(broker: EmbeddedBroker) -> None:
    threads = set(threading.enumerate())
    other = EmbeddedBroker(known)
    other.start()
    port = other.port
    with Client(port, "a") as a:
        other.stop()
        other.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
        assert a.disconnected.wait(10)
        started = set(threading.enumerate()) - threads
        assert [thread.name for thread in started if not thread.name.startswith("paho")] == []
        other.start()
        assert other.port == port
        until(a.paho.is_connected)  # by itself, on the same port
    other.stop()


def test_a_taken_port_is_an_error(broker: EmbeddedBroker) -> None:
    with pytest.raises(BrokerError, match=rf"cannot listen on 127.0.0.1 port {broker.port}: .*in use\.$"):
        EmbeddedBroker(known, port=broker.port).start()
    with pytest.raises(BrokerError, match="already running"):
        broker.start()
    with pytest.raises(BrokerError, match="not running"):
        EmbeddedBroker(known).disconnect("a")


def test_brokers_in_one_process_have_their_own_users(broker: EmbeddedBroker) -> None:
    with (
        EmbeddedBroker(lambda user, password, client_id: password == "other") as other,
        Client(other.port, "a", password="other") as there,
        Client(broker.port, "a", password="other") as here,
    ):
        assert (there.code, here.code) == (0, 5)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return establish(tmp_path_factory.mktemp("home"), now=datetime.now(UTC))


def test_messages_over_tls(tls: TlsFiles) -> None:
    payload = os.urandom(98_304)
    with EmbeddedBroker(known, tls=tls) as broker:
        a, coordinator = Client(broker.port, "a"), Client(broker.port, "coordinator")
        for client in (a, coordinator):
            client.paho.tls_set(str(tls.ca))
        with a, coordinator:
            coordinator.subscribe("shoal/v1/d/+/up")
            for _ in range(10):
                a.publish("shoal/v1/d/a/up", payload)
            until(lambda: len(coordinator.received) == 10)
            assert coordinator.received == [("shoal/v1/d/a/up", payload)] * 10
            assert broker.disconnect("a") == 1


def test_strangers_at_the_tls_port(tls: TlsFiles) -> None:
    with EmbeddedBroker(known, tls=tls) as broker:
        distrustful = Client(broker.port, "a")
        distrustful.paho.tls_set()
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            distrustful.__enter__()
        with socket.create_connection(("127.0.0.1", broker.port), 10) as plain:
            plain.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
            assert not plain.recv(100).startswith(b"\x20")
        client = Client(broker.port, "a")
        client.paho.tls_set(str(tls.ca))
        with client:
            assert client.code == 0


def test_unusable_tls_files_are_an_error(tls: TlsFiles, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(BrokerError, match=r"cannot use .*server\.pem with .*key\.pem"):
        EmbeddedBroker(known, tls=TlsFiles(tls.ca, tls.certificate, tmp_path / "key.pem")).start()
    with pytest.raises(BrokerError, match="No such file"):
        EmbeddedBroker(known, tls=TlsFiles(tls.ca, tmp_path / "none.pem", tls.key)).start()
