"""What operators decide about rollouts, as rows; on both databases."""

from __future__ import annotations

import pytest
from attrs import define

from coordinator.errors import ShoalError
from coordinator.fleet import orders, record, releases, rollout
from coordinator.fleet.orders import Target
from coordinator.fleet.releases import ReleaseKey
from coordinator.fleet.rollout import Standing
from coordinator.fleet.rules import Rules
from coordinator.store import models, queries
from coordinator.store.database import Database
from protocol.deployments import ReleaseFile
from tests.conftest import BACKENDS

NOW = 1_700_000_000.0
FILE = ReleaseFile(name="aarch64-cp313", sha256="a" * 64, size=7)


@define
class Books:
    """A database with the devices a to e, all heard just now, and releases 1 and 2 of an agent."""

    session: object
    now: float = NOW

    def device(self, name: str, **given) -> None:
        known = {"group": "", "capability": {}, "enrolled_at": NOW - 1, "status_at": NOW, "last_seen_at": NOW}
        self.session.add(models.Device(id=name, name=name, **{**known, **given}))
        self.session.flush()

    def start(self, release: int = 1, rules: Rules = Rules(waves=[1], soak=0.0), **target) -> int:  # noqa: B008 - a value
        wanted = Target(**(target or {"every": True}))
        return orders.start(self.session, release, wanted, rules, self.now, 10.0, by="ada").id

    def tick(self, id: int) -> dict[str, str]:
        """One tick with everybody there; the states of all devices."""
        row = self.session.get(models.Rollout, id)
        before = {one.id: one for one in record.executions_of(self.session, id)}
        there = {one.device: Standing(live=True) for one in before.values()}
        after, changed = rollout.tick(record.rollout_of(row), before.values(), there, self.now)
        record.keep_executions(self.session, "agent", [(before[one.id], one) for one in changed], self.now)
        record.keep_rollout(self.session, row, after, self.now)
        return self.states(id)

    def states(self, id: int) -> dict[str, str]:
        return {one.device: one.state for one in record.executions_of(self.session, id)}

    def end(self, id: int, state: str = "succeeded", before: int | None = None) -> None:
        """All devices of a rollout have ended so; ``before`` is what they ran before."""
        for row in self.session.query(models.Execution).filter_by(rollout_id=id):
            row.state, row.before_id = state, before
        self.session.flush()


@pytest.fixture(params=BACKENDS)
def books(request, new_database, tmp_path):
    database = Database(new_database(request.param))
    with database.write() as session:
        books = Books(session)
        for name in "abcde":
            books.device(name, group="roof" if name in "ab" else "")
        session.add(models.DeviceTag(device_id="c", tag="old"))
        for version in ("1", "2"):
            key = ReleaseKey.of(tmp_path)
            releases.create(session, key, kind="agent", version=version, files=[FILE], now=NOW, by="ada")
        yield books
    database.close()


def test_a_rollout_is_kept_and_read_as_it_is(books):
    id = books.start(rules=Rules(waves=[0.4, 1], parallel=2))
    assert books.tick(id) == {**dict.fromkeys("abcde", "queued"), **first(books, id, "notified")}
    kept = record.executions_of(books.session, id)
    assert [(one.wave, one.place) for one in kept] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert {one.step_until for one in kept if one.state == "notified"} == {NOW + 300}
    value = record.rollout_of(books.session.get(models.Rollout, id))
    assert (value.rules.waves, value.wave_at, value.created_at) == ((0.4, 1.0), NOW, NOW)
    assert record.under_way(books.session)[0].id == id


def first(books, id, state):
    return {one.device: state for one in record.executions_of(books.session, id) if one.wave == 0}


def test_it_is_for_whom_it_says(books):
    books.device("f", pending_at=NOW)
    books.device("g", revoked_at=NOW)
    assert set(books.states(books.start())) == set("abcde")
    assert set(books.states(books.start(group="roof"))) == set("ab")
    assert set(books.states(books.start(tag="old"))) == {"c"}
    assert set(books.states(books.start(group="roof", devices=()))) == set("ab")
    assert set(books.states(books.start(devices=("d", "e")))) == set("de")
    with pytest.raises(ShoalError, match="no device 'g'"):
        books.start(devices=("a", "g"))


