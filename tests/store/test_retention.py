"""Old rows go a slice at a time; the ledger, and whatever recovery or a replay needs, stays."""

from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select

from benchmarks.fleet import Fleet
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.models import (
    Assignment,
    Event,
    Input,
    ModelVersion,
    Release,
    Run,
    Snapshot,
    Telemetry,
    Telemetry1h,
    Telemetry5m,
    Update,
)
from coordinator.store.retention import Keep, Retention
from coordinator.store.segments import Segments
from coordinator.training.steward import Steward
from tests.conftest import BACKENDS
from tests.store import killing

T0 = 1_699_999_200.0  # the beginning of an hour
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture(params=BACKENDS)
def database(request, new_database):
    database = Database(new_database(request.param))
    Fleet(devices=3, updates=40, beats=0).write(database)
    yield database
    database.close()


@pytest.fixture
def segments(tmp_path):
    segments = Segments(tmp_path / "segments", limit=10)
    yield segments
    segments.close()


@pytest.fixture
def retention(tmp_path, segments):
    return Retention(Keep(), Blobs(tmp_path / "blobs"), segments.folder)


def tend(retention, database, now, turns=200):
    """As many slices as it takes, as the steward would."""
    for _ in range(turns):
        with database.write() as session:
            later = retention.tend(session, now)
        for step in later:
            step()


def beat(device, at, **told):
    known = {"uptime": 60.0, "load": 1.0, "temperature": 50.0, "memory": 1000, "memory_free": 400, "disk_free": 900}
    return {"device_id": device, "at": at, "spool": 0, **known, **told}


def counts(database, *tables):
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in tables]


def test_heartbeats_are_rolled_up_to_means_and_worst_values(database, retention):
    with database.write() as session:
        rows = [
            beat("zero2-001", T0, temperature=40.0, load=None),
            beat("zero2-001", T0 + 299, temperature=60.0, memory_free=100, uptime=359.0),
            beat("zero2-001", T0 + 300, temperature=80.0, spool=7, load=4.0),
            beat("pi3-001", T0 + 10, temperature=None),
            beat("pi3-001", T0 + 2 * HOUR),
        ]
        session.execute(insert(Telemetry), rows)
    tend(retention, database, T0 + 3 * HOUR)
    with database.read() as session:
        short = session.scalars(select(Telemetry5m).order_by(Telemetry5m.device_id, Telemetry5m.at)).all()
        found = [
            (r.device_id, r.at - T0, r.beats, r.temperature, r.temperature_max, r.load, r.memory_free_min)
            for r in short
        ]
        assert found == [
            ("pi3-001", 0, 1, None, None, 1.0, 400),
            ("pi3-001", 7200, 1, 50.0, 50.0, 1.0, 400),
            ("zero2-001", 0, 2, 50.0, 60.0, 1.0, 100),
            ("zero2-001", 300, 1, 80.0, 80.0, 4.0, 400),
        ]
        first = session.get(Telemetry1h, ("zero2-001", T0))
        assert (first.beats, first.temperature, first.temperature_max, first.uptime) == (3, 60.0, 80.0, 359.0)
        assert (first.load, first.memory_free_min, first.spool_max) == (2.0, 100, 7)
        assert session.get(Telemetry1h, ("pi3-001", T0)).temperature is None


def test_a_span_is_rolled_up_when_it_is_over_and_only_once(database, retention, tmp_path):
    with database.write() as session:
        session.execute(insert(Telemetry), [beat("pi3-001", T0 + second) for second in range(0, 600, 10)])
    tend(retention, database, T0 + 305)
    assert counts(database, Telemetry5m) == [0]
    tend(retention, database, T0 + 311 + 60)
    assert counts(database, Telemetry5m) == [1]
    again = Retention(Keep(), Blobs(tmp_path / "blobs"), tmp_path / "segments")  # as after a restart
    tend(again, database, T0 + 2 * HOUR)
    assert counts(database, Telemetry5m, Telemetry1h) == [2, 1]


