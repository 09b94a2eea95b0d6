"""``shoal db``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from sqlalchemy import URL, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator import settings
from coordinator.cli.client import home_option
from coordinator.cli.output import facts, json_option, print_json
from coordinator.errors import ShoalError
from coordinator.store.database import Database
from coordinator.store.models import Base


@click.group
def db() -> None:
    """Check and upgrade the database.

    \b
    Example:
      shoal db check
    """


@db.command
@home_option
def upgrade(home: Path | None) -> None:
    """Bring the database to the newest revision; makes it if there is none. `shoal serve` does this by itself.

    \b
    Example:
      shoal db upgrade
    """
    given = settings.load({"home": home})
    if not given.database:
        given.home.mkdir(parents=True, exist_ok=True)
    database = Database(given.database_url)
    try:
        database.upgrade()
        click.echo(f"{database.shown} has revision {database.revision()[0]}.")
    finally:
        database.close()


@db.command
@home_option
@json_option
def check(home: Path | None, as_json: bool) -> None:
    """Check the database: its revision, its integrity, and how much it holds. Exit code 1 if something is wrong.

    \b
    Example:
      shoal db check --json
    """
    where = make_url(settings.load({"home": home}).database_url).render_as_string(hide_password=True)
    with opened(home) as database:
        found = {"database": where, **_check(database)}
    if as_json:
        print_json(found)
    else:
        facts([(name, value) for name, value in found.items() if name != "rows"])
        facts([(f"rows of {name}", count) for name, count in found["rows"].items()])
    if found["integrity"] != "ok" or found["revision"] != found["newest"]:
        raise click.exceptions.Exit(1)


@db.command
@home_option
def path(home: Path | None) -> None:
    """Print where the database is.

    \b
    Example:
      sqlite3 "$(shoal db path)"
    """
    url = make_url(settings.load({"home": home}).database_url)
    click.echo(url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True))


@contextmanager
def opened(home: Path | None) -> Iterator[Database]:
    """The database for reading only, also while a coordinator writes to it; ShoalError database-unusable."""
    database = Database(_read_only(settings.load({"home": home}).database_url))
    try:
        yield database
    except DBAPIError as error:
        raise ShoalError("database-unusable", f"The database cannot be read: {error.orig}") from error
    finally:
        database.close()


def _read_only(url: str) -> str:
    given = make_url(url)
    if given.get_backend_name() != "sqlite" or given.database is None:
        return url
    if not Path(given.database).is_file():
        raise ShoalError("database-unusable", f"There is no database {given.database}: make it with `shoal db upgrade`")
    uri = f"file:{quote(str(Path(given.database).absolute()))}"
    return URL.create("sqlite", database=uri, query={"mode": "ro", "uri": "true"}).render_as_string()


def _check(database: Database) -> dict[str, Any]:
    revision, newest = database.revision()
    found: dict[str, Any] = {"revision": revision, "newest": newest}
    with database.read() as session:
        found["integrity"] = _integrity(session)
        found["rows"] = _counts(session) if revision == newest else {}
    return found


def _integrity(session: Session) -> str:
    if session.get_bind().dialect.name != "sqlite":
        return "ok"  # PostgreSQL keeps its own checksums
    connection = session.connection()
    said = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check(10)")]
    said += [f"a row of {row[0]} refers to nothing" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    return "ok" if said == ["ok"] else "; ".join(one for one in said[:10] if one != "ok")


def _counts(session: Session) -> dict[str, int]:
    tables = Base.metadata.sorted_tables
    return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}
