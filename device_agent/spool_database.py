"""The spool's database: its tables, and what can be wrong with its file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import HomeError, SpoolError

VERSION = 3

_SCHEMA = """
CREATE TABLE assignment (number INTEGER PRIMARY KEY CHECK (number = 1), text BLOB NOT NULL);
CREATE TABLE outgoing (
    number INTEGER PRIMARY KEY, assignment TEXT NOT NULL, commit_number INTEGER NOT NULL, run TEXT NOT NULL,
    header BLOB NOT NULL, region TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (assignment, commit_number)
);
CREATE TABLE residual (number INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, tensors BLOB NOT NULL);
CREATE TABLE event (number INTEGER PRIMARY KEY, text BLOB NOT NULL);
CREATE TABLE finished (number INTEGER PRIMARY KEY, assignment TEXT NOT NULL UNIQUE);
"""
_CHECKPOINT = """
CREATE TABLE checkpoint (
    number INTEGER PRIMARY KEY CHECK (number = 1), assignment TEXT NOT NULL, commits INTEGER NOT NULL,
    bytes INTEGER NOT NULL, text BLOB NOT NULL
);
"""
_FILES = """
ALTER TABLE outgoing ADD COLUMN file BLOB;
ALTER TABLE residual ADD COLUMN file BLOB;
ALTER TABLE residual ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE residual SET bytes = LENGTH(tensors);
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def opened(path: Path) -> sqlite3.Connection | None:
    """A checked connection, None if the file is damaged."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        os.chmod(path, 0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -256")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            connection.close()
            return None
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        steps = (_SCHEMA, _CHECKPOINT, _FILES)[version:]
        if version < VERSION:
            connection.executescript(f"BEGIN IMMEDIATE;{''.join(steps)}PRAGMA user_version = {VERSION};COMMIT;")
        elif version != VERSION:
            raise HomeError(
                f"{path} was written by a newer agent (format {version}, this one knows {VERSION})"
            )
        return connection
    except sqlite3.DatabaseError as error:
        connection.close()
        if _code(error) in _DAMAGED:
            return None
        raise
    except BaseException:
        connection.close()
        raise


def moved_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"spool.corrupt-{number}")).exists():
        number += 1
    path.replace(aside)
    for ending in ("-wal", "-shm"):  # they belong to the damaged file and must not meet the fresh one
        leftover = path.with_name(path.name + ending)
        if leftover.exists():
            leftover.replace(aside.with_name(aside.name + ending))
    return aside


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def clearly(path: Path) -> Iterator[None]:
    """What SQLite and the disk complain about, as a SpoolError."""
    try:
        yield
    except sqlite3.Error as error:
        causes = {
            sqlite3.SQLITE_FULL: "the disk is full",
            sqlite3.SQLITE_READONLY: "it is read-only",
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
            sqlite3.SQLITE_IOERR: "the disk fails",
            sqlite3.SQLITE_BUSY: "another process keeps it locked",
        }
        cause = causes.get(_code(error), "SQLite gave up")
        raise SpoolError(f"the spool {path} cannot be used: {cause} ({error})") from error
    except OSError as error:
        raise SpoolError(f"the spool {path} cannot be used: {error.strerror}") from error
