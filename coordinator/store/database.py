"""Opening the database: SQLite in WAL mode or PostgreSQL, migrated to the newest revision."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.hold import HoldLost, Lock, beside


class Database:
    """One database. ``read`` sessions may live on any thread; ``write`` belongs to the steward's alone.

    ``read_only``: nothing can be written through it, and looking at a SQLite file that is not there makes none.
    ShoalError database-unusable for a URL that names no database of ours.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        self.read_only = read_only
        self._lock: Lock | None = None
        self.engine = _engine(url, read_only)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _look if read_only else _pragmas)
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the database for the one coordinator that may write to it; whoever looks is not kept from it.

        ShoalError database-unusable while another holds it. It is let go at the end, or when the process ends; should
        PostgreSQL end the session before that, nothing is written any more, see :meth:`check`.
        """
        taken = ShoalError("database-unusable", f"Another coordinator is using the database {self.shown}")
        with ExitStack() as held:
            try:
                connection = held.enter_context(self.engine.connect())
                if self.engine.dialect.name == "postgresql":
                    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                    connection.detach()  # closing it then closes the session, and with it goes the lock
                    lock = Lock(connection)
                    if not lock.take():
                        raise taken
                    held.callback(lock.close)
                    self._lock = lock
                else:
                    file = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
                    held.close()
                    if file:  # none: it is in memory, and nobody else's anyway
                        held.enter_context(beside(Path(file).resolve(), taken))
            except DBAPIError as error:
                reason = f"The database {self.shown} cannot be used: {error.orig}"
                raise ShoalError("database-unusable", reason) from error
            try:
                yield
            finally:
                self._lock = None

    def check(self) -> None:
        """HoldLost once the hold on the database is lost."""
        if self._lock is not None and not self._lock.held:
            raise HoldLost(self.shown)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that is rolled back at the end."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back on an exception. HoldLost, see :meth:`check`."""
        self.check()
        with Session(self.engine) as session, session.begin():
            yield session
            self.check()

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; a new database gets all of it."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            with self.engine.begin() as connection:
                command.upgrade(_config(connection), "head")
        except DBAPIError as error:
            raise ShoalError("database-unusable", f"The database {self.shown} cannot be used: {error.orig}") from error
        except CommandError as error:
            raise ShoalError(
                "database-unusable", f"The database {self.shown} is of another version: {error}"
            ) from error

    def revision(self) -> tuple[str | None, str | None]:
        """The revision the database has, and the one this program brings."""
        with self.engine.connect() as connection:
            found = None
            if self.engine.dialect.has_table(connection, "alembic_version"):
                found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return found, ScriptDirectory.from_config(_config(connection)).get_current_head()

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return make_url(self.url).render_as_string(hide_password=True)

    def close(self) -> None:
        self.engine.dispose()


def migrations() -> Path:
    """The migrations: beside the packages in a checkout, inside ``coordinator`` in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _engine(url: str, read_only: bool) -> Engine:
    try:
        given = make_url(url)
        kind = given.get_backend_name()
        if kind == "sqlite":
            return create_engine(_existing(given) if read_only else given)
        if kind == "postgresql":
            # UTC, or the same question would have another answer in another country.
            told = ["-c timezone=UTC", *(["-c default_transaction_read_only=on"] if read_only else [])]
            known = given.query.get("options", ())
            options = " ".join([*([known] if isinstance(known, str) else known), *told])
            # As many connections as there are threads that answer requests, and some for the broker's.
            return create_engine(
                given.update_query_dict({"options": options}), pool_pre_ping=True, pool_size=8, max_overflow=16
            )
    except ArgumentError as error:
        raise ShoalError("database-unusable", f"{url[:40]!r} is no URL of a database") from error
    except ModuleNotFoundError as error:
        hint = "pip install 'shoal[postgresql]'" if error.name == "psycopg" else "postgresql+psycopg:// is supported"
        raise ShoalError("database-unusable", f"The driver {error.name} is not installed: {hint}") from error
    raise ShoalError("database-unusable", f"{kind} is not supported, expected sqlite:// or postgresql+psycopg://")


def _existing(given: URL) -> URL:
    """The URL of a SQLite file for looking only."""
    path = Path(given.database or "")
    if not path.is_file():
        raise ShoalError("database-unusable", f"There is no database {path}: make it with `shoal db upgrade`")
    asked = {"mode": "ro", "uri": "true"}
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        asked["immutable"] = "1"  # on a read-only disk: nobody writes, and the log's index cannot be made
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=asked)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _look(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA cache_size=-8192")  # KiB: questions about the past go through all of it


def _pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say: savepoints depend on it
    cursor = connection.cursor()
    # FULL: what the coordinator has acknowledged must survive the plug being pulled.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
