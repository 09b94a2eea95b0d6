"""Telemetry on PostgreSQL: a partition for every day, made ahead, dropped whole; nothing is refused for want of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from sqlalchemy import func, insert, inspect, select, text

from benchmarks.fleet import Fleet
from coordinator.store import copying, partitions
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database, _config
from coordinator.store.models import Telemetry, Telemetry5m
from coordinator.store.retention import Keep, Retention

DAY = 86_400.0
T0 = 19_676 * DAY
"""The beginning of a day in UTC, 15 November 2023."""


@pytest.fixture
def database(new_database):
    database = Database(new_database("postgresql"))
    Fleet(devices=3, updates=0, beats=0).write(database)
    yield database
    database.close()


def beats(database, *moments):
    rows = [{"device_id": "pi3-001", "at": at, "uptime": 1.0, "memory": 1, "spool": 0} for at in moments]
    with database.write() as session:
        session.execute(insert(Telemetry), rows)


def held(database):
    """Heartbeats by partition."""
    with database.read() as session:
        rows = session.execute(text("SELECT CAST(tableoid AS regclass), count(*) FROM telemetry GROUP BY 1"))
        return {str(name): count for name, count in rows}


def days(database):
    return {name for name in inspect(database.engine).get_table_names() if name.startswith("telemetry_2")}


def cover(database, first, last):
    with database.engine.begin() as connection:
        return partitions.cover(connection, first, last)


def test_days_are_made_ahead_and_only_once(database):
    with database.write() as session:
        assert partitions.look_ahead(session, T0 + 100) == 3
        assert partitions.look_ahead(session, T0 + DAY - 1) == 0
        assert partitions.look_ahead(session, T0 + DAY) == 1
    assert days(database) == {f"telemetry_202311{day}" for day in (15, 16, 17, 18)}
    beats(database, T0, T0 + DAY - 1e-6, T0 + DAY)
    assert held(database) == {"telemetry_20231115": 2, "telemetry_20231116": 1}


def test_a_heartbeat_of_no_day_is_kept_and_moves_when_its_day_is_made(database):
    beats(database, T0 - 1, T0 + 5)
    assert held(database) == {"telemetry_default": 2}
    assert cover(database, T0, T0) == 1
    assert held(database) == {"telemetry_default": 1, "telemetry_20231115": 1}


def test_old_days_are_dropped_as_a_whole_and_what_lies_in_none_row_by_row(database, tmp_path):
    cover(database, T0, T0 + 2 * DAY)
    beats(database, T0 - 5, T0 + 5, T0 + DAY + 5, T0 + 2 * DAY + 5)
    retention = Retention(Keep(telemetry=DAY), Blobs(tmp_path / "blobs"), tmp_path)
    for _ in range(300):
        with database.write() as session:
            later = retention.tend(session, T0 + 2 * DAY + 3600)
        for step in later:
            step()
    assert days(database) == {f"telemetry_202311{day}" for day in range(16, 20)}
    assert held(database) == {"telemetry_20231116": 1, "telemetry_20231117": 1}
    with database.read() as session:
        assert session.scalar(select(func.sum(Telemetry5m.beats))) == 4


def test_readers_are_not_pushed_aside_and_do_not_stop_the_writer(database):
    beats(database, T0)
    with database.read() as reader:
        reader.scalar(select(func.count()).select_from(Telemetry))
        with database.write() as session:
            assert partitions.look_ahead(session, T0) == 0
            session.execute(text("SELECT 1"))
    with database.write() as session:
        assert partitions.look_ahead(session, T0) == 3


def test_writers_on_other_connections_meet_the_new_days(database):
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: beats(database, T0 + number * DAY), range(3)))
    cover(database, T0, T0 + 2 * DAY)
    assert held(database) == {f"telemetry_202311{day}": 1 for day in (15, 16, 17)}


def test_a_copy_from_sqlite_lands_in_its_days(database, new_database):
    source, target = Database(new_database("sqlite")), Database(new_database("postgresql", migrated=False))
    Fleet(devices=3, updates=0, beats=0).write(source)
    beats(source, T0 + 1, T0 + DAY + 1)
    copying.copy(source, target, lambda *_: None)
    assert held(target) == {"telemetry_20231115": 1, "telemetry_20231116": 1}
    source.close()
    target.close()


def test_a_table_of_before_becomes_a_partition_and_its_readers_stay(new_database):
    database = Database(new_database("postgresql"))
    with database.engine.begin() as connection:
        command.downgrade(_config(connection), "0002")
        connection.execute(text("DROP ROLE IF EXISTS watcher"))
        connection.execute(text("CREATE ROLE watcher"))
        connection.execute(text("GRANT SELECT ON telemetry, v_width_decisions, v_update_ledger TO watcher"))
        device = "INSERT INTO device (id, name, \"group\", capability, enrolled_at, status, status_at, agent, runtime)"
        connection.execute(text(f"{device} VALUES ('a', 'a', '', '{{}}', now(), 'new', now(), '', '')"))
        row = "INSERT INTO telemetry (device_id, at, uptime, memory, spool) VALUES ('a', :at, 1, 1, 0)"
        connection.execute(text(row), [{"at": "2023-11-14 12:00+00"}, {"at": "2023-11-15 23:59:59+00"}])
    database.upgrade()
    assert held(database) == {"telemetry_before_20231116": 2}
    beats_at = T0 + DAY + 1
    cover(database, beats_at, beats_at)
    with database.write() as session:
        session.execute(
            insert(Telemetry), {"device_id": "a", "at": beats_at, "uptime": 1.0, "memory": 1, "spool": 0}
        )
    assert held(database) == {"telemetry_before_20231116": 2, "telemetry_20231116": 1}
    with database.read() as session:
        assert list(session.scalars(select(Telemetry.id).order_by(Telemetry.at))) == [1, 2, 3]
        session.execute(text("SET LOCAL ROLE watcher"))
        for relation in ("telemetry", "v_width_decisions", "v_update_ledger", "v_device_labels"):
            session.execute(text(f"SELECT count(*) FROM {relation}"))
    with database.write() as session:
        assert partitions.drop(session, T0 + DAY) == 1
        assert partitions.drop(session, T0 + DAY) == 0
    with database.engine.begin() as connection:
        command.downgrade(_config(connection), "0002")
        assert connection.scalar(text("SELECT count(*) FROM telemetry")) == 1
        connection.execute(text("DROP OWNED BY watcher"))
        connection.execute(text("DROP ROLE watcher"))
    database.close()
