"""A coordinator's hold on its database: one writes, and knows when it may not any more."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from coordinator.errors import ShoalError

log = logging.getLogger(__name__)

LOCK: Final = 0x53686F616C
"""The advisory lock of PostgreSQL that a coordinator holds: "Shoal" as a number."""
ASK: Final = 2.0
"""Seconds between two questions whether the lock is still held."""
PATIENCE: Final = 20.0
"""Seconds after which a question without an answer counts as no."""

# A pooler between here and the server may give the question to another session than the lock was taken in.
_MINE = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
    " AND objsubid = 1 AND classid = :high AND objid = :low"
)
_TAKE = text("SELECT pg_try_advisory_lock(:lock)")
_GIVE = text("SELECT pg_advisory_unlock(:lock)")


class HoldLost(ShoalError):
    """Another coordinator may have the database by now: nothing may be written any more."""

    def __init__(self, database: str) -> None:
        super().__init__(
            "database-unusable",
            f"The lock on the database {database} is lost: its session has ended, and another coordinator may have "
            "taken over. This one writes nothing more and stops; start it again once the database answers",
        )


class Lock:
    """PostgreSQL's advisory lock, which lasts as long as the session it was taken in. A thread asks after it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answered = time.monotonic()
        self._lost = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="database-lock", daemon=True)

    def take(self) -> bool:
        """Whether nobody else has it."""
        taken = bool(self._connection.scalar(_TAKE, {"lock": LOCK}))
        if taken:
            self._thread.start()
        return taken

    @property
    def held(self) -> bool:
        return not self._lost and time.monotonic() - self._answered < PATIENCE

    def close(self) -> None:
        """Let it go; the server takes a moment to notice that a session has ended."""
        self._ending.set()
        self._thread.join(ASK)  # one that waits for a server that is gone is left to itself
        if not (self._lost or self._thread.is_alive()):
            with suppress(SQLAlchemyError):
                self._connection.execute(_GIVE, {"lock": LOCK})

    def _watch(self) -> None:
        while not self._ending.wait(ASK):
            try:
                if not self._connection.scalar(_MINE, {"high": LOCK >> 32, "low": LOCK & 0xFFFFFFFF}):
                    raise SQLAlchemyError("this session does not hold it")
            except SQLAlchemyError as error:
                if not self._ending.is_set():
                    self._lost = True
                    log.critical("database-lock-lost cause=%s", getattr(error, "orig", error))
                return
            self._answered = time.monotonic()


def beside(database: Path, taken: ShoalError) -> IO[str]:
    """A lock on a file beside a SQLite file, until it is closed: SQLite's own locks come and go with transactions."""
    path = database.with_name(f"{database.name}.lock")
    try:
        file = open(path, "a")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise ShoalError("database-unusable", f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise taken from error
    return file
