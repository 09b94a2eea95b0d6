"""Every driver holds the same rules: who gets in, what passes, what a revocation ends, what a restart loses."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from coordinator.broker import breakout
from coordinator.broker.access import COORDINATOR
from coordinator.broker.breakout import escapes
from coordinator.broker.driver import AddressInUse, BrokerError, Door, Driver
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.broker.external import External, acl
from coordinator.broker.listening import free_port, reachable
from coordinator.broker.mosquitto import Mosquitto, installed, program
from coordinator.broker.security import CONTROL, verifier
from coordinator.fleet.authority import TlsFiles, establish
from tests.broker.client import Client, until

DRIVERS = ("embedded", "mosquitto", "mosquitto+tls", "external")


@define
class House:
    """A broker, and the devices that may come in: what the device table would say."""

    driver: Driver
    secrets: dict[str, str] = field(factory=dict)
    stop_broker: Callable[[], None] = lambda: None
    start_broker: Callable[[], None] = lambda: None

    def enrol(self, device: str) -> None:
        self.secrets[device] = f"pw-of-{device}"
        self.driver.admit(device, self.secrets[device])

    def revoke(self, device: str) -> None:
        del self.secrets[device]
        self.driver.shut_out(device)

    def client(self, user: str, **options: Any) -> Client:
        door = self.driver.door
        options.setdefault("password", door.password if user == COORDINATOR else f"pw-of-{user}")
        client = Client(door.port, user, **options)
        if door.ca is not None:
            client.paho.tls_set(str(door.ca))
        return client


def need_mosquitto() -> None:
    if not installed():
        missing = "Mosquitto is not installed (apt-get install mosquitto)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


@contextmanager
def open_house(kind: str, folder: Path) -> Iterator[House]:
    secrets: dict[str, str] = {}
    with ExitStack() as closing:
        if kind == "embedded":
            embedded = EmbeddedBroker(
                lambda user, password, _: (secrets | {COORDINATOR: "c"}).get(user) == password, password="c"
            )
            house = House(embedded, secrets, embedded.stop, embedded.start)
        else:
            need_mosquitto()
            tls = establish(folder, now=datetime.now(UTC)) if kind.endswith("tls") else None
            house = _mosquitto(folder, secrets, tls)
        house.driver.start()
        closing.callback(house.driver.stop)
        if kind == "external":
            house = _external(house)
            house.driver.start()
            closing.callback(house.driver.stop)
        yield house


def _mosquitto(folder: Path, secrets: dict[str, str], tls: TlsFiles | None) -> House:
    broker = Mosquitto(folder / "mosquitto", lambda: [(d, verifier(s)) for d, s in secrets.items()], tls=tls)

    def kill() -> None:
        assert broker.pid is not None
        os.kill(broker.pid, 9)

    return House(broker, secrets, kill, lambda: None)


def _external(inner: House) -> House:
    """Somebody else's Mosquitto: here its operator has one account that may do what both of ours may."""
    broker = inner.driver
    assert isinstance(broker, Mosquitto)
    control = broker._control
    assert control is not None
    roles = [{"rolename": CONTROL}]
    control._ask({"command": "modifyClient", "username": COORDINATOR, "roles": [{"rolename": COORDINATOR}, *roles]})
    door = broker.door
    url = f"mqtt://127.0.0.1:{door.port}"
    outside = External(url, door.user, door.password, ca=None, devices=lambda: inner.secrets)
    return House(outside, inner.secrets)


@pytest.fixture(params=DRIVERS)
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    with open_house(request.param, tmp_path) as house:
        house.enrol("pi-1")
        yield house


def test_the_right_password_gets_in_and_nothing_else_does(house: House) -> None:
    for user, password, code in (
        ("pi-1", "pw-of-pi-1", 0),
        ("pi-1", "wrong", 5),
        ("pi-1", "", 5),
        ("pi-2", "pw-of-pi-2", 5),
        (COORDINATOR, "", 5),
        (CONTROL, "", 5),
    ):
        with house.client(user, password=password) as client:
            assert client.code == code, (user, password)


def test_a_device_cannot_break_out_of_its_topics(house: House) -> None:
    house.enrol("pi-1-2")  # the neighbour whose name begins alike
    assert escapes(house.driver.door, "pi-1", "pw-of-pi-1") == []


def test_messages_pass_both_ways_and_each_device_hears_only_its_own(house: House) -> None:
    house.enrol("pi-2")
    with house.client(COORDINATOR) as hub, house.client("pi-1") as one, house.client("pi-2") as two:
        hub.subscribe("shoal/v1/d/+/update")
        payload = os.urandom(120_000)
        for client, device in ((one, "pi-1"), (two, "pi-2")):
            assert client.subscribe(f"shoal/v1/d/{device}/receipt", "shoal/v1/coordinator/status") == [1, 1]
        one.publish("shoal/v1/d/pi-1/update", payload)
        hub.publish("shoal/v1/d/pi-2/receipt", b"two")
        hub.publish("shoal/v1/d/pi-1/receipt", b"one")
        hub.publish("shoal/v1/coordinator/status", b"here")
        until(lambda: hub.received and len(one.received) == len(two.received) == 2)
        assert hub.received == [("shoal/v1/d/pi-1/update", payload)]
        assert sorted(one.received) == [("shoal/v1/coordinator/status", b"here"), ("shoal/v1/d/pi-1/receipt", b"one")]
        assert [message for message in two.received if message[1] == b"one"] == []


