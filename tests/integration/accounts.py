"""What must be true of a coordinator's books, whatever was killed and whenever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sqlalchemy import select

from coordinator.compiler.spec import ModelSpec
from coordinator.demo.fleet import Agent
from coordinator.settings import sqlite_url
from coordinator.store import models, segments
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.training.live import LiveRun
from coordinator.training.replay import replay as replayed
from device_agent import spool
from tests.integration.fleet import Server, named


def check(server: Server, agents: list[Agent], run: str) -> Counter[str]:
    """Every update that an agent has finished is in the ledger or still in its spool; every acknowledged one is in the
    ledger; none is there twice; every applied one belongs to exactly one version; nobody has met an error that was not
    foreseen. Returns the outcomes.

    May be called while all goes on: logs are read before spools, and spools before the ledger.
    """
    settled = {key for agent in agents for key in named(agent, "settled")}
    committed = {key for agent in agents for key in named(agent, "committed")}
    unsent = {update.key for agent in agents for update in spool.peek(agent.home)[1]}
    with server.database().read() as session:
        updates = session.scalars(select(models.Update).where(models.Update.run_id == run)).all()
        versions = session.scalars(select(models.ModelVersion).where(models.ModelVersion.run_id == run)).all()
        row = session.get_one(models.Run, run)
        keys = Counter((update.assignment_id, update.commit) for update in updates)
        ledger = {(update.assignment_id, update.commit) for update in updates}
        assert not settled - ledger, "acknowledged, but not in the ledger"
        assert not committed - ledger - unsent, "finished, but neither in the ledger nor in a spool"
        assert set(keys.values()) <= {1}
        assert sorted(version.version for version in versions) == list(range(row.version + 1))
        applied = Counter(update.applied_version for update in updates if update.outcome == "applied")
        assert applied == {version.version: version.updates for version in versions if version.version}
        assert all(update.applied_version is None for update in updates if update.outcome != "applied")
    assert not [log for log in (server.log, *(agent.log for agent in agents)) if "Traceback" in log.read_text()]
    return Counter(update.outcome for update in updates)


def replay(home: Path, run: str, url: str = "") -> int:
    """Recompute a coordinator's run that is not served from the first input on: every version comes out with the hash
    that the books have, and what a start would recover is the same in every bit of its state. Returns the number of
    versions."""
    blobs = Blobs(home / "blobs")
    database = Database(url or sqlite_url(home / "shoal.db"), read_only=True)

    def read(segment: int, offset: int, size: int) -> bytes:
        return segments.read(home / "segments", segment, offset, size)

    with database.read() as session:
        found = replayed(session, blobs, read, run)
        assert found.differs is None
        assert found.compared == found.version
        row = session.get_one(models.Run, run)
        spec = ModelSpec.from_json(session.get_one(models.Model, row.model_id).spec)
        recovered = LiveRun(row, spec, None, blobs)
        recovered.recover(session, read)
        assert recovered.engine.snapshot() == found.snapshot
    database.close()
    return found.version + 1
