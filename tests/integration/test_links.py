"""Updates over links that are slow, break and come back, and through a broker that is restarted again and again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from benchmarks.shaped_link import Rates, ShapedLink
from coordinator.app import Coordinator
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.demo.fleet import Agent
from coordinator.settings import Settings
from coordinator.store import models
from tests.broker.test_conformance import need_mosquitto
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, Server, mosquitto, named, told, until

TOPK = RECIPE.replace('"int8"', '"topk-0.1"')
RATE = 100_000.0  # bytes/s


def test_over_a_slow_link_that_breaks_every_update_arrives_once(fleet: Fleet) -> None:
    """And little more than the updates travels: what had arrived before a break is not sent again."""
    server = fleet.server
    (agent,) = fleet.join((TIERS[2],))
    with ShapedLink(server.mqtt_port, Rates.steady(RATE), Rates.steady(RATE)) as link:
        _reroute(agent, link.port)
        run = server.start_run(TOPK)
        agent.run()
        until(lambda: named(agent, "settled"), "it delivers")
        link.cut()
        until(lambda: len(named(agent, "settled")) >= 4, "it delivers after the break")
        sent = link.sent[0]
        assert len(link.connections) >= 2
        agent.kill()
    assert accounts.check(server, fleet.agents, run).keys() <= {"stored", "applied"}
    with server.database().read() as session:
        stored = [update.bytes_up for update in session.query(models.Update)]
        beats = session.query(models.Telemetry).count()
    # A beat takes less than 1000 bytes; of what is under way at the end, a window.
    assert sent - 1000 * beats <= 1.1 * (sum(stored) + max(stored))


@pytest.fixture
def together(tmp_path: Path) -> Iterator[tuple[Fleet, EmbeddedBroker]]:
    """A coordinator in this process, so that its broker can be restarted alone."""
    home = tmp_path / "home"
    with ExitStack() as closing:
        settings = Settings(home=home, port=0, mqtt_port=0, tls="off", heartbeat=0.3, broker="embedded")
        coordinator = closing.enter_context(Coordinator(settings))
        server = Server(home)
        server.log.touch()
        broker = coordinator.steward._cut_off.__self__
        assert isinstance(broker, EmbeddedBroker)
        yield Fleet(server, closing), broker


KILLS = [pytest.param(1, id="one"), pytest.param(20, id="many", marks=pytest.mark.soak)]


@pytest.mark.parametrize("kills", KILLS)
def test_restarts_of_the_embedded_broker_lose_nothing(together: tuple[Fleet, EmbeddedBroker], kills: int) -> None:
    fleet, broker = together
    rng = np.random.default_rng(22)

    def restart() -> None:
        broker.stop()
        time.sleep(rng.uniform(0.0, 1.0))
        broker.start()

    _restarts(fleet, restart, kills, rng)


@pytest.mark.parametrize("kills", KILLS)
def test_a_mosquitto_that_is_killed_loses_nothing(tmp_path: Path, kills: int) -> None:
    """The coordinator starts it again."""
    need_mosquitto()
    with ExitStack() as closing:
        server = Server(tmp_path / "home", ("--broker", "mosquitto"))
        closing.callback(server.kill)
        server.start()

        def restart() -> None:
            before = mosquitto(server)
            assert before is not None
            os.kill(before, signal.SIGKILL)
            until(lambda: mosquitto(server) not in (None, before), "the coordinator has started another one")
            until(lambda: _answers(server.mqtt_port), "which answers")

        _restarts(Fleet(server, closing), restart, kills, np.random.default_rng(23))


def _restarts(fleet: Fleet, restart: Callable[[], None], kills: int, rng: np.random.Generator) -> None:
    """Restart the broker of a fleet at work at drawn moments. Prints how long after its return who was connected."""
    for agent in fleet.join(tuple(evolve(tier, pace=3.0) for tier in TIERS)):
        agent.run()
    run = fleet.server.start_run(RECIPE)
    fleet.server.advances(run)
    waits: list[float] = []
    for _ in range(kills):
        time.sleep(rng.uniform(0.0, 0.5))
        before = [told_connected(agent) for agent in fleet.agents]
        restart()
        back = time.time()
        for agent, times in zip(fleet.agents, before, strict=True):
            until(lambda a=agent, t=times: len(told_connected(a)) > len(t), f"{agent.name} is connected again")
            waits.append(told_connected(agent)[len(times)] - back)
        fleet.server.advances(run, by=2)
        assert accounts.check(fleet.server, fleet.agents, run).keys() <= {"stored", "applied"}
    until(lambda: all(told(agent, "settled") for agent in fleet.agents), "every agent has contributed")
    print(f"{kills} restarts; connected again after {np.round(sorted(waits), 2).tolist()} s")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def told_connected(agent: Agent) -> list[float]:
    """When an agent was connected, by its log, in s since 1970."""
    lines = re.findall(r"^(\S+ \S+) INFO connected host=", agent.log.read_text(), re.MULTILINE)
    return [datetime.strptime(line, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp() for line in lines]


def _reroute(agent: Agent, port: int) -> None:
    path = agent.home / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"broker_port": port}))
