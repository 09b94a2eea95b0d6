"""The ledger: what every effect of an engine becomes in the books."""

from __future__ import annotations

from itertools import pairwise

import pytest
from attrs import evolve
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from coordinator.store import ledger, models, registry
from coordinator.store.ledger import Delivery, Entry, Ledger
from coordinator.strategies.base import Contributor
from coordinator.training.inputs import Changed, Closed, Evaluated, Offered, Settled, Versioned
from protocol.messages import Lineage, Plan, Timings, Update

NOW = 1_700_000_000.0
ARTIFACT, WEIGHTS, BODY = "a" * 64, "b" * 64, "c" * 64
PLAN = Plan(width=0.5, batch=16, steps=20, learning_rate=0.1, coding="int8")
OFFER = Offered("run-1.1", "pi", "pi.1", 3, PLAN, NOW + 900, {"fixed": {"width": 0.5}}, again=False)
UPDATE = Update(
    assignment="run-1.1", commit=1, run="run-1", lineage=Lineage(version=3, shape_epoch=0), samples=320, steps=20,
    loss=0.75, accuracy=0.5, squared_gradient={}, squared_gradient_peak={},
    timings=Timings(download=1.5, train=60.0, upload=None), bytes_down=90_000, coding="int8", size=20_000,
    sha256=BODY, chunk=0,
)  # fmt: skip


@pytest.fixture
def session(database):
    """A transaction in which two boards and one run are known."""
    with database.write() as session:
        for name in ("pi", "zero"):
            times = {"enrolled_at": NOW, "status_at": NOW, "last_seen_at": NOW}
            session.add(models.Device(id=name, name=name, capability={}, **times))
        session.add(models.Model(id=1, name="toy", spec_sha256="0" * 64, spec={}, created_at=NOW))
        session.flush()
        run = {"recipe": "", "recipe_name": "x", "seed": 0, "state": "running", "created_at": NOW}
        session.add(models.Run(id="run-1", model_id=1, **run))
        session.flush()
        yield session


def book(session, now=NOW):
    return Ledger(session, "run-1", now, heartbeat=10.0)


def only(session, table):
    session.expire_all()
    return session.scalars(select(table)).one()


def settled(outcome="stored", reason="", staleness=0, norm=2.0, update=UPDATE):
    return Settled("pi", update, outcome, reason, staleness, norm)


@pytest.fixture
def offered(session):
    book(session).offered(OFFER, Delivery(ARTIFACT, 700, WEIGHTS, 300))
    registry.note(session, "pi", NOW, 10.0, assignment_id="run-1.1")
    return session


def test_an_offer(offered):
    row = only(offered, models.Assignment)
    assert (row.id, row.run_id, row.device_id, row.kind, row.version, row.width) == (
        "run-1.1", "run-1", "pi", "train", 3, 0.5
    )  # fmt: skip
    assert (row.state, row.reason, row.offered_at, row.expires_at) == ("offered", "", NOW, NOW + 900)
    assert (row.artifact_sha256, row.weights_sha256, row.bytes_down) == (ARTIFACT, WEIGHTS, 1000)
    assert row.plan == {"width": 0.5, "batch": 16, "steps": 20, "learning_rate": 0.1, "coding": "int8"}
    assert row.explanation == {"fixed": {"width": 0.5}}
    assert ledger.known(offered, "run-1.1", 1) == (("run-1", "pi"), None)
    assert ledger.delivery(offered, "run-1.1") == (ARTIFACT, WEIGHTS)
    assert ledger.open_weights(offered, "run-1") == [("run-1.1", WEIGHTS)]


def test_what_is_not_there(session):
    assert ledger.known(session, "run-1.9", 1) == (None, None)
    assert ledger.open_weights(session, "run-1") == []


def test_only_its_device_takes_an_assignment_and_only_once(offered):
    ledger.take(offered, NOW + 1, "zero", "run-1.1")
    assert only(offered, models.Assignment).state == "offered"
    ledger.take(offered, NOW + 2, "pi", "run-1.1")
    ledger.take(offered, NOW + 3, "pi", "run-1.1")
    row = only(offered, models.Assignment)
    assert (row.state, row.taken_at) == ("taken", NOW + 2)
    assert ledger.open_weights(offered, "run-1") == [("run-1.1", WEIGHTS)]


def test_a_stored_update(offered):
    book(offered, NOW + 60).settled(settled(staleness=2), (4, 1024))
    row = only(offered, models.Update)
    assert (row.assignment_id, row.commit, row.run_id, row.device_id) == ("run-1.1", 1, "run-1", "pi")
    assert (row.outcome, row.reason, row.norm) == ("stored", "", 2.0)
    assert (row.base_version, row.staleness, row.width) == (3, 2, 0.5)
    assert (row.samples, row.steps, row.loss, row.accuracy) == (320, 20, 0.75, 0.5)
    assert (row.bytes_up, row.bytes_down) == (20_000, 90_000)
    assert (row.seconds_download, row.seconds_train, row.seconds_upload) == (1.5, 60.0, None)
    assert (row.sha256, row.segment, row.offset, row.at) == (BODY, 4, 1024, NOW + 60)
    assert (row.weight, row.applied_version) == (None, None)
    assignment = only(offered, models.Assignment)
    assert (assignment.state, assignment.closed_at) == ("closed", NOW + 60)
    assert ledger.known(offered, "run-1.1", 1)[1] == Entry("stored", BODY, "")
    # one that has just delivered counts as training until it is told otherwise
    assert offered.get(models.Device, "pi").assignment_id == "run-1.1"
    assert offered.scalars(select(models.Event)).all() == []