def test_a_newer_one_takes_over_what_is_queued_and_nothing_else(books):
    older = books.start(1, rules=Rules(waves=[1], parallel=2))
    books.tick(older)
    newer = books.start(2, group="roof")
    told = {device for device, state in books.states(older).items() if state == "notified"}
    assert {d for d, s in books.states(older).items() if s == "superseded"} == set("ab") - told
    assert set(books.states(newer)) == set("ab")
    changes = [row.state for row in books.session.query(models.ExecutionChange)]
    assert changes.count("superseded") == len(set("ab") - told)


def test_the_way_back_leads_each_device_to_what_it_had(books):
    id = books.start(2)
    books.end(id, before=1)
    one, two, *_ = books.session.query(models.Execution).filter_by(rollout_id=id).order_by(models.Execution.device_id)
    one.before_id, two.state = None, "rolled-back"
    row = orders.back(books.session, id, NOW, 10.0, by="ada")
    assert set(books.states(row.id)) == set("cde")
    assert {e.release_id for e in books.session.query(models.Execution).filter_by(rollout_id=row.id)} == {1}
    assert books.session.get(models.Rollout, id).state == "aborted"
    assert books.tick(row.id) == dict.fromkeys("cde", "notified")  # everybody at once


def test_what_ran_before_is_what_the_device_said(books):
    books.session.add(models.DeviceRelease(device_id="a", kind="agent", version="1", release_id=1, at=NOW))
    books.session.flush()
    assert orders.running(books.session, "a", "agent") == 1
    assert orders.running(books.session, "b", "agent") is None


def test_who_went_back_from_a_release_is_known_in_every_later_rollout(books):
    books.end(books.start(1, devices=("a", "b")), "rolled-back")
    assert orders.barred(books.session, books.start(1)) == {"a", "b"}
    assert orders.barred(books.session, books.start(2)) == set()


def test_who_joins_comes_in_the_last_wave_of_the_newest_rollout_only(books):
    older = books.start(1, rules=Rules(waves=[0.4, 1]))
    newer = books.start(2, rules=Rules(waves=[0.4, 1]))
    books.device("f", enrolled_at=NOW + 5)
    books.device("g", enrolled_at=NOW - 5)  # was not meant, and is not now
    joined = [
        orders.join(books.session, books.session.get(models.Rollout, id), "agent", NOW + 9) for id in (newer, older)
    ]
    assert joined == [1, 0]
    (row,) = books.session.query(models.Execution).filter_by(device_id="f")
    assert (row.rollout_id, row.wave, row.place) == (newer, 1, 3)
    assert orders.join(books.session, books.session.get(models.Rollout, newer), "agent", NOW + 9) == 0


def test_a_rollout_for_chosen_devices_takes_nobody_else(books):
    id = books.start(devices=("a",))
    books.device("f", enrolled_at=NOW + 5)
    assert orders.join(books.session, books.session.get(models.Rollout, id), "agent", NOW + 9) == 0


def test_a_device_may_have_the_files_of_what_it_is_to_take(books):
    id = books.start(devices=("a",))
    assert orders.needed_by(books.session, "a", FILE.sha256) == "now"
    assert orders.needed_by(books.session, "b", FILE.sha256) == "never"
    assert orders.needed_by(books.session, "a", "b" * 64) == "never"
    books.end(id)
    assert orders.needed_by(books.session, "a", FILE.sha256) == "before"


def test_lists_tell_how_far_everybody_is(books):
    id = books.start(rules=Rules(waves=[0.4, 1], parallel=1))
    books.tick(id)
    found = queries.rollout(books.session, id)
    assert found.row.states == {"notified": 1, "queued": 4}
    assert [(wave.wave, wave.state, wave.devices) for wave in found.waves] == [(1, "running", 2), (2, "waiting", 3)]
    page = queries.executions(books.session, id, queries.Order("place", size=2))
    assert [(row.wave, row.state) for row in page.rows] == [(1, "notified"), (1, "queued")]
    for sort in ("device", "-state", "since", "attempts"):
        assert queries.executions(books.session, id, queries.Order.parse(sort)).total == 5
    assert [row.id for row in queries.rollouts(books.session)] == [id]
    assert queries.overview(books.session, NOW).attention == ()
    orders.operate(books.session, id, "pause", NOW, by="ada")
    (attention,) = queries.overview(books.session, NOW).attention
    assert (attention.kind, attention.cases[0].name) == ("rollout", "agent 1")


def test_an_action_there_is_not(books):
    with pytest.raises(ShoalError, match="expected pause, resume, approve or abort"):
        orders.operate(books.session, books.start(), "explode", NOW, by="ada")
    with pytest.raises(ShoalError, match="no rollout 99"):
        orders.operate(books.session, 99, "pause", NOW, by="ada")
