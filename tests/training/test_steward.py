"""The one thread that writes: results wait for the commit, a turn that fails never happened, nothing is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from coordinator.errors import ShoalError
from coordinator.store import models
from protocol.messages import Chunk
from protocol.wire import frame

from .house import RECIPE, Device, trained

ONE = RECIPE.replace("goal = 2", "goal = 1")
ROOT = Path(__file__).parents[2]


class Together:
    """Holds the steward inside a command, so that what is asked meanwhile shares the next turn."""

    def __init__(self, house) -> None:
        self.house = house
        self.pool = ThreadPoolExecutor(8)
        self.asked = []

    def __enter__(self):
        inside, self.leave = threading.Event(), threading.Event()
        self.pool.submit(self.house.steward.write, lambda _: (inside.set(), self.leave.wait(10)))
        assert inside.wait(10)
        return self

    def ask(self, change):
        """A command of the next turn; its future."""
        waiting = self.house.steward._queue.qsize()
        self.asked.append(self.pool.submit(self.house.steward.write, change))
        self.house.until(lambda: self.house.steward._queue.qsize() > waiting)
        return self.asked[-1]

    def __exit__(self, *_):
        self.leave.set()
        self.pool.shutdown(wait=True)


def note(session, words):
    session.add(models.Event(at=1.0, kind="note", text=words))
    session.flush()


# -- commands ----------------------------------------------------------------------------------------------------


def test_a_command_returns_its_result_once_it_is_durable(house):
    def change(session):
        note(session, "hello")
        return 42

    assert house.steward.write(change) == 42
    assert house.events("note") == ["hello"]


def test_a_command_raises_what_went_wrong_and_takes_back_what_it_did(house):
    def change(session):
        note(session, "half done")
        raise ShoalError("conflict", "No, thank you")

    with pytest.raises(ShoalError, match="No, thank you"):
        house.steward.write(change)
    assert house.events("note") == []
    assert house.events("internal-error") == []


def test_an_error_nobody_foresaw_is_raised_and_written_down(house, caplog):
    with pytest.raises(ZeroDivisionError):
        house.steward.write(lambda _: 1 / 0)
    assert house.events("internal-error") == ["ZeroDivisionError: division by zero"]
    assert "input-failed" in caplog.text


def test_what_fails_does_not_touch_the_others_of_its_turn(house, caplog):
    house.start_run()
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in())
    with Together(house) as turn:
        first = turn.ask(lambda session: note(session, "first"))
        twice = turn.ask(lambda session: session.execute(text("INSERT INTO device SELECT * FROM device")))
        unsound = turn.ask(lambda session: (note(session, "half"), 1 / 0))
        refused = turn.ask(lambda _: (_ for _ in ()).throw(ShoalError("conflict", "No")))
        heard = house.hear("pi", "update", frame(update, body))
        last = turn.ask(lambda session: note(session, "last"))
    first.result(), last.result()
    for future, error in ((twice, IntegrityError), (unsound, ZeroDivisionError), (refused, ShoalError)):
        with pytest.raises(error):
            future.result()
    assert heard.wait(10)
    assert house.events("note") == ["first", "last"]
    assert house.row(models.Update).outcome == "stored"
    assert [one.partition(":")[0] for one in house.events("internal-error")] == ["IntegrityError", "ZeroDivisionError"]


def test_many_commands_of_one_turn_take_one_commit(house):
    commits = []
    event.listen(house.database.engine, "commit", lambda connection: commits.append(connection))
    with Together(house) as turn:
        for number in range(5):
            turn.ask(lambda session, number=number: note(session, str(number)))
    assert house.events("note") == ["0", "1", "2", "3", "4"]
    assert len(commits) <= 2  # theirs, and perhaps the one they waited for


def test_a_steward_that_is_not_there_says_so(house):
    house.steward.stop()
    with pytest.raises(ShoalError, match="starting or stopping") as refused:
        house.steward.write(lambda _: None)
    assert refused.value.code == "busy"


def test_commands_that_come_after_the_end_are_turned_away(house):
    with Together(house) as turn:
        stopping = turn.pool.submit(house.steward.stop)
        house.until(lambda: house.steward._queue.qsize() == 1)
        late = turn.ask(lambda session: note(session, "too late"))
    stopping.result()
    with pytest.raises(ShoalError, match="The coordinator is stopping"):
        late.result()
    assert house.events("note") == []


# -- what leaves after the commit --------------------------------------------------------------------------------


def test_nothing_leaves_before_the_commit(house):
    """What a device is told can be read in the database by then, on another connection."""
    house.start_run()
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in())
    seen = []
    acknowledged = threading.Event()

    def acknowledge():
        seen.extend(house.rows(models.Update))
        acknowledged.set()

    house.steward.hear("pi", "update", frame(update, body), acknowledge)
    assert acknowledged.wait(10)
    assert [row.outcome for row in seen] == ["stored"]


def test_a_broker_that_is_gone_does_not_end_the_steward(house, caplog):
    house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    update, body = trained(work)
    house.dead_letters = True
    assert house.tell("pi", "update", frame(update, body)) == []
    assert "after-commit-failed" in caplog.text
    house.dead_letters = False
    assert pi.announce(update, body).state == "stored"
    assert len(house.rows(models.Update)) == 1


# -- turns that cannot be committed ------------------------------------------------------------------------------


class Locked:
    """Another program that holds the database's write lock."""

    def __init__(self, house) -> None:
        self.house = house

    def __enter__(self):
        self.other = sqlite3.connect(self.house.home / "shoal.db", isolation_level=None, check_same_thread=False)
        self.other.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *_):
        self.other.execute("ROLLBACK")
        self.other.close()


