"""What must be true of a coordinator's books, whatever was killed and whenever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.compiler.spec import ModelSpec
from coordinator.demo.fleet import Agent
from coordinator.settings import sqlite_url
from coordinator.store import models
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.segments import Segments
from coordinator.training import journal
from coordinator.training.inputs import Versioned
from coordinator.training.live import LiveRun
from device_agent import spool
from protocol.weights import digest
from tests.integration.fleet import Server, told


def check(server: Server, agents: list[Agent], run: str) -> Counter[str]:
    """Every update that an agent has finished is in the ledger or still in its spool; every acknowledged one is in the
    ledger; none is there twice; every applied one belongs to exactly one version; nobody has met an error that was not
    foreseen. Returns the outcomes.

    May be called while all goes on: logs are read before spools, and spools before the ledger.
    """
    settled = {assignment for agent in agents for assignment in told(agent, "settled")}
    committed = {assignment for agent in agents for assignment in told(agent, "committed")}
    unsent = {update.assignment for agent in agents for update in spool.peek(agent.home)[1]}
    with server.database().read() as session:
        updates = session.scalars(select(models.Update).where(models.Update.run_id == run)).all()
        versions = session.scalars(select(models.ModelVersion).where(models.ModelVersion.run_id == run)).all()
        row = session.get_one(models.Run, run)
        keys = Counter((update.assignment_id, update.commit) for update in updates)
        ledger = {update.assignment_id for update in updates}
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
    """Recompute a stopped coordinator's run from the first input on: every version comes out with the hash that the
    books have, and so does what a start would recover. Returns the number of versions."""
    database, segments = Database(url or sqlite_url(home / "shoal.db")), Segments(home / "segments")
    with database.read() as session:
        query = select(models.ModelVersion.version, models.ModelVersion.sha256)
        booked = {row.version: row.sha256 for row in session.execute(query.where(models.ModelVersion.run_id == run))}
        fresh = _live(session, home, run)
        computed = {0: digest(fresh.engine.core.weights)}
        inputs = select(models.Input).where(models.Input.run_id == run).order_by(models.Input.seq)
        for row in session.scalars(inputs):
            given = journal.from_row(row.kind, row.body, segments.read)
            for effect in fresh.engine.handle(given, row.at):
                if isinstance(effect, Versioned):
                    computed[effect.version] = digest(fresh.engine.core.weights)
        assert computed == booked
        recovered = _live(session, home, run)
        recovered.recover(session, segments.read)
        assert digest(recovered.engine.core.weights) == booked[max(booked)]
    segments.close()
    database.close()
    return len(booked)


def _live(session: Session, home: Path, run: str) -> LiveRun:
    row = session.get_one(models.Run, run)
    spec = session.get_one(models.Model, row.model_id).spec
    return LiveRun(row, ModelSpec.from_json(spec), None, Blobs(home / "blobs"))