def test_single_heartbeats_go_when_they_are_old_and_rolled_up(database, retention):
    with database.write() as session:
        session.execute(insert(Telemetry), [beat("pi3-001", T0 + HOUR * number) for number in range(60)])
    last = T0 + HOUR * 59
    tend(retention, database, last)
    with database.read() as session:
        assert session.scalar(select(func.min(Telemetry.at))) == last - 48 * HOUR
        assert session.scalar(select(func.sum(Telemetry1h.beats))) == 58
    tend(retention, database, last + 40 * DAY)
    # SQLite keeps the newest, for its number must not be given again; PostgreSQL drops its day.
    newest = 1 if database.engine.dialect.name == "sqlite" else 0
    assert counts(database, Telemetry, Telemetry5m, Telemetry1h) == [newest, 0, 60]


def test_nothing_is_pruned_where_everything_is_to_be_kept(database, tmp_path):
    keep = Keep(telemetry=0, telemetry_5m=0, events=0, inputs=0)
    with database.write() as session:
        session.execute(insert(Telemetry), [beat("pi3-001", T0 + 10 * number) for number in range(100)])
        session.execute(insert(Event), [{"at": T0, "kind": "x", "text": ""}] * 3)
    before = counts(database, Telemetry, Event)
    tend(Retention(keep, Blobs(tmp_path / "blobs"), tmp_path), database, T0 + 1000 * DAY)
    assert counts(database, Telemetry, Event) == before


def test_old_events_go_but_never_the_newest_and_the_ledger_stays(database, retention):
    ledger = counts(database, Update, Assignment, ModelVersion, Run)
    with database.write() as session:
        session.execute(insert(Event), [{"at": T0 + number, "kind": "x", "text": ""} for number in range(1200)])
    tend(retention, database, T0 + 366 * DAY)
    assert counts(database, Event) == [1]
    assert counts(database, Update, Assignment, ModelVersion, Run) == ledger


def test_the_journal_keeps_so_many_lines_at_most(database, retention):
    with database.write() as session:
        session.execute(insert(Event), [{"at": T0 + number, "kind": "x", "text": ""} for number in range(1200)])
        newest = session.scalar(select(func.max(Event.seq)))
    retention.keep = Keep(events=0, lines=30)
    retention.prune(database, T0 + HOUR)
    with database.read() as session:
        assert session.execute(select(func.min(Event.seq), func.max(Event.seq))).one() == (newest - 29, newest)


def test_events_of_simulated_runs_stay_however_long_ago_they_played(database, retention):
    with database.write() as session:
        session.execute(Run.__table__.update().where(Run.id == "har-1").values(simulated=True))
        rows = [{"at": T0, "kind": "x", "text": "", "run_id": run} for run in ("digits-1", "har-1", "har-1", None)]
        session.execute(insert(Event), rows)
    tend(retention, database, T0 + 366 * DAY)
    with database.read() as session:
        assert session.scalars(select(Event.run_id).order_by(Event.seq)).all() == ["har-1", "har-1", None]


