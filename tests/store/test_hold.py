"""One coordinator writes to a database, and knows when it may not any more."""

from __future__ import annotations

import threading
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from coordinator.cli import serve as serving
from coordinator.errors import ShoalError
from coordinator.store import hold
from coordinator.store.database import Database
from coordinator.store.hold import HoldLost
from coordinator.store.models import Event

END = text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = :low")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(hold, "ASK", 0.01)


def end_its_session(url):
    """What a restart of the server does to the lock."""
    other = Database(url)
    with other.engine.connect() as connection:
        assert connection.scalar(END, {"low": hold.LOCK & 0xFFFFFFFF})
    other.close()


def keep_asking(database):
    while True:
        database.check()
        time.sleep(0.01)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_who_loses_the_lock_writes_nothing_more(database, quick):
    with database.claimed():
        with database.write() as session:
            session.add(Event(at=0.0, kind="note", text="mine"))
        end_its_session(database.url)
        with pytest.raises(HoldLost, match="another coordinator may have taken over"):
            keep_asking(database)
        with pytest.raises(HoldLost), database.write():
            raise AssertionError("nobody gets here")
    with database.read() as session:
        assert session.query(Event).count() == 1


@pytest.mark.parametrize("backend", ["postgresql"])
def test_what_was_begun_before_the_loss_is_not_committed_after_it(database, quick):
    def change():
        with database.write() as session:
            session.add(Event(at=0.0, kind="note", text="too late"))
            end_its_session(database.url)
            with pytest.raises(HoldLost):
                keep_asking(database)

    with database.claimed(), pytest.raises(HoldLost):
        change()
    with database.read() as session:
        assert session.query(Event).count() == 0


@pytest.mark.parametrize("backend", ["postgresql"])
def test_a_server_that_does_not_answer_counts_as_lost(database, monkeypatch):
    monkeypatch.setattr(hold, "PATIENCE", -1.0)
    with database.claimed(), pytest.raises(HoldLost):
        database.check()


@pytest.mark.parametrize("backend", ["postgresql"])
def test_another_takes_over_and_the_first_finds_it_taken(database, quick):
    other = Database(database.url)
    with database.claimed():
        with pytest.raises(ShoalError, match="Another coordinator is using"), other.claimed():
            raise AssertionError("nobody gets here")
        end_its_session(database.url)
        with other.claimed():
            other.check()
            with pytest.raises(HoldLost):
                keep_asking(database)
    other.close()


def test_a_hold_that_was_let_go_keeps_nobody_from_writing(database):
    with database.claimed():
        database.check()
    with database.write() as session:
        session.add(Event(at=0.0, kind="note", text="mine"))


def test_a_coordinator_that_lost_its_database_ends_with_a_sentence_and_a_code_of_its_own(
    new_database, tmp_path, quick, monkeypatch
):
    monkeypatch.setattr(serving, "LOOK", 0.01)
    monkeypatch.setattr(serving.signal, "signal", lambda *_: None)
    monkeypatch.setattr(serving.logs, "configure", lambda *_: None)
    url = new_database("postgresql")

    def lose():
        while not (tmp_path / "coordinator.json").exists():
            time.sleep(0.01)
        end_its_session(url)

    thread = threading.Thread(target=lose)
    thread.start()
    words = ["--home", str(tmp_path), "--port", "0", "--mqtt-port", "0", "--broker", "embedded", "--database", url]
    ended = CliRunner().invoke(serving.serve, words)
    thread.join()
    assert ended.exit_code == 4
    assert "another coordinator may have taken over. This one writes nothing more and stops" in ended.output
