"""``shoal db``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import evolve
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from coordinator import settings
from coordinator.cli.client import Address, home_option
from coordinator.cli.output import facts, json_option, print_json
from coordinator.errors import ShoalError
from coordinator.home import claim
from coordinator.settings import Settings
from coordinator.store import archive, copying
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.models import Base, Event, Input, Snapshot, Telemetry, Telemetry5m
from coordinator.store.retention import Keep, Retention


@click.group
def db() -> None:
    """Check, upgrade, back up, restore and move the database.

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
    given = located(home)
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
    where = make_url(located(home).database_url).render_as_string(hide_password=True)
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
    url = make_url(located(home).database_url)
    click.echo(url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True))


@db.command
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@home_option
def backup(home: Path | None, file: Path) -> None:
    """Write database, blobs, segments and the authority's files into FILE, a tar, also while the coordinator runs.

    \b
    Example:
      shoal db backup /srv/backups/shoal-$(date +%F).tar
    """
    given = located(home)
    with opened(home):
        pass  # a sentence for one that is not there
    made = archive.backup(given.home, given.database_url, file)
    click.echo(f"{file} holds {sum(made.rows.values())} rows and {made.files} files of revision {made.revision}.")
    if made.missing:
        click.echo(f"{len(made.missing)} files that open work needs were gone, first {made.missing[0]}.", err=True)


@db.command
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@home_option
def restore(home: Path | None, file: Path) -> None:
    """Fill a home without a database from FILE, which `shoal db backup` wrote. The coordinator must not run.

    \b
    Example:
      shoal db restore /srv/backups/shoal-2026-03-31.tar --home /srv/shoal
    """
    given = located(home)
    with claim(given.home):
        found = archive.restore(file, given.home, given.database_url)
    rows = sum(found.rows.values())
    click.echo(f"{given.home} has {rows} rows and {found.files} files of revision {found.revision}.")


@db.command
@click.option("--to", "target", required=True, help="URL of a database without rows.")
@home_option
def copy(home: Path | None, target: str) -> None:
    """Copy every row into another database, e.g. from SQLite to PostgreSQL. The coordinator must not run.

    \b
    Example:
      shoal db copy --to postgresql+psycopg://shoal@db.local/shoal
    """
    given = located(home)
    into = Database(target)
    try:
        with claim(given.home), opened(home) as source:
            sent = copying.copy(source, into, _progress)
    finally:
        into.close()
    rows = sum(one.rows for one in sent.values())
    click.echo(f"{into.shown} has all {rows} rows, with equal hashes. From now on: database = \"{into.shown}\"")


@db.command
@home_option
def prune(home: Path | None) -> None:
    """Let go at once of what the settings keep_… and max_… do not keep. The coordinator must not run: it does so by
    itself, a few rows at a time. The ledger stays.

    \b
    Example:
      SHOAL_KEEP_INPUTS=30 SHOAL_MAX_EVENTS=100000 shoal db prune
    """
    given = located(home)
    with opened(home):
        pass  # a sentence for one that is not there
    database = Database(given.database_url)
    try:
        with claim(given.home), database.claimed():
            database.upgrade()
            before = _prunable(database)
            blobs, segments = Blobs(given.home / "blobs"), given.home / "segments"
            Retention(Keep.of(given), blobs, segments).prune(database, time.time())
            after = _prunable(database)
    except DBAPIError as error:
        raise ShoalError("database-unusable", f"The database cannot be written: {error.orig}") from error
    finally:
        database.close()
    facts([(f"{name} removed", before[name] - after[name]) for name in before])


def _prunable(database: Database) -> dict[str, int]:
    tables = {"heartbeats": Telemetry, "spans of 5 minutes": Telemetry5m, "events": Event, "inputs": Input}
    with database.read() as session:
        found = {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}
        return {**found, "snapshots": session.scalar(select(func.count()).select_from(Snapshot)) or 0}


def _progress(table: str, rows: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{table}: {rows} rows\033[K", nl=False, err=True)


def located(home: Path | None) -> Settings:
    """The settings, with the database that the coordinator of this home uses, where it was named to `shoal serve` only
    and the coordinator has left word of it."""
    given = settings.load({"home": home})
    left = Address.find(given.home)
    if given.database or left is None or not left.database or ":***@" in left.database:
        return given  # where the password is left out, it has to be told anew
    return evolve(given, database=left.database)


@contextmanager
def opened(home: Path | None) -> Iterator[Database]:
    """The database for reading only, also while a coordinator writes to it; ShoalError database-unusable."""
    given = located(home)
    if not given.database and not (given.home / "shoal.db").exists() and (given.home / "api.token").exists():
        raise ShoalError(
            "database-unusable",
            f"There is no database {given.home / 'shoal.db'}, although a coordinator has run here: if it was started "
            "with --database, set SHOAL_DATABASE to the same URL",
        )
    database = Database(given.database_url, read_only=True)
    try:
        yield database
    except DBAPIError as error:
        raise ShoalError("database-unusable", f"The database cannot be read: {error.orig}") from error
    finally:
        database.close()


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