@pytest.fixture
def impatient(house):
    """A house that waits 20 ms for a lock."""
    event.listen(house.database.engine, "connect", lambda raw, _: raw.execute("PRAGMA busy_timeout=20"))
    house.database.engine.dispose()
    return house


def failures(caplog):
    return sum("turn-failed" in record.message for record in caplog.records)


def test_a_message_whose_turn_failed_is_taken_once_the_store_is_back(impatient, caplog):
    house = impatient
    runs = [house.start_run(ONE), house.start_run(ONE)]
    a, b = house.enrol("a", "b")
    works = [a.check_in(), b.check_in()]
    assert {work.run for work in works} == set(runs)
    before = {run: one.snapshot() for run, one in house.engines().items()}
    with Locked(house):
        heard = [house.hear(d.name, "update", frame(*trained(w))) for d, w in zip((a, b), works, strict=True)]
        with pytest.raises(ShoalError, match="could not be stored") as refused:
            house.steward.write(lambda session: note(session, "no"))
        assert refused.value.code == "database-unusable"
        house.until(lambda: failures(caplog) >= 3)  # and again, and again
        assert not any(one.is_set() for one in heard)
        assert house.rows(models.Update) == []
    assert all(one.wait(10) for one in heard)
    assert [(u.outcome, u.applied_version) for u in house.rows(models.Update)] == [("applied", 1)] * 2
    assert [house.sent[name][-1].state for name in ("a", "b")] == ["stored", "stored"]
    assert [len(house.sent[name]) for name in ("a", "b")] == [2, 2]
    assert house.events("note") == []
    assert {run: one.snapshot() for run, one in house.engines().items()} != before
    now = {run: one.snapshot() for run, one in house.engines().items()}
    house.reopened()
    assert {run: one.snapshot() for run, one in house.engines().items()} == now


def test_a_command_that_could_not_be_stored_has_not_happened(impatient):
    house = impatient
    run = house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    with Locked(house):
        with pytest.raises(ShoalError, match="could not be stored"):
            house.steward.operate(run, "stop", "ada")
        with pytest.raises(ShoalError, match="could not be stored"):
            house.start_run()
    assert pi.check_in(held=work.id).id == work.id
    assert house.blobs.get(work.weights.sha256)
    assert pi.deliver(work).state == "stored"
    assert [row.state for row in house.rows(models.Run)] == ["running"]
    assert list(house.engines()) == [run]


def test_the_last_chunk_counts_even_if_its_turn_failed(impatient, caplog):
    house = impatient
    house.start_run(ONE)
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in(), chunk=4096)
    assert pi.announce(update).missing == ((0, 0),)
    chunk = Chunk(assignment=update.assignment, commit=1, index=0)
    with Locked(house):
        heard = house.hear("pi", "chunk", frame(chunk, body))
        house.until(lambda: failures(caplog) >= 1)
    assert heard.wait(10)
    assert house.sent["pi"][-1].state == "stored"
    assert house.row(models.Update).outcome == "applied"


def test_a_steward_can_be_stopped_while_the_store_is_away(impatient, caplog):
    house = impatient
    house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    with Locked(house):
        heard = house.hear("pi", "update", frame(*trained(work)))
        house.until(lambda: failures(caplog) >= 1)
        house.steward.stop()
    assert not house.steward.is_alive()
    assert not heard.is_set()  # the device still has it
    house.reopened()
    assert Device(house, "pi").deliver(work).state == "stored"


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from coordinator.store import models
from protocol.wire import frame
from tests.training.house import House, trained

house = House(Path({home!r})).open()
run = house.start_run({recipe!r})
(pi,) = house.enrol("pi")
work = pi.check_in()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # no file may grow beyond ten bytes
heard = house.hear("pi", "update", frame(*trained(work)))
assert not heard.wait(0.8)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert heard.wait(10)
assert house.row(models.Update).outcome == "applied"
assert [receipt.state for receipt in house.sent["pi"][1:]] == ["stored"]
before = house.engines()[run].snapshot()
row = house.row(models.Update)
assert house.segments.read(row.segment, row.offset, row.bytes_up) == trained(work)[1]
house.reopened()
assert house.engines()[run].snapshot() == before
assert house.rows(models.Event, kind="internal-error") == []
house.close()
print("all is well")
"""


def test_a_full_disk_loses_nothing(tmp_path, migrated):
    """In a process of its own, whose files may not grow for a while."""
    (tmp_path / "shoal.db").write_bytes(migrated.read_bytes())
    script = FULL_DISK.format(root=str(ROOT), home=str(tmp_path), recipe=ONE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "all is well\n", done.stderr
    assert "turn-failed" in done.stderr
