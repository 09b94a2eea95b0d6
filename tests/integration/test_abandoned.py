"""All devices of a fleet are gone in the middle of a run: it says so, keeps still, and goes on when they are back."""

from __future__ import annotations

import subprocess

from sqlalchemy import func, select

from coordinator.store import models
from tests.integration import accounts
from tests.integration.fleet import RECIPE, SHOAL, Fleet, Server, single_threaded, until

COMPOSED = (
    RECIPE.replace('"fedbuff"\ngoal = 3', '"fedasmu"').replace("lease = 300", "lease = 10").partition("[[policy]]")[0]
    + '[[policy]]\nkind = "whale_fl"\ndelay = 0\nhalf_window = 1\n'
    + '[[policy]]\nkind = "adsp"\nperiod = 1\nshortest = 0.2\nperiods = 4\nwarm_up = 0\n'
)
SENTENCE = "waiting for devices since 20"


def test_a_run_without_devices_waits_for_them_and_goes_on(fleet: Fleet) -> None:
    server = fleet.server
    run = server.start_run(COMPOSED)
    until(lambda: _reason(server, run).startswith(SENTENCE), "the run waits for its first device")
    assert _inputs(server, run) == 0
    for agent in fleet.join():
        agent.run()
    server.advances(run, by=12)
    for agent in fleet.agents:
        agent.kill()
    killed = _newest_event(server)
    until(lambda: _reason(server, run).startswith(SENTENCE), "the run waits for its devices")
    until(lambda: not _open(server), "all leases have run out")
    inputs = _inputs(server, run)
    other = server.start_run()
    until(lambda: _reason(server, other).startswith(SENTENCE), "the steward has looked around some times")
    server.api.post("runs", other, "stop")
    assert _inputs(server, run) == inputs
    shown = subprocess.run([*SHOAL, "run", "show", run], env=_environment(server), capture_output=True, text=True)
    assert f"running ({SENTENCE}" in shown.stdout
    assert _told(server, run, killed).count("run-waiting") <= 1
    back = _newest_event(server)
    for agent in fleet.agents:
        agent.run()
    until(lambda: not _reason(server, run), "the devices are back")
    server.advances(run, by=6)
    assert "run-attended" in _told(server, run, back)
    accounts.check(server, fleet.agents, run)
    server.stop()
    accounts.replay(server.home, run)


def _environment(server: Server) -> dict[str, str]:
    return {**single_threaded(), "SHOAL_HOME": str(server.home)}


def _reason(server: Server, run: str) -> str:
    return str(server.api.get("runs", run)["row"]["reason"])


def _inputs(server: Server, run: str) -> int:
    """What the engine was given, but for measurements of its versions."""
    mine = (models.Input.run_id == run, models.Input.kind != "evaluated")
    with server.database().read() as session:
        return session.scalar(select(func.count()).select_from(models.Input).where(*mine)) or 0


def _open(server: Server) -> int:
    open_ = models.Assignment.state.in_(("offered", "taken"))
    with server.database().read() as session:
        return session.scalar(select(func.count()).select_from(models.Assignment).where(open_)) or 0


def _newest_event(server: Server) -> int:
    with server.database().read() as session:
        return session.scalar(select(func.max(models.Event.seq))) or 0


def _told(server: Server, run: str, since: int) -> list[str]:
    kinds, mine = models.Event.kind.in_(("run-waiting", "run-attended")), models.Event.run_id == run
    with server.database().read() as session:
        return list(session.scalars(select(models.Event.kind).where(kinds, mine, models.Event.seq > since)))
