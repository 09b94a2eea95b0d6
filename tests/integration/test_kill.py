"""Agents and coordinator are killed in the middle of things: the run goes on and the books are right."""

from __future__ import annotations

import os
import re
import time

import numpy as np
import pytest
from attrs import evolve
from sqlalchemy import select

from coordinator.demo.fleet import Agent
from coordinator.store import models
from tests.integration import accounts
from tests.integration.fleet import TIERS, Fleet, Server, named, told, until

SOAK = os.environ.get("SHOAL_SOAK") == "1"


def test_an_agent_that_was_killed_takes_up_the_assignment_it_held(fleet: Fleet) -> None:
    slow = evolve(TIERS[0], pace=400.0)  # seconds of training: it is killed in its middle
    victim, *others = fleet.join((slow, *TIERS[1:]))
    run = fleet.server.start_run()
    for agent in (victim, *others):
        agent.run()
    held = until(lambda: _taken(fleet, "small-board"), "the slow board trains")
    victim.kill()
    fleet.server.advances(run)
    until(lambda: ("training", "late") in _changes(fleet, "small-board"), "the silent board is late")
    victim.run()
    until(lambda: held in told(victim, "settled"), "the held assignment is finished")
    assert told(victim, "assigned").count(held) == 2
    assert told(victim, "committed").count(held) == 1
    assert accounts.check(fleet.server, fleet.agents, run).keys() <= {"stored", "applied"}
    changes = _changes(fleet, "small-board")
    assert changes[0] == ("new", "training") or changes[:2] == [("new", "idle"), ("idle", "training")]
    assert {("late", "training"), ("offline", "training")} & set(changes)


def test_a_coordinator_that_was_killed_goes_on_where_its_last_commit_was(fleet: Fleet) -> None:
    server = fleet.server
    for agent in fleet.join():
        agent.run()
    run = server.start_run()
    server.advances(run, by=3)
    server.kill()
    before = accounts.check(server, fleet.agents, run)
    server.start()
    assert server.version(run) >= before["applied"] // 3
    server.advances(run, by=3)
    with server.database().read() as session:
        events = session.scalars(select(models.Event).where(models.Event.kind == "run-recovered")).all()
        assert [event.text.split(" at version ")[0] for event in events] == [f"{run} goes on"]
    assert accounts.check(server, fleet.agents, run)["applied"] > before["applied"]
    server.stop()
    assert accounts.replay(server.home, run) > 6


@pytest.mark.parametrize("kills", [pytest.param(3, id="few"), pytest.param(40, id="many", marks=pytest.mark.soak)])
def test_killing_either_side_at_any_moment_loses_nothing(fleet: Fleet, kills: int) -> None:
    server, rng = fleet.server, np.random.default_rng(20)
    for agent in fleet.join():
        agent.run()
    run = server.start_run()
    server.advances(run)
    for number in range(kills):
        agent = fleet.agents[rng.integers(len(fleet.agents))]
        kill, revive = (server.kill, server.start) if number % 2 else (agent.kill, agent.run)
        time.sleep(rng.uniform(0.0, 1.0))
        kill()
        time.sleep(rng.uniform(0.0, 0.5))
        revive()
        server.advances(run, by=2)
        assert accounts.check(server, fleet.agents, run).keys() <= {"stored", "applied"}
    until(lambda: all(told(agent, "settled") for agent in fleet.agents), "every agent has contributed")
    server.stop()
    assert accounts.replay(server.home, run) > 2 * kills


CONTINUOUS = """
name = "continuous"
[plan]
batch = 16
steps = 30
commits = 4
momentum = 0.5
learning_rate = 0.02
coding = "int8"
lease = 300
[aggregator]
kind = "fedbuff"
goal = 2
max_staleness = 1000
"""
MOMENTS = ("connected", "assigned", "saved", "committed", "settled", "resumed")


@pytest.mark.parametrize("kills", [pytest.param(10, id="ten"), pytest.param(200, id="many", marks=pytest.mark.soak)])
def test_an_agent_that_is_killed_at_any_moment_commits_everything_once(fleet: Fleet, kills: int) -> None:
    server, rng = fleet.server, np.random.default_rng(21)
    (agent,) = fleet.join((evolve(TIERS[2], pace=2.0),))
    with open(agent.home / "agent.toml", "a") as settings:
        settings.write('\ncheckpoint_seconds = 0.05\nlog_level = "debug"\n')
    run = server.start_run(CONTINUOUS)
    for number in range(kills):
        agent.run()
        _reaches(agent, MOMENTS[number % len(MOMENTS)], patience=rng.uniform(1.0, 4.0))
        time.sleep(rng.uniform(0.0, 0.15))
        agent.kill()
    agent.run()
    done = len(named(agent, "settled"))
    until(lambda: len(named(agent, "settled")) >= done + 8, "it goes on")
    agent.kill()
    outcomes = accounts.check(server, fleet.agents, run)
    assert outcomes.keys() <= {"stored", "applied"}
    assert not re.search(r"spool-damaged|update-replaced|training-failed", agent.log.read_text())
    assert told(agent, "resumed"), "at least once it went on from a checkpoint"
    keys = named(agent, "committed")
    assert len(keys) == len(set(keys))
    _commits_follow_each_other(server, run)
    server.stop()
    assert accounts.replay(server.home, run) > 2


def _reaches(agent: Agent, moment: str, patience: float) -> None:
    """Wait for the agent's next line of a kind, but no longer than ``patience`` seconds."""
    deadline, lines = time.monotonic() + patience, agent.log.read_text(errors="replace").count(f" {moment} ")
    while time.monotonic() < deadline and agent.log.read_text(errors="replace").count(f" {moment} ") <= lines:
        time.sleep(0.01)


def _commits_follow_each_other(server: Server, run: str) -> None:
    """The ledger has the commits of every assignment from the first on, without a gap, in the order of their coming."""
    with server.database().read() as session:
        rows = session.execute(
            select(models.Update.assignment_id, models.Update.commit)
            .where(models.Update.run_id == run)
            .order_by(models.Update.at)
        )
        commits: dict[str, list[int]] = {}
        for assignment, commit in rows:
            commits.setdefault(assignment, []).append(commit)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in commits.values())
    assert max(map(len, commits.values())) == 4


def _taken(fleet: Fleet, device: str) -> str | None:
    """The assignment that a device has begun."""
    with fleet.server.database().read() as session:
        mine = (models.Assignment.device_id == device, models.Assignment.state == "taken")
        return session.scalar(select(models.Assignment.id).where(*mine))


def _changes(fleet: Fleet, device: str) -> list[tuple[str, str]]:
    with fleet.server.database().read() as session:
        rows = select(models.StatusChange.old, models.StatusChange.new).where(models.StatusChange.device_id == device)
        return [(row.old, row.new) for row in session.execute(rows.order_by(models.StatusChange.id))]
