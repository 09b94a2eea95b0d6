"""Agents and coordinator are killed in the middle of things: the run goes on and the books are right."""

from __future__ import annotations

import time

import numpy as np
import pytest
from attrs import evolve
from sqlalchemy import select

from coordinator.store import models
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, told, until

EVERYTHING = RECIPE.replace('"fedbuff"\ngoal = 3', '"fedasmu"').replace('"heterofl"', '"whale_fl"')
EVERYTHING = EVERYTHING.replace('widths = { small = 0.125, middle = 0.5 }', "delay = 0\nhalf_window = 1")


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


@pytest.mark.parametrize("kills", [pytest.param(5, id="few"), pytest.param(100, id="many", marks=pytest.mark.soak)])
def test_what_a_killed_coordinator_recovers_is_an_uninterrupted_replay(fleet: Fleet, kills: int) -> None:
    """Model, version and the state of every part of the recipe; and every update that was acknowledged is in it."""
    server, rng = fleet.server, np.random.default_rng(31)
    for agent in fleet.join():
        agent.run()
    run = server.start_run(EVERYTHING)
    server.advances(run)
    longest = 0.0
    for _ in range(kills):
        time.sleep(rng.uniform(0.0, 1.0))
        server.kill()
        accounts.check(server, fleet.agents, run)
        accounts.replay(server.home, run)
        started = time.monotonic()
        server.start()
        server.advances(run)
        longest = max(longest, time.monotonic() - started)
    print(f"killed {kills} times; from a start to the next version it took {longest:.1f} s at most")


def _taken(fleet: Fleet, device: str) -> str | None:
    """The assignment that a device has begun."""
    with fleet.server.database().read() as session:
        mine = (models.Assignment.device_id == device, models.Assignment.state == "taken")
        return session.scalar(select(models.Assignment.id).where(*mine))


def _changes(fleet: Fleet, device: str) -> list[tuple[str, str]]:
    with fleet.server.database().read() as session:
        rows = select(models.StatusChange.old, models.StatusChange.new).where(models.StatusChange.device_id == device)
        return [(row.old, row.new) for row in session.execute(rows.order_by(models.StatusChange.id))]
