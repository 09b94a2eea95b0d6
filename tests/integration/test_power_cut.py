"""The plug of an agent is pulled at any moment of a run in which training does not wait."""

from __future__ import annotations

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
