"""Putting the seeds' databases together: one that ``shoal history`` and the pages can show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Table, delete, insert, select

from coordinator.settings import sqlite_url
from coordinator.store import models
from coordinator.store.database import Database
from coordinator.store.models import table_of

CHUNK: Final = 2000

_OWN_KEYS: Final = (models.Update, models.Event)
"""Tables whose keys are counted anew."""
_OF_A_RUN: Final = (
    *(models.Run, models.ModelVersion, models.Assignment, models.Update, models.Metric, models.Snapshot),
    models.Event,
)


def gather(folder: Path, seed: int) -> None:
    """The rows and the last snapshot of a seed, into ``folder``; what was there of the same run goes."""
    home = folder / f"seed-{seed}"
    target, source = Database(sqlite_url(folder / "shoal.db")), Database(sqlite_url(home / "shoal.db"), read_only=True)
    target.upgrade()
    try:
        with source.engine.connect() as reading, target.engine.begin() as writing:
            run = reading.execute(select(table_of(models.Run).c.id)).scalar_one()
            _forget(writing, run)
            model = _model(reading, writing)
            _devices(reading, writing)
            for kind in _OF_A_RUN:
                _copy(reading, writing, table_of(kind), {"model_id": model} if kind is models.Run else {})
            snapshots = table_of(models.Snapshot)
            newest = reading.execute(select(snapshots.c.sha256).order_by(snapshots.c.seq.desc())).scalars().first()
            writing.execute(delete(snapshots).where(snapshots.c.run_id == run, snapshots.c.sha256 != newest))
        if newest is not None:
            place = Path("blobs", newest[:2], newest)
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / place, folder / place)
    finally:
        source.close()
        target.close()


def _forget(writing: Connection, run: str) -> None:
    for kind in reversed(_OF_A_RUN):
        table = table_of(kind)
        writing.execute(delete(table).where((table.c.id if kind is models.Run else table.c.run_id) == run))


def _model(reading: Connection, writing: Connection) -> int:
    """The key that the seed's model has in the target."""
    table = table_of(models.Model)
    row = reading.execute(select(table)).mappings().one()
    known = writing.execute(select(table.c.id).where(table.c.spec_sha256 == row["spec_sha256"])).scalar()
    if known is None:
        values = {name: value for name, value in row.items() if name != "id"}
        return int(writing.execute(insert(table).values(**values)).inserted_primary_key[0])  # type: ignore[index]
    return int(known)


def _devices(reading: Connection, writing: Connection) -> None:
    """Seeds have the same devices by name; each is there once."""
    table = table_of(models.Device)
    there = set(writing.execute(select(table.c.id)).scalars())
    rows = [dict(row) for row in reading.execute(select(table)).mappings() if row["id"] not in there]
    if rows:
        writing.execute(insert(table), rows)


def _copy(reading: Connection, writing: Connection, table: Table, changed: dict[str, int]) -> None:
    own = {"id", "seq"} if any(table is table_of(kind) for kind in _OWN_KEYS) else set()
    rows = reading.execution_options(yield_per=CHUNK).execute(select(table)).mappings()
    for part in rows.partitions():
        values = [{name: value for name, value in row.items() if name not in own} | changed for row in part]
        writing.execute(insert(table), values)
