"""SQLite and PostgreSQL are the same to everybody above the store."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, BigInteger, Float, Integer, Text, inspect, select, text
from sqlalchemy.exc import DBAPIError

from benchmarks.fleet import Fleet
from coordinator.errors import ShoalError
from coordinator.store import views
from coordinator.store.database import Database, _config
from coordinator.store.models import Base, Event, Instant
from tests.conftest import BACKENDS, NEWEST

PARTITION = re.compile(r"telemetry_(default|\d{8}|before_\d{8})")
KINDS = {Text: str, Integer: int, BigInteger: int, Float: float, Instant: float, JSON: dict}


@pytest.fixture
def bare(backend, new_database):
    """A database without a table."""
    database = Database(new_database(backend, migrated=False))
    yield database
    database.close()


@pytest.fixture
def filled(database):
    """A made-up fleet with a past."""
    Fleet().write(database)
    return database


def rounded(rows):
    """Sums of floats depend on their order in the last digit."""
    return sorted(repr([round(value, 9) if isinstance(value, float) else value for value in row]) for row in rows)


def migrate(database, direction, revision):
    with database.engine.begin() as connection:
        getattr(command, direction)(_config(connection), revision)


def names(database):
    """Tables and views; the partitions of a table on PostgreSQL are part of it."""
    found = inspect(database.engine)
    all_names = {*found.get_table_names(), *found.get_view_names()} - {"alembic_version"}
    return {name for name in all_names if not PARTITION.fullmatch(name)}


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index ix_update_day")
def test_the_migrations_make_exactly_what_the_models_say(database):
    with database.engine.connect() as connection:
        ours = {"include_name": lambda name, kind, _: kind != "table" or not PARTITION.fullmatch(name)}
        context = MigrationContext.configure(connection, opts={"compare_type": True, **ours})
        assert compare_metadata(context, Base.metadata) == []


def test_every_migration_goes_up_and_down_step_by_step(bare):
    with bare.engine.connect() as connection:
        revisions = [one.revision for one in ScriptDirectory.from_config(_config(connection)).walk_revisions()]
    seen = [names(bare)]
    for revision in reversed(revisions):
        migrate(bare, "upgrade", revision)
        seen.append(names(bare))
    assert bare.revision() == (NEWEST, NEWEST)
    assert set(Base.metadata.tables) <= seen[-1]
    for expected in reversed(seen[:-1]):
        migrate(bare, "downgrade", "-1")
        assert names(bare) == expected
    assert seen[0] == set()


def test_an_upgrade_that_fails_half_way_leaves_nothing_behind(bare, monkeypatch):
    class PulledPlug(Exception):
        pass

    def create_then_fail(config, revision):
        config.attributes["connection"].execute(text("CREATE TABLE half (x INTEGER)"))
        raise PulledPlug

    monkeypatch.setattr(command, "upgrade", create_then_fail)
    with pytest.raises(PulledPlug):
        bare.upgrade()
    assert names(bare) == set()


def test_a_read_only_database_cannot_be_written_to(database, backend):
    looking = Database(database.url, read_only=True)
    with pytest.raises(DBAPIError, match=r"(?i)read-?only"), looking.write() as session:
        session.add(Event(at=0.0, kind="x", text=""))
    looking.close()
    assert looking.shown == database.shown


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///{tmp}/none.db", "There is no database .*none.db: make it with `shoal db upgrade`"),
        ("nonsense", "'nonsense' is no URL of a database"),
        ("mysql://localhost/x", "mysql is not supported"),
        ("postgresql+pg8000://localhost/x", "The driver pg8000 is not installed"),
    ],
)
def test_a_url_that_leads_nowhere_gets_a_sentence(tmp_path, url, sentence):
    with pytest.raises(ShoalError, match=sentence) as caught:
        Database(url.format(tmp=tmp_path), read_only=True)
    assert caught.value.code == "database-unusable"


def test_a_server_that_is_not_there_gets_a_sentence_without_the_password(tmp_path):
    database = Database(f"postgresql+psycopg://shoal:swordfish@/x?host={tmp_path}")
    with pytest.raises(ShoalError, match="cannot be used") as caught:
        database.upgrade()
    assert "swordfish" not in caught.value.detail


def test_the_views_have_exactly_the_columns_that_are_promised(database):
    found = inspect(database.engine)
    assert set(found.get_view_names()) == set(views.metadata.tables)
    for name, view in views.metadata.tables.items():
        assert [column["name"] for column in found.get_columns(name)] == [column.name for column in view.columns]


def test_every_column_of_every_view_can_be_read_as_what_it_is(filled):
    with filled.read() as session:
        for view in views.metadata.tables.values():
            for row in session.execute(select(view)).mappings():
                for column in view.columns:
                    value = row[column.name]
                    assert value is None or isinstance(value, KINDS[type(column.type)]), (view.name, column.name, value)
                    if isinstance(column.type, Instant) and value is not None:
                        assert row[f"{column.name}_s"] == pytest.approx(value, abs=1e-6)
                        shown = datetime.fromtimestamp(value, UTC).isoformat(" ", "seconds")
                        assert row[f"{column.name}_utc"] == shown.removesuffix("+00:00")


def test_views_say_the_same_on_both_databases(new_database):
    said = []
    for backend in BACKENDS:
        database = Database(new_database(backend))
        Fleet().write(database)
        with database.read() as session:
            said.append({name: rounded(session.execute(select(view))) for name, view in views.metadata.tables.items()})
        database.close()
    assert said[0] == said[1]
    assert all(len(rows) >= 3 for rows in said[0].values())
