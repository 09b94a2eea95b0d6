"""Every row of one database into another: SQLite to PostgreSQL, back, or aside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from attrs import frozen
from sqlalchemy import Connection, Integer, Table, func, insert, select, text

from coordinator.errors import ShoalError
from coordinator.store import partitions
from coordinator.store.database import Database
from coordinator.store.models import Base, Telemetry

CHUNK: Final = 2000
"""Rows that are held at a time."""


@frozen
class Fingerprint:
    """How many rows a table has, and a sum over the hashes of all of them, whatever their order."""

    rows: int
    digest: str


def copy(source: Database, target: Database, progress: Callable[[str, int], None]) -> dict[str, Fingerprint]:
    """Copy everything in one transaction of the target, which must hold no rows: a copy that is interrupted leaves it
    as empty as it was. Counts and hashes of every table are compared before the commit. ShoalError conflict for a
    target that is in use, database-unusable for a source of another revision or a copy that differs.

    ``progress`` is told the table and how many of its rows are there.
    """
    found, newest = source.revision()
    if found != newest:
        raise ShoalError("database-unusable", f"The source has revision {found}, expected {newest}: upgrade it first")
    target.upgrade()
    with source.engine.connect() as reading, target.engine.begin() as writing:
        _still(reading)
        _refuse_used(writing, target)
        _make_room(reading, writing)
        sent = {table.name: _copied(reading, writing, table, progress) for table in Base.metadata.sorted_tables}
        for table in Base.metadata.sorted_tables:
            if (arrived := fingerprint(writing, table)) != sent[table.name]:
                detail = f"Table {table.name} arrived as {arrived.rows} rows of {sent[table.name].rows}, or changed"
                raise ShoalError("database-unusable", detail)
        continue_sequences(writing)
    return sent


def fingerprint(connection: Connection, table: Table) -> Fingerprint:
    """What :func:`copy` compares."""
    total = _Total()
    for rows in _chunks(connection, table):
        total.add(rows)
    return total.fingerprint


class _Total:
    def __init__(self) -> None:
        self._rows = 0
        self._sum = 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        self._rows += len(rows)
        for row in rows:
            self._sum += int.from_bytes(hashlib.blake2b(repr(tuple(row)).encode(), digest_size=16).digest())

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._rows, f"{self._sum % (1 << 128):032x}")


def _copied(
    reading: Connection, writing: Connection, table: Table, progress: Callable[[str, int], None]
) -> Fingerprint:
    total = _Total()
    for rows in _chunks(reading, table):
        total.add(rows)
        writing.execute(insert(table), [dict(row._mapping) for row in rows])
        progress(table.name, total.fingerprint.rows)
    return total.fingerprint


def _chunks(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    query = select(table).order_by(*table.primary_key.columns)
    streamed = connection.execution_options(stream_results=True).execute(query)
    yield from streamed.partitions(CHUNK)


def _still(connection: Connection) -> None:
    """All tables as they are at one moment, also while a coordinator goes on."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def _make_room(reading: Connection, writing: Connection) -> None:
    """A partition for every day of the telemetry that is to come, where the target has any."""
    first, last = reading.execute(select(func.min(Telemetry.at), func.max(Telemetry.at))).one()
    if first is not None and partitions.partitioned(writing):
        partitions.cover(writing, first, last)


def _refuse_used(connection: Connection, target: Database) -> None:
    if connection.dialect.name == "postgresql":  # nobody else may begin to use it now
        names = ", ".join(f'"{table}"' for table in Base.metadata.tables)
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table in Base.metadata.sorted_tables:
        if connection.scalar(select(func.count()).select_from(select(table).limit(1).subquery())):
            raise ShoalError("conflict", f"The target {target.shown} is in use: {table.name} has rows already")


def continue_sequences(connection: Connection) -> None:
    """PostgreSQL counts keys by itself: go on behind the last."""
    if connection.dialect.name != "postgresql":
        return
    for table in Base.metadata.sorted_tables:
        keys = list(table.primary_key.columns)
        if len(keys) == 1 and isinstance(keys[0].type, Integer):
            name = connection.dialect.identifier_preparer.quote(table.name)
            behind = select(func.coalesce(func.max(keys[0]), 0) + 1).scalar_subquery()
            sequence = func.pg_get_serial_sequence(name, keys[0].name)
            connection.execute(select(func.setval(sequence, behind, False)))
