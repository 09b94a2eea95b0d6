"""Mosquitto, TLS and real agents: secrets change, commands are obeyed once, devices wait, are copied, and go."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import select

from coordinator.demo.fleet import Agent
from coordinator.store import models
from tests.broker.test_conformance import need_mosquitto
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, Server, clouds, mosquitto, until


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    need_mosquitto()
    with ExitStack() as closing:
        server = Server(tmp_path_factory.mktemp("coordinator"), ("--tls", "on", "--broker", "mosquitto"))
        closing.callback(server.kill)
        server.start()
        fleet = Fleet(server, closing)
        for agent in fleet.join((TIERS[0], TIERS[2])):
            agent.run()
        yield fleet


def asked(server: Server, device: str, kind: str) -> dict[str, str]:
    """The answer to a command."""
    told = server.api.post("devices", device, "commands", body={"kind": kind, "ttl": 60.0})

    def answered() -> dict[str, str] | None:
        row = next(row for row in server.api.get("devices", device, "commands") if row["id"] == told["id"])
        return row if row["state"] != "open" else None

    found: dict[str, str] = until(answered, f"{device} answers {kind}")
    return found


def status(server: Server, device: str) -> str:
    return str(server.api.get("devices", device)["row"]["status"])


def events(server: Server, kind: str) -> list[str]:
    with server.database().read() as session:
        return list(session.scalars(select(models.Event.text).where(models.Event.kind == kind)))


def test_agents_train_through_a_broker_that_is_killed(fleet: Fleet) -> None:
    server = fleet.server
    run = server.start_run(RECIPE.replace("goal = 3", "goal = 2"))
    server.advances(run)
    before = mosquitto(server)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    server.advances(run, by=3)
    assert mosquitto(server) != before
    assert accounts.check(server, fleet.agents, run).keys() <= {"stored", "applied"}
    server.api.post("runs", run, "stop")


def test_a_secret_is_replaced_by_one_that_the_device_makes(fleet: Fleet) -> None:
    server, agent = fleet.server, fleet.agents[0]
    old = json.loads((agent.home / "identity.json").read_text())["secret"]
    assert asked(server, agent.name, "rotate")["state"] == "done"
    new = json.loads((agent.home / "identity.json").read_text())["secret"]
    assert new != old
    assert not (agent.home / "rotation.json").exists()
    assert events(server, "device-rotated") == [f"{agent.name} has a new secret; the one before counts no more"]
    agent.kill()
    agent.run()  # with what is on its disk
    assert asked(server, agent.name, "resume")["state"] == "done"


def test_commands_are_carried_out_once_and_answered(fleet: Fleet) -> None:
    server, agent = fleet.server, fleet.agents[0]
    assert agent.process is not None
    assert "connected host=" in asked(server, agent.name, "collect-logs")["text"]
    assert asked(server, agent.name, "identify")["state"] in ("refused", "failed", "done")
    starts = agent.log.read_text().count(" started device=")
    assert asked(server, agent.name, "restart")["text"] == "the agent was started anew"
    assert agent.process.poll() is None  # the same process id
    assert agent.log.read_text().count(" started device=") == starts + 1
    assert asked(server, agent.name, "pause")["state"] == "done"
    until(lambda: json.loads((agent.home / "status.json").read_text())["state"] == "paused", "it rests")
    assert asked(server, agent.name, "resume")["state"] == "done"


def test_who_joins_with_a_token_for_manual_adoption_gets_no_work_before(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.server
    token = server.api.post("tokens", body={"group": "small", "manual": True, "ttl": 600.0})["token"]
    waiting = _joined(fleet, token, tmp_path / "waiting")
    waiting.run()
    run = server.start_run()
    until(lambda: server.api.get("devices", "waiting")["row"]["last_seen"], "it is heard")
    assert status(server, "waiting") == "pending"
    assert server.api.get("devices", "waiting")["row"]["updates"] == 0
    server.api.post("devices", "waiting", "adopt")
    until(lambda: server.api.get("devices", "waiting")["row"]["updates"], "it works")
    server.api.post("runs", run, "stop")
    waiting.kill()


def test_a_copied_card_is_found_out(fleet: Fleet, tmp_path: Path) -> None:
    """Two boards with one identity are connected at once: the journal says so."""
    server = fleet.server
    one = _joined(fleet, server.token("small"), tmp_path / "copied")
    shutil.copytree(one.home, tmp_path / "twin")
    other = Agent("copied", TIERS[0], tmp_path / "twin")
    fleet.closing.callback(other.kill)
    one.run()
    other.run()
    (sentence,) = until(lambda: events(server, "device-cloned"), "the copy is found out")
    assert sentence.startswith("two agents report as copied (processes ")
    server.api.post("devices", "copied", "revoke")
    for agent in (one, other):
        until(lambda log=agent.log: "broker-refused" in log.read_text(), "neither gets in any more")
        agent.kill()


def test_a_device_that_is_decommissioned_forgets_who_it_is(fleet: Fleet) -> None:
    server, agent = fleet.server, fleet.agents[1]
    assert agent.process is not None
    assert asked(server, agent.name, "decommission")["state"] == "done"
    assert agent.process.wait(20) == 0
    left = {path.name for path in agent.home.iterdir()}
    assert not left & {"identity.json", "authority.pem", "spool.db", "blobs", "commands.json"}
    assert status(server, agent.name) == "revoked"


def test_the_broker_ends_with_a_coordinator_that_is_killed(fleet: Fleet) -> None:
    server = fleet.server
    broker = mosquitto(server)
    server.kill()
    until(lambda: not Path(f"/proc/{broker}").exists(), "the broker has ended")
    server.start()
    assert asked(server, fleet.agents[0].name, "collect-logs")["state"] == "done"


def _joined(fleet: Fleet, token: str, home: Path) -> Agent:
    agent = Agent(home.name, TIERS[0], home)
    fleet.closing.callback(agent.kill)
    data = clouds(home.with_suffix(".npz"), 300, seed=3)
    assert agent.enrol(fleet.server.api.url, token, data).wait(60) == 0, agent.log.read_text()
    return agent
