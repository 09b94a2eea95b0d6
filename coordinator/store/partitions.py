"""Telemetry on PostgreSQL lies in one partition for every day (UTC), so that old days are dropped as a whole.

Days are made ahead of time. A heartbeat of a day that was not foreseen goes into the default partition, and moves when
its day is made: nothing is ever refused for want of a partition.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

AHEAD: Final = 2
"""Days beyond today."""
DAY: Final = 86_400.0
PATIENCE: Final = "200ms"
"""How long to wait for those who read: while we wait, heartbeats do."""

_BOUNDS: Final = text(
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = CAST('telemetry' AS regclass) ORDER BY 1"
)
_MOVE: Final = (
    "WITH moved AS (DELETE FROM telemetry_default WHERE at >= :begin AND at < :end RETURNING *)"
    " INSERT INTO {name} SELECT * FROM moved"
)
_OLDEST: Final = text(
    "DELETE FROM telemetry_default WHERE ctid IN"
    " (SELECT ctid FROM telemetry_default WHERE at < :cut ORDER BY at LIMIT :slice)"
)


def partitioned(connection: Connection | Session) -> bool:
    bind = connection if isinstance(connection, Connection) else connection.connection()
    return bind.dialect.name == "postgresql"


def cover(connection: Connection, first: float, last: float) -> int:
    """Make the partitions of all days from ``first`` to ``last`` (seconds since 1970) that are not there; how many."""
    known, made = [(name, bounds) for name, *bounds in _partitions(connection)], 0
    begin = datetime.fromtimestamp(first, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    while begin.timestamp() <= last:
        end = begin + timedelta(days=1)
        if not any(low < end and begin < high for _, (low, high) in known):
            _make(connection, f"telemetry_{begin:%Y%m%d}", begin, end)
            made += 1
        begin = end
    return made


def look_ahead(session: Session, now: float) -> int:
    """Make the partitions of today and the days to come; how many. None if readers are in the way: they go."""
    return _patiently(session, lambda connection: cover(connection, now, now + AHEAD * DAY))


def drop(session: Session, cut: float) -> int:
    """Drop the oldest day if all of it lies before ``cut``; 0 if there is none, or readers are in the way."""
    return _patiently(session, lambda connection: _drop(connection, cut))


def remove(session: Session, cut: float, limit: int) -> int:
    """Remove the oldest ``limit`` heartbeats before ``cut`` that lie in no day; how many."""
    done: Any = session.execute(_OLDEST, {"cut": datetime.fromtimestamp(cut, UTC), "slice": limit})
    return int(done.rowcount)


def _patiently(session: Session, change: Any) -> int:
    """Changes of the table wait for its readers, and everybody then waits for them: better some other time."""
    try:
        with session.begin_nested():
            connection = session.connection()
            connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
            done = int(change(connection))
            connection.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
            return done
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", "") == "55P03":  # lock_not_available
            return 0
        raise


def _drop(connection: Connection, cut: float) -> int:
    ended = [(end, name) for name, _, end in _partitions(connection) if end.timestamp() <= cut]
    if not ended:
        return 0
    connection.execute(text(f"DROP TABLE {min(ended)[1]}"))
    return 1


def _make(connection: Connection, name: str, begin: datetime, end: datetime) -> None:
    """Made apart and then attached: those who read or write telemetry wait for the last step only."""
    connection.execute(text(f"CREATE TABLE {name} (LIKE telemetry INCLUDING DEFAULTS)"))
    connection.execute(text(_MOVE.format(name=name)), {"begin": begin, "end": end})
    within = f"FOR VALUES FROM ('{begin.isoformat()}') TO ('{end.isoformat()}')"
    connection.execute(text(f"ALTER TABLE telemetry ATTACH PARTITION {name} {within}"))


def _partitions(connection: Connection) -> list[tuple[str, datetime, datetime]]:
    """Name, begin and end of every partition but the default."""
    found = []
    for name, bounds in connection.execute(_BOUNDS):
        if given := re.fullmatch(r"FOR VALUES FROM \((.*)\) TO \('(.*)'\)", bounds):
            low, high = given.groups()
            begin = datetime.min.replace(tzinfo=UTC) if low == "MINVALUE" else _moment(low.strip("'"))
            found.append((str(name), begin, _moment(high)))
    return found


def _moment(written: str) -> datetime:
    """``2026-03-31 00:00:00+00``, which Python reads from 3.11 on."""
    return datetime.fromisoformat(written).astimezone(UTC)
