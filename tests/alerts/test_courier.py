"""Couriers: what happened arrives once, through failures and restarts, and storms arrive as one."""

from __future__ import annotations

import json
import logging

import pytest

from coordinator.alerts.channels import channels
from coordinator.alerts.courier import Courier, couriers
from coordinator.alerts.notice import FIRST_WAIT
from coordinator.alerts.rules import Rules
from coordinator.store.models import Alert, AlertChannel, Event
from tests.alerts.servers import hook
from tests.conftest import BACKENDS
from tests.coordinator.people import DirectCommands, add_device


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def server():
    with hook() as server:
        yield server


@pytest.fixture
def rules(server):
    return Rules(webhooks=(server.url,), gather=30.0, quiet=600.0)


@pytest.fixture
def start(rules, database, clock):
    """A courier as it is after a start of the coordinator."""

    def start() -> Courier:
        (channel,) = channels(rules)
        return Courier(channel, rules, database, DirectCommands(database, clock), clock)

    return start


@pytest.fixture
def happens(database, clock):
    """Something happens to some devices."""
    known: set[str] = set()

    def happens(kind: str, *devices: str) -> None:
        with database.write() as session:
            for device in devices:
                if device not in known:
                    add_device(session, device)
                known.add(device)
                session.add(Event(at=clock(), kind=kind, device_id=device, text=f"{device}: {kind}"))

    return happens


def texts(server):
    return [json.loads(body)["text"] for _, body in server.got]


def test_what_happened_before_there_were_alerts_is_not_told(start, happens, clock, server):
    happens("device-late", "pico")
    courier = start()
    courier.look()
    clock.later(60)
    happens("device-enrolled", "tre")
    happens("device-late", "tre")
    clock.later(30)
    courier.look()
    assert texts(server) == ["tre: device-late"]


def test_a_storm_is_one_message(start, happens, clock, server, database):
    courier = start()
    courier.look()
    for second in range(10):
        happens("device-late", *(f"pi-{second}-{number:02}" for number in range(50)))
        clock.later(1)
        courier.look()
    assert server.got == [], "it waits for more"
    clock.later(20)
    courier.look()
    courier.look()
    assert [text[:20] for text in texts(server)] == ["500 devices late: pi"]
    with database.read() as session:
        (row,) = session.query(Alert).all()
    assert (row.count, len(row.subjects)) == (500, 500)


def test_after_a_restart_it_goes_on_where_it_was(start, happens, clock, server):
    start().look()
    happens("device-late", "pico")
    clock.later(30)
    start().look()
    clock.later(60)
    happens("device-late", "pico")
    happens("device-cloned", "pico")
    clock.later(30)
    start().look()
    assert texts(server) == ["pico: device-late", "pico: device-cloned"], "late again within the quiet time is no news"


def test_what_cannot_be_delivered_is_tried_later_and_later_with_all_that_came_meanwhile(
    start, happens, clock, server, database, caplog
):
    courier = start()
    courier.look()
    happens("device-late", "pico")
    clock.later(30)
    server.answers = [500, 503]
    with caplog.at_level(logging.DEBUG):
        courier.look()
        courier.look()
        assert len(server.got) == 1, "not before its time"
        with database.read() as session:
            (row,) = session.query(AlertChannel).all()
            assert (row.attempts, "answered with 500" in row.error) == (1, True)
            assert FIRST_WAIT / 2 <= row.next_at - clock() <= FIRST_WAIT
        clock.later(FIRST_WAIT)
        happens("device-late", "tre")
        start().look()
        clock.later(2 * FIRST_WAIT)
        courier = start()
        courier.look()
    assert texts(server) == ["pico: device-late", "2 devices late: pico, tre", "2 devices late: pico, tre"]
    assert {headers["X-Shoal-Delivery"] for headers, _ in server.got} == {"1"}, "known by its id"
    assert "swordfish" not in caplog.text
    with database.read() as session:
        (row,) = session.query(AlertChannel).all()
    assert (row.attempts, row.error, row.next_at) == (0, "", None)


def test_its_thread_delivers_and_ends(rules, database, clock, happens, server, monkeypatch):
    monkeypatch.setattr("coordinator.alerts.courier.LOOK", 0.01)
    (courier,) = couriers(rules, database, DirectCommands(database, clock), clock)
    courier.look()
    happens("device-revoked", "pico")
    clock.later(30)
    courier.start()
    while not server.got:
        courier.join(0.01)
    courier.stop()
    assert not courier.is_alive()
    assert texts(server) == ["pico: device-revoked"]