@pytest.mark.parametrize(("outcome", "state"), [("stale", "closed"), ("refused", "closed"), ("expired", "offered")])
def test_an_update_that_is_not_used(offered, outcome, state):
    book(offered).settled(settled(outcome, "because", None, None), (0, 0))
    row = only(offered, models.Update)
    assert (row.outcome, row.reason, row.staleness, row.norm) == (outcome, "because", None, None)
    assert only(offered, models.Assignment).state == state
    events = [(e.kind, e.text, e.device_id, e.run_id) for e in offered.scalars(select(models.Event))]
    told = [(f"update-{outcome}", "run-1.1: because", "pi", "run-1")]
    assert events == ([] if outcome == "stale" else told)


def test_an_update_is_in_the_books_once(offered):
    book(offered).settled(settled(), (1, 0))
    with pytest.raises(IntegrityError), offered.begin_nested():
        book(offered).settled(settled(), (1, 0))
    book(offered).settled(settled(update=evolve(UPDATE, commit=2)), (1, 0))
    assert len(offered.scalars(select(models.Update)).all()) == 2


def test_an_assignment_that_ends_without_an_update(offered):
    book(offered, NOW + 5).closed(Closed("run-1.1", "pi", "expired", "the lease ran out"))
    row = only(offered, models.Assignment)
    assert (row.state, row.reason, row.closed_at) == ("expired", "the lease ran out", NOW + 5)
    assert (offered.get(models.Device, "pi").assignment_id, offered.get(models.Device, "pi").status) == (None, "idle")
    event = only(offered, models.Event)
    assert (event.kind, event.text) == ("assignment-expired", "run-1.1: the lease ran out")


def test_an_old_assignments_end_leaves_a_device_its_new_one(offered):
    book(offered).offered(evolve(OFFER, assignment="run-1.2"), Delivery(ARTIFACT, 700, WEIGHTS, 300))
    registry.note(offered, "pi", NOW, 10.0, assignment_id="run-1.2")
    book(offered).closed(Closed("run-1.1", "pi", "cancelled", "the device does not hold it any more"))
    assert offered.get(models.Device, "pi").assignment_id == "run-1.2"
    assert ledger.open_weights(offered, "run-1") == [("run-1.2", WEIGHTS)]


def test_an_end_is_final(offered):
    book(offered).closed(Closed("run-1.1", "pi", "expired", "the lease ran out"))
    book(offered, NOW + 9).settled(settled("refused", "too late to matter", 0, None), (0, 0))
    row = only(offered, models.Assignment)
    assert (row.state, row.reason, row.closed_at) == ("expired", "the lease ran out", NOW)


def test_a_version_and_what_went_into_it(offered):
    book(offered).settled(settled(), (1, 0))
    other = evolve(UPDATE, commit=2)
    book(offered).settled(settled(update=other), (1, 0))
    book(offered, NOW + 7).versioned(Versioned(4, ARTIFACT, 0.5, (Contributor("run-1.1/2", 0.25),)))
    row = only(offered, models.ModelVersion)
    assert (row.run_id, row.version, row.sha256, row.step_norm, row.updates, row.at) == (
        "run-1", 4, ARTIFACT, 0.5, 1, NOW + 7
    )  # fmt: skip
    updates = offered.scalars(select(models.Update).order_by(models.Update.commit)).all()
    assert [(u.outcome, u.applied_version, u.weight) for u in updates] == [("stored", None, None), ("applied", 4, 0.25)]
    assert only(offered, models.Run).version == 4


def test_a_measurement_and_its_repetition(session):
    for accuracy in (0.5, 0.75):
        book(session).evaluated(Evaluated(2, accuracy, 1.25))
    session.flush()
    rows = session.scalars(select(models.Metric).order_by(models.Metric.name)).all()
    assert [(m.version, m.name, m.value) for m in rows] == [(2, "accuracy", 0.75), (2, "loss", 1.25)]


@pytest.mark.parametrize(
    ("state", "over"), [("paused", False), ("running", False), ("stopped", True), ("finished", True)]
)
def test_a_runs_state(session, state, over):
    book(session, NOW + 3).changed(Changed(state, "because"))
    row = only(session, models.Run)
    assert (row.state, row.reason, row.ended_at) == (state, "because", NOW + 3 if over else None)
    event = only(session, models.Event)
    assert (event.kind, event.text, event.run_id, event.at) == (f"run-{state}", "because", "run-1", NOW + 3)


def test_the_journal_counts_upwards(session):
    for words in ("one", "two", "three"):
        ledger.note(session, NOW, "note", words, device="pi")
    rows = session.execute(select(models.Event.seq, models.Event.text).order_by(models.Event.seq)).all()
    assert [row.text for row in rows] == ["one", "two", "three"]
    assert [b.seq - a.seq for a, b in pairwise(rows)] == [1, 1]