class TestInputs:
    """Ten bodies of 10 bytes, each in a segment of its own, as inputs 1 to 10 of two runs in turn."""

    @pytest.fixture
    def delivered(self, database, segments):
        with database.write() as session:
            session.execute(Run.__table__.update().values(state="finished", ended_at=T0 + 100))
            for seq in range(1, 11):
                place = list(segments.append(b"0123456789"))
                run = ("digits-1", "har-1")[seq % 2]
                row = {"seq": seq, "run_id": run, "kind": "delivered", "body": {"place": place}, "at": T0 + seq}
                session.execute(insert(Input).values(row))
        return database

    def snapshot(self, database, run, seq, blob="f" * 64):
        with database.write() as session:
            session.execute(insert(Snapshot).values(run_id=run, seq=seq, version=0, sha256=blob, at=T0 + seq))

    def reopen(self, database, run):
        with database.write() as session:
            session.get(Run, run).state = "running"

    def left(self, database):
        with database.read() as session:
            return list(session.scalars(select(Input.seq).order_by(Input.seq)))

    def bodies(self, segments):
        return [int(path.stem) for path in sorted(segments.folder.glob("*.segment"))]

    def test_what_recovery_reads_stays_however_old(self, delivered, retention, segments):
        self.reopen(delivered, "digits-1")
        self.snapshot(delivered, "digits-1", 4)
        self.snapshot(delivered, "digits-1", 8)
        tend(retention, delivered, T0 + 1000 * DAY)
        assert self.left(delivered) == [5, 6, 7, 8, 9, 10]
        with delivered.read() as session:
            for body in session.scalars(select(Input.body)):
                assert segments.read(*body["place"], 10) == b"0123456789"
        assert self.bodies(segments) == [5, 6, 7, 8, 9, 10]

    def test_a_run_without_a_snapshot_needs_all_of_them(self, delivered, retention, segments):
        self.reopen(delivered, "digits-1")
        tend(retention, delivered, T0 + 1000 * DAY)
        assert self.left(delivered) == list(range(1, 11))
        assert self.bodies(segments) == list(range(1, 11))

    def test_of_runs_that_have_ended_only_young_inputs_stay(self, delivered, retention, segments):
        tend(retention, delivered, T0 + 30 * DAY + 6.5)
        assert self.left(delivered) == [7, 8, 9, 10]
        assert self.bodies(segments) == [7, 8, 9, 10]

    def test_the_newest_input_always_stays_so_that_numbers_go_on(self, delivered, retention):
        tend(retention, delivered, T0 + 1000 * DAY)
        assert self.left(delivered) == [10]

    def test_of_bodies_no_more_is_kept_than_fits_and_their_inputs_go_with_them(self, delivered, retention, segments):
        retention.keep = Keep(inputs=0, bodies=35.0)  # the one that is being written to is not counted
        retention.prune(delivered, T0 + HOUR)
        assert self.left(delivered) == [7, 8, 9, 10]
        assert self.bodies(segments) == [7, 8, 9, 10]
        with delivered.read() as session:
            for body in session.scalars(select(Input.body)):
                assert segments.read(*body["place"], 10) == b"0123456789"

    def test_what_recovery_reads_is_kept_however_large(self, delivered, retention, segments):
        self.reopen(delivered, "digits-1")
        for seq in (2, 4, 8):
            self.snapshot(delivered, "digits-1", seq)
        retention.keep = Keep(inputs=0, bodies=1.0)
        retention.prune(delivered, T0 + HOUR)
        assert self.left(delivered) == [5, 6, 7, 8, 9, 10]
        assert self.bodies(segments) == [5, 6, 7, 8, 9, 10]

    def test_of_blobs_above_their_size_the_oldest_snapshots_of_the_past_go(self, delivered, retention):
        self.reopen(delivered, "digits-1")
        names = {}
        for run in ("digits-1", "har-1"):
            for seq in (2, 4, 6, 8):
                names[run, seq] = retention.blobs.put(f"{run} {seq}".encode() * 10)
                self.snapshot(delivered, run, seq, names[run, seq])
        whole = sum(path.stat().st_size for path in retention.blobs.folder.glob("*/*"))

        def kept(limit):
            fresh = Retention(Keep(inputs=0, blobs=limit), retention.blobs, retention.segments)
            fresh.prune(delivered, T0 + HOUR)
            with delivered.read() as session:
                rows = [tuple(row) for row in session.execute(select(Snapshot.run_id, Snapshot.seq))]
            assert {name for row, name in names.items() if retention.blobs.has(name)} == {names[row] for row in rows}
            return sorted(rows)

        assert kept(whole) == sorted(names)
        assert kept(whole - 1) in (sorted({*names} - {("digits-1", 2)}), sorted({*names} - {("har-1", 2)}))
        # of the run that goes on two are needed, of the one that has ended one
        assert kept(1.0) == [("digits-1", 6), ("digits-1", 8), ("har-1", 8)]

    def test_an_ended_run_keeps_its_last_snapshot(self, delivered, retention):
        first, last = (retention.blobs.put(content) for content in (b"first", b"last"))
        self.snapshot(delivered, "har-1", 5, first)
        self.snapshot(delivered, "har-1", 9, last)
        self.snapshot(delivered, "digits-1", 9, first)
        tend(retention, delivered, T0 + 1000 * DAY)
        with delivered.read() as session:
            found = session.execute(select(Snapshot.run_id, Snapshot.seq).order_by(Snapshot.run_id)).all()
        assert found == [("digits-1", 9), ("har-1", 9)]
        assert (retention.blobs.get(first), retention.blobs.get(last)) == (b"first", b"last")


    def test_weights_that_a_release_was_made_of_stay(self, delivered, retention):
        for seq in (2, 4, 8):
            blob = retention.blobs.put(f"weights {seq}".encode())
            with delivered.write() as session:
                values = {"run_id": "har-1", "seq": seq, "version": seq // 2, "sha256": blob, "at": T0 + seq}
                session.execute(insert(Snapshot).values(values))
        with delivered.write() as session:
            session.execute(Release.__table__.update().where(Release.id == 2).values(run_id="har-1", model_version=1))
        retention.keep = Keep(inputs=DAY, blobs=1.0)
        retention.prune(delivered, T0 + 1000 * DAY)
        with delivered.read() as session:
            assert session.scalars(select(Snapshot.seq).order_by(Snapshot.seq)).all() == [2, 8]


def test_a_task_that_fails_leaves_the_others_and_the_turn_alone(database, retention, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(Retention, "_roll_up", broken)
    Retention._roll_up.__name__ = "_roll_up"
    with database.write() as session:
        session.execute(insert(Event), [{"at": T0 + number, "kind": "x", "text": ""} for number in range(10)])
    tend(retention, database, T0 + 366 * DAY)
    assert counts(database, Event) == [1]
    assert caplog.text.count("retention-failed task=_roll_up") == 1


def test_the_steward_prunes_while_it_works(database, retention, segments, tmp_path):
    with database.write() as session:
        session.execute(Run.__table__.update().values(state="finished", ended_at=T0 + 100))
        session.execute(insert(Event), [{"at": T0 + number, "kind": "x", "text": ""} for number in range(50)])
        file = retention.blobs.put(b"first")
        for seq, sha256 in ((1, file), (2, retention.blobs.put(b"last"))):
            session.execute(insert(Snapshot).values(run_id="har-1", seq=seq, version=0, sha256=sha256, at=T0))
    steward = Steward(
        database,
        retention.blobs,
        segments,
        heartbeat=10.0,
        clock=lambda: T0 + 1000 * DAY,
        send=lambda *_: None,
        cut_off=lambda _: None,
        retain=retention.tend,
    )
    steward.start()
    while retention.blobs.path(file).exists() or counts(database, Event) != [1]:
        assert steward.is_alive()
        steward.write(lambda session: None)
    steward.stop()
    assert counts(database, Snapshot) == [1]


def test_killed_while_pruning_a_slice_is_gone_or_there(database, tmp_path):
    beats = 4500  # ten seconds apart: 150 spans of 30
    with database.write() as session:
        session.execute(insert(Telemetry), [beat("pi3-001", T0 + 10 * number) for number in range(beats)])
    url = database.url
    database.engine.dispose()

    def work():
        own = Database(url)
        tend(Retention(Keep(telemetry=HOUR), Blobs(tmp_path / "blobs"), tmp_path), own, T0 + DAY, turns=180)

    for seed in range(2):
        killing.killed(work, 0.5, seed)
        with database.read() as session:
            raw, first = session.execute(select(func.count(Telemetry.id), func.min(Telemetry.at))).one()
            before = Telemetry5m.at < first - first % 300
            rolled = session.scalar(select(func.sum(Telemetry5m.beats)).where(before)) or 0
        # What went had been rolled up before, all of it; what is left is everything behind it.
        assert raw == beats - round((first - T0) / 10)
        assert rolled == round((first - first % 300 - T0) / 10)
        database.engine.dispose()
    work()
    with database.read() as session:
        assert session.scalar(select(func.sum(Telemetry5m.beats))) == beats
        assert session.scalar(select(func.count(Telemetry.id))) < beats
