"""Opening the database: SQLite in WAL mode or PostgreSQL, migrated to the newest revision."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError


class Database:
    """One database. ``read`` sessions may live on any thread; ``write`` belongs to the steward's alone."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _pragmas)
            event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that is rolled back at the end."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back on an exception."""
        with Session(self.engine) as session, session.begin():
            yield session

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
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self.engine.dispose()


def migrations() -> Path:
    """The migrations: beside the packages in a checkout, inside ``coordinator`` in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say: savepoints depend on it
    cursor = connection.cursor()
    # FULL: what the coordinator has acknowledged must survive the plug being pulled.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
