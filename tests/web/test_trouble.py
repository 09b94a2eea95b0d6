"""What the pages say while the database is locked, after a session has ended, and where nothing is."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import event

from coordinator.store.models import ApiToken, Device
from tests.web.conftest import log_in, post
from tests.web.fleet import NOW


def impatient(database):
    """Wait for locks for a moment only; nobody is connected any more."""

    def begin(_dialect, _record, _arguments, given):
        given["timeout"] = 0.02

    def hurry(connection, _):
        connection.execute("PRAGMA busy_timeout=20")

    event.listen(database.engine, "do_connect", begin)
    event.listen(database.engine, "connect", hurry)
    database.engine.dispose()


@contextmanager
def locked(database, *, whole=False):
    """Another program holds the database: writers wait, or with ``whole`` readers as well."""
    with closing(sqlite3.connect(database.engine.url.database, isolation_level=None)) as other:
        if whole:
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE device SET name = name")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize("path", ["/", "/devices", "/runs/har-night", "/runs/har-night/charts/curve", "/login"])
def test_a_locked_database_is_told_on_a_page_that_looks_again(olga, database, path):
    impatient(database)
    with locked(database, whole=True):
        answer = olga.get(path)
    after = olga.get(path)

    assert answer.status_code == 503
    assert "The database cannot be used" in answer.text
    assert '<meta http-equiv="refresh" content="5">' in answer.text
    assert after.status_code in (200, 302)


def test_a_script_that_asks_meanwhile_is_told_by_the_status_and_then_gets_its_answer(olga, database):
    impatient(database)
    with locked(database, whole=True):
        assert olga.get("/devices", headers={"X-Live": "1"}).status_code == 503

    assert olga.get("/devices", headers={"X-Live": "1"}).status_code == 200


def test_while_only_writers_wait_pages_are_read_and_actions_say_that_nothing_was_done(olga, database):
    olga.get("/")
    impatient(database)
    with locked(database):
        assert olga.get("/devices").status_code == 200
        refused = post(olga, "/devices/d0003/pause")
    assert refused.status_code == 503
    assert "Nothing was done" in refused.text
    assert "refresh" not in refused.text

    assert post(olga, "/devices/d0003/pause").status_code == 303
    with database.read() as session:
        assert session.get(Device, "d0003").status == "paused"


def test_who_was_logged_out_is_told_so_wherever_they_go_on(app, database):
    client = log_in(app, database, "olga")
    with database.write() as session:
        for token in session.query(ApiToken):
            token.revoked_at = NOW

    page = client.get("/devices", follow_redirects=True)
    assert "Your session has ended" in page.text
    assert post(client, "/devices/d0003/pause").status_code == 401
    assert "How to log in" in post(client, "/devices/d0003/pause").text
    polled = client.get("/devices", headers={"X-Live": "1", "Sec-Fetch-Mode": "cors"})
    assert polled.status_code == 401


def test_an_address_without_a_page_says_so_on_a_page(olga):
    answer = olga.get("/nowhere")

    assert answer.status_code == 404
    assert "There is nothing at this address" in answer.text
    assert "<nav" in answer.text
