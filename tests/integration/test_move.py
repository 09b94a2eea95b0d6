"""A fleet moves from SQLite to PostgreSQL while its devices are paused, and goes on where it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from sqlalchemy import select

from coordinator.settings import sqlite_url
from coordinator.store import copying, models
from coordinator.store.database import Database
from tests.integration import accounts
from tests.integration.fleet import SHOAL, Fleet, single_threaded, until


def test_a_paused_fleet_moves_to_postgresql_and_goes_on(fleet: Fleet, new_database: Callable[..., str]) -> None:
    server, target = fleet.server, new_database("postgresql", migrated=False)
    for agent in fleet.join():
        agent.run()
    run = server.start_run()
    server.advances(run, by=3)
    for agent in fleet.agents:
        server.api.post("devices", agent.name, "pause")
    until(lambda: not _open(fleet), "what the devices had begun is delivered")
    server.stop()
    before = accounts.check(server, fleet.agents, run)

    copied = _shoal(fleet, "db", "copy", "--to", target)
    assert copied.returncode == 0, copied.stderr
    assert "with equal hashes" in copied.stdout
    assert _prints(sqlite_url(server.home / "shoal.db")) == _prints(target)

    server.url = target
    server.start()
    assert accounts.check(server, fleet.agents, run) == before
    version = server.version(run)
    for agent in fleet.agents:
        server.api.post("devices", agent.name, "resume")
    server.advances(run, by=3)
    assert accounts.check(server, fleet.agents, run)["applied"] > before["applied"]
    server.stop()
    assert accounts.replay(server.home, run, target) > version + 3


def _open(fleet: Fleet) -> list[str]:
    with fleet.server.database().read() as session:
        going = models.Assignment.state.in_(("offered", "taken"))
        return list(session.scalars(select(models.Assignment.id).where(going)))


def _shoal(fleet: Fleet, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*SHOAL, *words, "--home", str(fleet.server.home)]
    return subprocess.run(command, env=single_threaded(), capture_output=True, text=True, timeout=60)


def _prints(url: str) -> dict[str, copying.Fingerprint]:
    database = Database(url, read_only=True)
    with database.engine.connect() as connection:
        found = {table.name: copying.fingerprint(connection, table) for table in models.Base.metadata.sorted_tables}
    database.close()
    return found
