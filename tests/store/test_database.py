"""Opening the database: settings of every connection, transactions, migrations."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from coordinator.errors import ShoalError
from coordinator.settings import sqlite_url
from coordinator.store.database import Database
from coordinator.store.models import Base, Event, Telemetry


def note(session, words):
    session.add(Event(at=0.5, kind="note", text=words))
    session.flush()


def note_and_fail(session):
    note(session, "half done")
    raise ZeroDivisionError


def notes(database):
    with database.read() as session:
        return session.scalars(select(Event.text)).all()


def test_a_new_database_gets_every_table_of_the_models(database):
    tables = {name for name in inspect(database.engine).get_table_names() if not name.startswith("telemetry_default")}
    assert tables == {*Base.metadata.tables, "alembic_version"}
    for name, table in Base.metadata.tables.items():
        assert {c["name"] for c in inspect(database.engine).get_columns(name)} == set(table.columns.keys())


def test_upgrading_twice_changes_nothing(database):
    with database.write() as session:
        note(session, "kept")
    database.upgrade()
    found, brought = database.revision()
    assert found == brought
    assert notes(database) == ["kept"]


def test_a_database_that_was_never_upgraded_has_no_revision(tmp_path):
    database = Database(sqlite_url(tmp_path / "new.db"))
    assert database.revision()[0] is None
    database.close()


@pytest.mark.parametrize("backend", ["sqlite"])
def test_every_connection_is_durable_checks_keys_and_waits(database):
    with database.read() as session:
        settings = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10000}


def test_a_write_is_committed_at_its_end(database):
    with database.write() as session:
        note(session, "hello")
        assert notes(database) == []  # another connection
    assert notes(database) == ["hello"]


def test_a_write_that_raises_is_rolled_back(database):
    with pytest.raises(ZeroDivisionError), database.write() as session:
        note_and_fail(session)
    assert notes(database) == []


def test_a_savepoint_is_rolled_back_alone(database):
    with database.write() as session:
        note(session, "before")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            note_and_fail(session)
        note(session, "after")
    assert notes(database) == ["before", "after"]


def test_reading_leaves_no_trace(database):
    with database.read() as session:
        note(session, "hello")
    assert notes(database) == []


def test_rows_that_point_nowhere_are_refused(database):
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(Telemetry(device_id="nobody", at=0.0, uptime=1.0, memory=1, spool=0))


@pytest.mark.parametrize("at", [0.0, 1_700_000_000.123456, 4_102_444_800.5])
def test_instants_come_back_to_the_microsecond(database, at):
    with database.write() as session:
        session.add(Event(at=at, kind="note", text=""))
    with database.read() as session:
        assert session.scalar(select(Event.at)) == pytest.approx(at, abs=1e-6)
        assert session.scalar(select(func.count()).where(Event.at == at)) == 1


def test_the_address_is_shown_without_its_password():
    assert Database("postgresql+psycopg://shoal:secret@db/shoal").shown == "postgresql+psycopg://shoal:***@db/shoal"


def test_a_database_of_a_newer_shoal_is_refused(database):
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ShoalError, match="is of another version") as refused:
        database.upgrade()
    assert refused.value.code == "database-unusable"


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "poem.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(ShoalError, match="cannot be used: file is not a database") as refused:
        Database(sqlite_url(path)).upgrade()
    assert refused.value.code == "database-unusable"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ShoalError, match="cannot be used: unable to open database file"):
        Database(sqlite_url(tmp_path / "missing" / "shoal.db")).upgrade()


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_files_are_plain_sqlite(database, path):
    with database.write() as session:
        note(session, "hello")
    database.close()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT text FROM event").fetchall() == [("hello",)]
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_database_belongs_to_one_coordinator_at_a_time(database):
    other = Database(database.url)
    with database.claimed():
        with pytest.raises(ShoalError, match="Another coordinator is using the database") as refused, other.claimed():
            raise AssertionError("both have it")
        assert refused.value.code == "database-unusable"
        with other.read() as session:
            assert session.scalar(select(func.count()).select_from(Event)) == 0
    with other.claimed():
        pass
    other.close()