def test_revocation_ends_the_live_session_and_nobody_elses(house: House, record_property: Any) -> None:
    house.enrol("pi-2")
    with house.client("pi-1", reconnect_on_failure=False) as one, house.client("pi-2") as two:
        begun = time.perf_counter()
        house.revoke("pi-1")
        assert one.disconnected.wait(10)
        took = time.perf_counter() - begun
        record_property("seconds", round(took, 4))
        print(f"\nrevocation ended the session after {1000 * took:.1f} ms")
        assert not two.disconnected.is_set()
    with house.client("pi-1") as again:
        assert again.code == 5


def test_a_new_secret_replaces_the_old_one(house: House) -> None:
    if isinstance(house.driver, EmbeddedBroker):
        house.secrets["pi-1"] = "another"
    house.driver.admit("pi-1", "another")
    house.secrets["pi-1"] = "another"
    for password, code in (("another", 0), ("pw-of-pi-1", 5)):
        with house.client("pi-1", password=password) as client:
            assert client.code == code


@pytest.mark.parametrize("kind", ["embedded", "mosquitto", "mosquitto+tls"])
def test_a_broker_that_was_killed_comes_back_with_the_same_port_and_accounts(kind: str, tmp_path: Path) -> None:
    with open_house(kind, tmp_path) as house:
        house.enrol("pi-1")
        house.enrol("pi-2")
        port = house.driver.door.port
        with house.client("pi-1") as one:
            del house.secrets["pi-2"]  # revoked while the broker was away
            house.stop_broker()
            assert one.disconnected.wait(10)
            house.start_broker()
            until(lambda: one.paho.is_connected())
        assert house.driver.door.port == port
        with house.client("pi-2") as two:
            assert two.code == 5
        house.enrol("pi-3")
        with house.client("pi-3") as three:
            assert three.code == 0


def test_mosquitto_says_who_is_in_the_way(tmp_path: Path) -> None:
    need_mosquitto()
    with (
        EmbeddedBroker(lambda *_: False) as other,
        pytest.raises(AddressInUse, match=rf"cannot listen on 127.0.0.1 port {other.port}: .*in use\.$"),
    ):
        Mosquitto(tmp_path / "m", list, port=other.port).start()


def test_mosquitto_says_why_it_does_not_start(tmp_path: Path) -> None:
    need_mosquitto()
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")
    with pytest.raises(BrokerError, match=r"cannot use .*nothing\.pem"):
        Mosquitto(tmp_path / "m", list, tls=TlsFiles(nothing, nothing, nothing)).start()

    def away() -> list[tuple[str, str]]:
        raise OSError("the database is away")

    with pytest.raises(BrokerError, match="Mosquitto does not start: the database is away"):
        Mosquitto(tmp_path / "m", away).start()


def test_its_files_are_for_the_owner_alone_and_hold_no_secret(tmp_path: Path) -> None:
    with open_house("mosquitto", tmp_path) as house:
        house.enrol("pi-1")
        for path in (tmp_path / "mosquitto").iterdir():
            assert path.stat().st_mode & 0o077 == 0
            assert "pw-of-pi-1" not in path.read_text()
            assert house.driver.door.password not in path.read_text()


class TestOutside:
    """A broker that somebody else runs is tried before it is trusted."""

    def test_one_that_confines_nobody_is_refused(self, tmp_path: Path) -> None:
        """Any account may do anything: a Mosquitto with a password file and no rules."""
        with (
            _plain(tmp_path, rules=None) as door,
            pytest.raises(BrokerError, match="does not keep devices to their topics") as refused,
        ):
            _own(door).start()
        assert "it may publish to shoal/v1/coordinator/status" in str(refused.value)
        assert "it hears shoal/v1/d/shoal-probe-2/assignment" in str(refused.value)

    def test_one_with_the_printed_rules_is_taken(self, tmp_path: Path) -> None:
        with _plain(tmp_path, rules=acl("mosquitto")) as door:
            outside = _own(door)
            outside.start()
            outside.stop()

    def test_one_that_is_not_there_is_told_of(self) -> None:
        with pytest.raises(BrokerError, match=r"no broker at 127\.0\.0\.1"):
            External("mqtt://127.0.0.1:9", "coordinator", "x", ca=None, devices=list).start()

    def test_accounts_of_devices_revoked_meanwhile_are_removed(self, tmp_path: Path) -> None:
        with open_house("external", tmp_path) as house:
            house.enrol("pi-1")
            house.enrol("pi-2")
            del house.secrets["pi-2"]
            house.driver.stop()
            house.driver.start()
            for device, code in (("pi-1", 0), ("pi-2", 5)):
                with house.client(device) as client:
                    assert client.code == code


def _own(door: Door) -> External:
    url = f"mqtt://{door.host}:{door.port}"
    return External(url, door.user, door.password, ca=None, devices=list, accounts="own", probe="pw-of-probe")


@contextmanager
def _plain(folder: Path, rules: str | None) -> Iterator[Door]:
    """A Mosquitto that no coordinator has configured."""
    need_mosquitto()
    port = free_port("127.0.0.1")
    (folder / "passwords").write_text(f"coordinator:{verifier('c')}\n{breakout.PROBE}:{verifier('pw-of-probe')}\n")
    lines = [f"listener {port} 127.0.0.1", f"password_file {folder}/passwords", "allow_anonymous false"]
    lines.append(f"user {getpass.getuser()}")
    if rules:
        (folder / "acl").write_text(rules)
        lines.append(f"acl_file {folder}/acl")
    (folder / "conf").write_text("\n".join(lines) + "\n")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([str(program()), "-c", str(folder / "conf")], stdout=log, stderr=log)
    try:
        until(lambda: reachable("127.0.0.1", port))
        yield Door("127.0.0.1", port, "coordinator", "c")
    finally:
        process.kill()
        process.wait()
