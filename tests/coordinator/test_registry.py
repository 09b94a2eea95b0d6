"""A device's status follows from when it was heard, what it works on and what an operator decided."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from coordinator.errors import ShoalError
from coordinator.store import credentials, registry, views
from coordinator.store.models import Credential, Device, Event, StatusChange
from tests.conftest import BACKENDS
from tests.coordinator.people import HEARTBEAT, START, add_device, secret_of


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def session(database):
    with database.write() as session:
        yield session


@pytest.fixture
def pico(session):
    return add_device(session, "pico")


def changes(session, device="pico"):
    rows = session.scalars(select(StatusChange).where(StatusChange.device_id == device).order_by(StatusChange.id))
    return [(row.old, row.new, row.reason) for row in rows]


@pytest.mark.parametrize(
    ("values", "silent", "status"),
    [
        ({}, None, "new"),
        ({}, 0, "idle"),
        ({"assignment_id": "a-1"}, 0, "training"),
        ({}, 24, "idle"),
        ({}, 24.5, "late"),
        ({"assignment_id": "a-1"}, 24.5, "late"),
        ({}, 120, "late"),
        ({}, 120.5, "offline"),
        ({"paused_at": START}, 0, "paused"),
        ({"paused_at": START}, 500, "paused"),
        ({"paused_at": START, "quarantined_at": START}, 0, "quarantined"),
        ({"paused_at": START, "revoked_at": START}, 0, "revoked"),
    ],
)
def test_the_status_of_a_device_silent_for_some_seconds_at_a_heartbeat_of_10_s(session, values, silent, status):
    now = START + 1000
    device = add_device(session, "pico", last_seen_at=None if silent is None else now - silent, **values)
    assert registry.derive(device, now, HEARTBEAT) == status
    assert status in registry.STATUSES


def test_a_device_that_is_heard_for_the_first_time_becomes_idle_and_has_a_deadline(session, pico):
    registry.seen(session, "pico", START + 5, HEARTBEAT, agent="0.1.0", samples=320)
    assert (pico.status, pico.status_at, pico.last_seen_at) == ("idle", START + 5, START + 5)
    assert (pico.agent, pico.samples, pico.deadline_at) == ("0.1.0", 320, START + 29)
    assert changes(session) == [("new", "idle", "heard for the first time")]


def test_being_heard_again_without_a_change_writes_no_row(session, pico):
    for beat in range(3):
        registry.seen(session, "pico", START + 10 * beat, HEARTBEAT, telemetry={"load": beat})
    assert len(changes(session)) == 1
    assert pico.telemetry == {"load": 2}


def test_an_assignment_makes_a_device_train_until_it_is_closed(session, pico):
    registry.seen(session, "pico", START, HEARTBEAT, assignment_id="a-1")
    assert pico.status == "training"
    registry.note(session, "pico", START + 4, HEARTBEAT, reason="assignment a-1 expired", assignment_id=None)
    assert (pico.status, pico.last_seen_at) == ("idle", START)
    assert changes(session)[-1] == ("training", "idle", "assignment a-1 expired")


def test_many_devices_are_heard_at_once(session):
    names = [f"board-{number}" for number in range(1200)]
    for name in names:
        add_device(session, name)
    registry.seen_all(session, {name: {"telemetry": {"load": 1.0}} for name in names}, START + 1, HEARTBEAT)
    assert set(session.scalars(select(Device.status))) == {"idle"}
    assert len(session.scalars(select(StatusChange.id)).all()) == 1200


def test_a_stranger_is_not_heard(session, pico):
    with pytest.raises(ShoalError, match="no device 'eve'"):
        registry.seen(session, "eve", START, HEARTBEAT)


def test_a_stranger_among_many_spoils_nothing(session, pico):
    registry.seen_all(session, {"eve": {"samples": 1}, "pico": {"samples": 2}}, START, HEARTBEAT)
    assert (pico.samples, pico.status) == (2, "idle")


def test_a_device_cannot_tell_what_only_operators_decide(session, pico):
    with pytest.raises(TypeError, match="paused_at"):
        registry.seen(session, "pico", START, HEARTBEAT, paused_at=None)


def test_a_silent_device_becomes_late_then_offline_and_comes_back(session, pico):
    registry.seen(session, "pico", START, HEARTBEAT)
    seen_by_watch = {
        silent: [(change.old, change.new) for change in registry.watch(session, START + silent, HEARTBEAT)]
        for silent in (23, 25, 26, 119, 121, 500)
    }
    assert seen_by_watch == {
        23: [],
        25: [("idle", "late")],
        26: [],
        119: [],
        121: [("late", "offline")],
        500: [],
    }
    registry.seen(session, "pico", START + 600, HEARTBEAT)
    assert changes(session)[1:] == [
        ("idle", "late", "no sign for 25 s"),
        ("late", "offline", "no sign for 121 s"),
        ("offline", "idle", "heard again after 600 s"),
    ]


def test_a_device_that_was_not_looked_at_for_long_becomes_offline_at_once(session, pico):
    registry.seen(session, "pico", START, HEARTBEAT)
    assert [change.new for change in registry.watch(session, START + 3600, HEARTBEAT)] == ["offline"]
    assert pico.deadline_at is None


def test_a_whole_fleet_that_falls_silent_is_looked_at_in_portions(session):
    names = [f"board-{number}" for number in range(700)]
    for name in names:
        add_device(session, name)
    registry.seen_all(session, {name: {} for name in names}, START, HEARTBEAT)
    assert [len(registry.watch(session, START + 31, HEARTBEAT)) for _ in range(3)] == [500, 200, 0]


def test_the_watch_reads_overdue_devices_by_the_index_on_their_deadline(session, backend):
    connection = session.connection()
    if backend == "postgresql":  # it would rather scan a table that fits into one page
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}[backend]
    query = "SELECT id FROM device WHERE deadline_at < '2026-01-01' ORDER BY deadline_at"
    plan = connection.exec_driver_sql(f"{explain} {query}").all()
    assert "ix_device_deadline_at" in str(plan)


def test_pause_and_resume_are_told_in_the_journal(session, pico):
    registry.seen(session, "pico", START, HEARTBEAT)
    registry.pause(session, "pico", START + 1, HEARTBEAT, by="olga")
    assert (pico.status, pico.deadline_at) == ("paused", None)
    registry.seen(session, "pico", START + 5, HEARTBEAT)
    assert pico.status == "paused"
    registry.resume(session, "pico", START + 9, HEARTBEAT, by="olga")
    assert (pico.status, pico.deadline_at) == ("idle", START + 29)
    assert [(row.kind, row.text) for row in session.scalars(select(Event).order_by(Event.seq))] == [
        ("device-paused", "olga paused pico"),
        ("device-resumed", "olga resumed pico"),
    ]


def test_quarantine_lasts_until_an_operator_releases_the_device(session, pico):
    registry.seen(session, "pico", START, HEARTBEAT)
    registry.quarantine(session, "pico", START + 1, HEARTBEAT, "its update points backwards")
    registry.quarantine(session, "pico", START + 2, HEARTBEAT, "it does so again")
    assert (pico.status, pico.quarantine, pico.deadline_at) == ("quarantined", "its update points backwards", None)
    registry.release(session, "pico", START + 9, HEARTBEAT, by="olga")
    assert (pico.status, pico.quarantine) == ("idle", "")
    assert [(row.kind, row.text) for row in session.scalars(select(Event).order_by(Event.seq))] == [
        ("device-quarantined", "pico: its update points backwards"),
        ("device-released", "olga released pico"),
    ]
    with pytest.raises(ShoalError, match="pico is not in quarantine"):
        registry.release(session, "pico", START + 9, HEARTBEAT, by="olga")


def test_decisions_that_contradict_the_present_state_are_refused(session, pico):
    with pytest.raises(ShoalError, match="pico is not paused"):
        registry.resume(session, "pico", START, HEARTBEAT, by="olga")
    registry.pause(session, "pico", START, HEARTBEAT, by="olga")
    with pytest.raises(ShoalError, match="pico is already paused"):
        registry.pause(session, "pico", START, HEARTBEAT, by="olga")
    registry.revoke(session, "pico", START, HEARTBEAT, by="olga")
    for decide in (registry.pause, registry.resume, registry.revoke):
        with pytest.raises(ShoalError, match="pico is revoked") as caught:
            decide(session, "pico", START, HEARTBEAT, by="olga")
        assert caught.value.code == "conflict"
    with pytest.raises(ShoalError, match="no device 'eve'") as caught:
        registry.pause(session, "eve", START, HEARTBEAT, by="olga")
    assert caught.value.code == "not-found"


def test_only_a_devices_own_secret_matches_and_none_after_it_is_revoked(boards, session):
    def known(device, secret):
        return credentials.secret_matches(session, device, secret)

    assert known("pico", secret_of("pico"))
    assert not known("pico", secret_of("tre"))
    assert not known("pico", "")
    assert not known("eve", secret_of("pico"))
    registry.revoke(session, "pico", START, HEARTBEAT, by="ada")
    assert not known("pico", secret_of("pico"))
    assert known("tre", secret_of("tre"))
    assert session.scalars(select(Credential.revoked_at).where(Credential.device_id == "pico")).all() == [START]


class TestRotation:
    """The device makes the next secret; the present one counts until the next one was proved."""

    def matches(self, session, *secrets):
        return [credentials.secret_matches(session, "pico", secret) for secret in secrets]

    def test_both_secrets_are_good_until_the_next_one_is_proved(self, boards, session):
        old, new = secret_of("pico"), "n" * 40
        credentials.propose(session, "pico", new, "v", START)
        credentials.propose(session, "pico", new, "v", START)  # the answer was lost
        assert self.matches(session, old, new) == [True, True]
        assert dict(credentials.accounts(session))["pico"] != "v"
        credentials.prove(session, "pico", new, START + 1)
        credentials.prove(session, "pico", new, START + 1)
        assert self.matches(session, old, new) == [False, True]
        assert dict(credentials.accounts(session))["pico"] == "v"
        event = session.scalars(select(Event).where(Event.kind == "device-rotated")).one()
        assert event.device_id == "pico"

    def test_only_one_secret_waits_and_an_old_one_never_returns(self, boards, session):
        old, first, second = secret_of("pico"), "1" * 40, "2" * 40
        credentials.propose(session, "pico", first, "v", START)
        credentials.propose(session, "pico", second, "v", START)
        assert self.matches(session, old, first, second) == [True, False, True]
        with pytest.raises(ShoalError, match="was used before"):
            credentials.propose(session, "pico", first, "v", START)
        with pytest.raises(ShoalError, match="is not one of"):
            credentials.prove(session, "pico", first, START)
        credentials.prove(session, "pico", second, START)
        with pytest.raises(ShoalError, match="was used before"):
            credentials.propose(session, "pico", old, "v", START)

    def test_the_present_secret_may_be_proved_again_which_drops_the_next_one(self, boards, session):
        credentials.propose(session, "pico", "1" * 40, "v", START)
        credentials.prove(session, "pico", secret_of("pico"), START)
        assert self.matches(session, secret_of("pico"), "1" * 40) == [True, False]

    def test_the_oldest_secrets_are_found(self, boards, session):
        assert credentials.aged(session, START, 10) == []
        assert sorted(credentials.aged(session, START + 1, 10)) == sorted(boards)
        registry.revoke(session, "tre", START, HEARTBEAT, by="ada")
        assert "tre" not in credentials.aged(session, START + 1, 10)


def test_a_device_that_waits_for_adoption_is_pending_whatever_is_heard(boards, session):
    session.get(Device, "pico").pending_at = START
    registry.seen(session, "pico", START + 5, HEARTBEAT)
    pico = session.get(Device, "pico")
    assert (pico.status, pico.deadline_at) == ("pending", None)
    registry.adopt(session, "pico", START + 6, HEARTBEAT, by="olga")
    assert (pico.status, pico.pending_at) == ("idle", None)
    event = session.scalars(select(Event).where(Event.kind == "device-adopted")).one()
    assert event.text == "olga adopted pico"
    with pytest.raises(ShoalError, match="does not wait"):
        registry.adopt(session, "pico", START + 7, HEARTBEAT, by="olga")

def test_labels_are_what_was_told_last_and_forgotten_when_they_are_told_no_more(boards, session):
    query = select(views.device_labels).where(views.device_labels.c.device_id == "pico")
    registry.seen(session, "pico", START, HEARTBEAT, labels=[30, 0, 10])
    found = session.execute(query).all()
    assert [(row[3], row.samples, row.share) for row in found] == [(0, 30, 0.75), (1, 0, 0.0), (2, 10, 0.25)]
    registry.seen(session, "pico", START + 1, HEARTBEAT, labels=[0, 0])
    assert [row.share for row in session.execute(query)] == [None, None]
    registry.seen(session, "pico", START + 2, HEARTBEAT, labels=None)
    assert session.execute(query).all() == []
