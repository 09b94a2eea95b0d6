"""The connection to a broker that is not there yet, or that the clock stands against."""

from __future__ import annotations

import queue
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from coordinator.broker.embedded import EmbeddedBroker
from coordinator.fleet import authority
from device_agent.link import Broker, Denied, Down, Link, Up


@pytest.mark.parametrize(
    ("days", "sentence"),
    [(2, None), (-2, None), (400, None), (-4000, "certificate has expired")],
)
def test_a_clock_that_is_behind_is_borne_and_one_years_ahead_is_the_cause(
    tmp_path: Path, days: int, sentence: str | None
) -> None:
    """As if this machine's clock were so many days behind the certificates. A clock from before the
    authority was made, as of a board without a battery, says nothing about dates."""
    other = authority.establish(tmp_path / "other", {"127.0.0.1"}, now=datetime.now(UTC) + timedelta(days=days))
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    with EmbeddedBroker(lambda *_: True, tls=other) as broker:
        place = Broker("127.0.0.1", broker.port, True, other.ca, "pi-1", "secret")
        link = Link(place, "boot", Random(0), told.put)
        link.open()
        first = told.get(timeout=20)
        link.close()
    if sentence is None:
        assert isinstance(first, Up)
    else:
        assert isinstance(first, Down)
        assert sentence in (first.cause or "")


def test_it_goes_on_trying_until_the_broker_is_there(tmp_path: Path) -> None:
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    broker = EmbeddedBroker(lambda *_: True)
    with broker:
        port = broker.port
    link = Link(Broker("127.0.0.1", port, False, None, "pi-1", "secret"), "boot", Random(0), told.put)
    link.open()
    assert isinstance(told.get(timeout=20), Down)
    with broker:
        deadline = time.monotonic() + 40
        while not isinstance(told.get(timeout=40), Up):
            assert time.monotonic() < deadline
        link.close()


def test_whom_the_broker_refuses_appeals_and_gets_in_once_the_broker_was_told() -> None:
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    known: list[str] = []
    with EmbeddedBroker(lambda user, *_: user in known) as broker:
        place = Broker("127.0.0.1", broker.port, False, None, "pi-1", "secret")
        link = Link(place, "boot", Random(0), told.put, lambda: known.append("pi-1"))
        link.open()
        heard = [told.get(timeout=20)]
        while not isinstance(heard[-1], Up):
            heard.append(told.get(timeout=20))
        link.close()
    assert isinstance(heard[0], Denied)
    assert known == ["pi-1"]
