"""The read model over pico, tre and cinque, whose numbers can be counted by hand."""

from __future__ import annotations

from importlib import import_module

import pytest
from attrs import fields
from sqlalchemy import event, text

from coordinator.errors import ShoalError
from coordinator.store import queries
from coordinator.store.database import Database
from coordinator.store.models import (
    Assignment,
    Device,
    Event,
    Input,
    Metric,
    Model,
    ModelVersion,
    Run,
    Snapshot,
    StatusChange,
    Telemetry,
    Update,
)
from coordinator.store.queries import DeviceFilter, Order, UpdateFilter
from tests.conftest import BACKENDS

T0 = 1_700_000_000.0
NOW = T0 + 600


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def session(backend, new_database):
    database = Database(new_database(backend))
    with database.write() as writing:
        _write(writing)
    with database.read() as reading:
        yield reading
    database.close()


@pytest.fixture(scope="module")
def empty(backend, new_database):
    database = Database(new_database(backend))
    with database.read() as reading:
        yield reading
    database.close()


@pytest.fixture
def fresh(backend, new_database):
    """A database of one's own, to write into."""
    database = Database(new_database(backend))
    with database.write() as writing:
        _write(writing)
    yield database
    database.close()


def beat(**told):
    return {
        "assignment": None,
        "step": None,
        "temperature": 50.0,
        "memory": 1000,
        "memory_free": 400,
        "disk_free": 10**10,
        "training": 30.0,
        "since": 120.0,
        **told,
    }


def _write(session):
    session.add(Model(id=1, name="mlp", spec_sha256="a" * 64, spec={}, created_at=T0))
    session.flush()
    for id, recipe, state, at in (("r1", "fedbuff", "running", T0), ("r2", "whale-fl", "paused", T0 + 100)):
        session.add(
            Run(
                id=id,
                model_id=1,
                recipe="x = 1\n",
                recipe_name=recipe,
                seed=1,
                target=0.9,
                state=state,
                version=4,
                created_at=at,
            )
        )
    for id, group, status, since, told in (
        ("pico", "kitchen", "training", NOW - 5, beat(assignment="a5", step=7, temperature=81.0)),
        ("tre", "kitchen", "offline", NOW - 200, beat(temperature=None, disk_free=1000)),
        ("cinque", "cellar", "new", T0, None),
    ):
        session.add(
            Device(
                id=f"id-{id}",
                name=id,
                group=group,
                capability={"cores": 4},
                enrolled_at=T0,
                status=status,
                status_at=since,
                last_seen_at=None if told is None else since,
                agent="0.1",
                runtime="tflite",
                samples=10,
                assignment_id="a5" if id == "pico" else None,
                telemetry=told,
            )
        )
    session.flush()
    # assignment, device, width, state, taken, closed
    for id, device, width, state, taken, closed in (
        ("a1", "pico", 1.0, "closed", 10, 20),
        ("a2", "tre", 0.5, "closed", 10, 40),
        ("a3", "pico", 1.0, "closed", 30, 50),
        ("a4", "tre", 0.25, "expired", 60, 300),
        ("a5", "pico", 0.5, "taken", 590, None),
    ):
        session.add(
            Assignment(
                id=id,
                run_id="r1",
                device_id=f"id-{device}",
                kind="train",
                version=1,
                width=width,
                plan={"steps": 20},
                explanation={"heterofl": {"group": "kitchen", "width": width}},
                state=state,
                reason="no sign" if state == "expired" else "",
                artifact_sha256="b" * 64,
                weights_sha256="c" * 64,
                bytes_down=1000,
                offered_at=T0 + taken - 1,
                taken_at=T0 + taken,
                expires_at=T0 + 900,
                closed_at=None if closed is None else T0 + closed,
            )
        )
    session.flush()
    # assignment, device, outcome, staleness, width, bytes, at
    for id, (assignment, device, outcome, staleness, width, up, at) in enumerate(
        (
            ("a1", "pico", "applied", 0, 1.0, 100, 20),
            ("a2", "tre", "applied", 2, 0.5, 50, 40),
            ("a3", "pico", "stale", 9, 1.0, 100, 50),
            ("a4", "tre", "refused", None, 0.25, 25, 320),
        ),
        start=1,
    ):
        session.add(
            Update(
                id=id,
                assignment_id=assignment,
                commit=1,
                run_id="r1",
                device_id=f"id-{device}",
                base_version=1,
                applied_version=id + 1 if outcome == "applied" else None,
                staleness=staleness,
                width=width,
                weight=None,
                samples=10,
                steps=20,
                loss=1 / id,
                accuracy=0.5,
                norm=1.0,
                bytes_up=up,
                bytes_down=1000,
                seconds_download=0.1,
                seconds_train=5.0,
                seconds_upload=None,
                outcome=outcome,
                reason="not finite" if outcome == "refused" else "",
                sha256="d" * 64,
                segment=1,
                offset=0,
                at=T0 + at,
            )
        )
    for version, at, accuracy in ((0, 0, 0.1), (2, 20, 0.6), (3, 40, 0.5)):
        session.add(ModelVersion(run_id="r1", version=version, sha256="e" * 64, step_norm=1, updates=1, at=T0 + at))
        session.add(Metric(run_id="r1", version=version, name="accuracy", value=accuracy, at=T0 + at + 3))
        session.add(Metric(run_id="r1", version=version, name="loss", value=1 - accuracy, at=T0 + at + 3))
    for seconds, temperature in ((0, 40.0), (10, 50.0), (100, None), (110, 60.0)):
        session.add(
            Telemetry(
                device_id="id-pico",
                at=T0 + seconds,
                uptime=1,
                load=0.5,
                temperature=temperature,
                memory=1000,
                memory_free=500,
                disk_free=None,
                spool=0,
            )
        )
    session.add(StatusChange(device_id="id-tre", old="idle", new="offline", reason="no sign for 120 s", at=NOW - 200))
    session.add(StatusChange(device_id="id-tre", old="new", new="idle", reason="heard", at=T0))
    for seq, run, device in ((1, "r1", None), (2, "r2", None), (3, None, "id-tre")):
        session.add(
            Event(
                seq=seq,
                at=T0 + 100 * seq,
                kind="run-paused" if run == "r2" else "note",
                run_id=run,
                device_id=device,
                text=f"event {seq}",
            )
        )


def names(page):
    return [row.name for row in page.rows]


def test_a_device_row_tells_its_status_its_work_and_what_its_updates_came_to(session):
    pico = queries.devices(session, DeviceFilter(text="pico"), Order("name")).rows[0]

    assert (pico.status, pico.since, pico.last_seen, pico.group) == ("training", NOW - 5, NOW - 5, "kitchen")
    assert (pico.assignment, pico.run, pico.version, pico.width) == ("a5", "r1", 1, 0.5)
    assert (pico.step, pico.steps) == (7, 20)
    assert (pico.applied, pico.updates, pico.last_update) == (1, 2, T0 + 50)
    assert (pico.temperature, pico.memory_free, pico.training_share) == (81.0, 400, 0.25)
    assert pico.flags == ("hot",)


def test_a_device_that_was_never_heard_is_unknown_in_everything(session):
    cinque = queries.devices(session, DeviceFilter(status="new"), Order("name")).rows[0]

    unknown = (
        "last_seen",
        "assignment",
        "run",
        "version",
        "width",
        "step",
        "steps",
        "last_update",
        "temperature",
        "memory",
        "memory_free",
        "disk_free",
        "training_share",
    )
    assert {name: getattr(cinque, name) for name in unknown} == dict.fromkeys(unknown)
    assert (cinque.updates, cinque.applied, cinque.flags) == (0, 0, ())


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (DeviceFilter(), ["cinque", "pico", "tre"]),
        (DeviceFilter(status="offline"), ["tre"]),
        (DeviceFilter(group="kitchen"), ["pico", "tre"]),
        (DeviceFilter(group="kitchen", status="new"), []),
        (DeviceFilter(text="IC"), ["pico"]),
        (DeviceFilter(text="cellar"), ["cinque"]),
        (DeviceFilter(text="%"), []),
        (DeviceFilter(flag="hot"), ["pico"]),
        (DeviceFilter(flag="low-disk"), ["tre"]),
    ],
)
def test_devices_are_filtered(session, wanted, found):
    page = queries.devices(session, wanted, Order("name"))

    assert names(page) == found
    assert page.total == len(found)


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("name", ["cinque", "pico", "tre"]),
        ("-name", ["tre", "pico", "cinque"]),
        ("temperature", ["pico", "cinque", "tre"]),
        ("disk_free", ["tre", "pico", "cinque"]),
        ("last_update", ["pico", "tre", "cinque"]),
        ("-last_update", ["tre", "pico", "cinque"]),
        ("updates", ["cinque", "pico", "tre"]),
        ("width", ["pico", "cinque", "tre"]),
    ],
)
def test_devices_are_sorted_and_the_unknown_comes_last_either_way(session, sort, found):
    assert names(queries.devices(session, DeviceFilter(), Order.parse(sort))) == found


@pytest.mark.parametrize("minus", ["", "-"])
def test_every_column_of_a_list_can_be_sorted_by(session, minus):
    columns = {
        name: import_module(f"coordinator.store.queries.{name}").SORTS for name in ("devices", "history", "runs")
    }

    for name in columns["devices"]:
        assert len(queries.devices(session, DeviceFilter(), Order.parse(minus + name)).rows) == 3
    for name in columns["history"]:
        assert len(queries.updates(session, UpdateFilter(), Order.parse(minus + name)).rows) == 4
    for name in columns["runs"]:
        assert len(queries.runs(session, Order.parse(minus + name), NOW).rows) == 2


@pytest.fixture
def given(fresh):
    """The same rows, where pico's updates were taken three times as seriously as tre's and tell of its hold-out."""
    with fresh.write() as session:
        session.get(Update, 1).weight, session.get(Update, 2).weight = 3.0, 1.0
        for id, accuracy in ((1, 0.4), (3, 0.7)):
            told = session.get(Update, id)
            told.holdout_samples, told.holdout_accuracy, told.holdout_loss = 5, accuracy, 1 - accuracy
        session.add(Snapshot(run_id="r1", seq=1, version=2, sha256="f" * 64, at=T0))
    with fresh.read() as session:
        yield session


def test_what_each_device_gave_to_a_run_and_what_its_hold_out_says(given):
    pico, tre = queries.contributions(given, "r1", Order("share", descending=True)).rows

    assert (pico.device, pico.share, pico.updates, pico.applied) == ("pico", 0.75, 2, 1)
    assert (pico.width, pico.staleness, pico.bytes_up, pico.last) == (1.0, 4.5, 200, T0 + 50)
    assert (pico.local_samples, pico.local_accuracy) == (5, 0.7)
    assert (tre.share, tre.width, tre.staleness, tre.local_accuracy) == (0.25, 0.375, 2.0, None)
    assert queries.contributions(given, "r2", Order("share")).rows == ()


def test_contributions_are_sorted_by_every_column(given):
    for sort in ("device", "group", "local", "share", "updates", "applied", "width", "staleness", "bytes_up", "last"):
        assert len(queries.contributions(given, "r1", Order(sort)).rows) == 2


def test_staleness_over_time_leaves_out_what_never_got_one(given):
    spans = queries.delays(given, "r1", T0, T0 + 59, spans=6)

    assert [(one.begin - T0, one.end - T0, one.mean, one.most, one.count) for one in spans] == [
        (20, 30, 0.0, 0, 1),
        (40, 50, 2.0, 2, 1),
        (50, 60, 9.0, 9, 1),
    ]


def test_versions_say_how_good_they_are_and_whether_their_weights_are_kept(given):
    page = queries.versions(given, "r1", Order("version"))

    assert [(one.version, one.accuracy, one.kept) for one in page.rows] == [
        (0, 0.1, False),
        (2, 0.6, True),
        (3, 0.5, False),
    ]
    for sort in ("at", "updates", "step_norm", "accuracy", "loss"):
        assert len(queries.versions(given, "r1", Order(sort, True)).rows) == 3


def test_a_model_says_how_many_runs_train_it_and_how_well(given):
    [row] = queries.models(given)

    assert (row.name, row.runs, row.best_accuracy, row.last_run) == ("mlp", 2, 0.6, T0 + 100)
    assert queries.model_of(given, "r1") == queries.model(given, "a" * 64) == row
    assert queries.runs_of(given, "a" * 64) == ("r2", "r1")


@pytest.mark.parametrize("ask", ["model", "model_of"])
def test_a_model_that_is_not_there_is_not_found(given, ask):
    with pytest.raises(ShoalError, match="There is no"):
        getattr(queries, ask)(given, "nothing")


def test_pages_partition_the_list(session):
    pages = [queries.devices(session, DeviceFilter(), Order("name", page=number, size=2)) for number in (1, 2, 3)]

    assert [names(page) for page in pages] == [["cinque", "pico"], ["tre"], []]
    assert [(page.first, page.last, page.pages) for page in pages] == [(1, 2, 2), (3, 3, 2), (0, 4, 2)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: queries.devices(s, DeviceFilter(), Order("secret_hash")),
        lambda s: queries.devices(s, DeviceFilter(status="asleep"), Order("name")),
        lambda s: queries.devices(s, DeviceFilter(flag="cold"), Order("name")),
        lambda s: queries.updates(s, UpdateFilter(outcome="lost"), Order("id")),
        lambda s: queries.runs(s, Order("id"), NOW, state="gone"),
        lambda s: Order("name", page=0),
        lambda s: Order("name", size=1001),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(session, ask):
    with pytest.raises(ShoalError, match="expected") as error:
        ask(session)
    assert error.value.code == "bad-request"


@pytest.mark.parametrize("ask", [queries.device, queries.why, queries.curve])
def test_what_is_not_there_is_not_found(session, ask):
    with pytest.raises(ShoalError, match="There is no") as error:
        ask(session, "nothing")
    assert error.value.code == "not-found"


def test_the_number_of_statements_does_not_grow_with_the_rows(fresh):
    def count(size):
        seen = []
        listener = lambda *args: seen.append(args)  # noqa: E731
        event.listen(fresh.engine, "before_cursor_execute", listener)
        with fresh.read() as session:
            queries.devices(session, DeviceFilter(), Order("name", size=size))
            queries.runs(session, Order("id", size=size), NOW)
            queries.updates(session, UpdateFilter(), Order("id", size=size))
        event.remove(fresh.engine, "before_cursor_execute", listener)
        return len(seen)

    assert count(1) == count(3)


def test_a_device_in_detail(session):
    detail = queries.device(session, "id-tre")

    assert detail.row.name == "tre"
    assert detail.outcomes == {"applied": 1, "refused": 1}
    assert (detail.bytes_up, detail.bytes_down) == (75, 2000)
    assert detail.capability == {"cores": 4}


def test_groups_and_counts_by_status(session):
    assert queries.groups(session) == ("cellar", "kitchen")
    assert queries.status_counts(session) == {"new": 1, "training": 1, "offline": 1}


def test_status_changes_come_newest_first(session):
    assert [(row.old, row.new) for row in queries.status_changes(session, "id-tre")] == [
        ("idle", "offline"),
        ("new", "idle"),
    ]


def test_telemetry_is_averaged_over_spans_of_time(session):
    points = queries.telemetry(session, "id-pico", T0, T0 + 119, points=2)

    assert [(point.at, point.temperature) for point in points] == [(T0, 45.0), (T0 + 60, 60.0)]
    assert points[0].disk_free is None


def test_runs_tell_last_and_best_accuracy_and_who_works_for_them(session):
    first, second = queries.runs(session, Order("id"), NOW).rows

    assert (first.last_accuracy, first.best_accuracy, first.active) == (0.5, 0.6, 1)
    assert first.outcomes == {"applied": 2, "stale": 1, "refused": 1}
    assert first.per_minute == pytest.approx(1 / 5)  # one update in the last five minutes
    assert (second.last_accuracy, second.outcomes, second.active) == (None, {}, 0)
    assert (first.since, second.since) == (T0, T0 + 200)  # when it was started, when it was paused


def test_a_run_in_detail(session):
    detail = queries.run(session, "r1", NOW)

    assert (detail.staleness_p50, detail.staleness_p95) == (2, 9)
    assert detail.widths == {0.25: 1, 0.5: 1, 1.0: 2}
    assert (detail.bytes_up, detail.bytes_down, detail.devices) == (275, 4000, 2)
    assert detail.last_update == T0 + 320


def test_the_curve_counts_the_bytes_until_each_version(session):
    points = queries.curve(session, "r1")

    assert [(p.version, p.seconds, p.bytes_up) for p in points] == [(0, 0, 0), (2, 20, 100), (3, 40, 150)]
    assert [(p.accuracy, p.loss) for p in points] == [(0.1, 0.9), (0.6, 0.4), (0.5, 0.5)]
    assert [p.version for p in queries.curve(session, "r1", after=2)] == [3]


def test_staleness_is_counted_by_outcome(session):
    found = queries.staleness(session, "r1")

    assert found.counts == {0: {"applied": 1}, 2: {"applied": 1}, 9: {"stale": 1}}
    assert [found.percentile(share) for share in (0.1, 0.5, 0.67, 1.0)] == [0, 2, 9, 9]
    assert queries.staleness(session, "r2").percentile(0.5) is None


def test_widths_over_time(session):
    spans = queries.widths(session, "r1", T0, T0 + 399, spans=4)

    assert [(s.begin - T0, s.end - T0, s.counts) for s in spans] == [
        (0, 100, {0.5: 1, 1.0: 2}),
        (300, 400, {0.25: 1}),
    ]


def test_the_bars_of_a_window_are_those_that_touch_it(session):
    found = queries.work(session, "r1", T0 + 45, T0 + 100, NOW)

    assert [(bar.assignment, bar.begin - T0, bar.end - T0, bar.outcome) for bar in found.bars] == [
        ("a3", 30, 50, "stale"),
        ("a4", 60, 300, "refused"),
    ]
    assert (found.devices, found.total) == (("pico", "tre"), 2)
    assert queries.workers(session, "r1", T0 + 45, T0 + 100) == 2


def test_open_work_ends_now(session):
    (bar,) = queries.work(session, "r1", NOW - 60, NOW, NOW).bars

    assert (bar.assignment, bar.open, bar.begin, bar.end, bar.outcome) == ("a5", True, NOW - 10, NOW, "taken")


def test_lanes_come_in_pages_of_devices(session):
    found = queries.work(session, "r1", T0, NOW, NOW, page=2, lanes=1)

    assert (found.devices, found.total) == (("tre",), 2)
    assert {bar.name for bar in found.bars} == {"tre"}


def test_why_gives_the_plan_the_explanation_and_the_end(session):
    found = queries.why(session, "a4")

    assert (found.name, found.width, found.plan) == ("tre", 0.25, {"steps": 20})
    assert found.explanation == {"heterofl": {"group": "kitchen", "width": 0.25}}
    assert (found.state, found.reason, found.outcome, found.update_reason) == (
        "expired",
        "no sign",
        "refused",
        "not finite",
    )


def test_assignments_come_newest_first(session):
    assert [row.id for row in queries.assignments(session, device="id-pico")] == ["a5", "a3", "a1"]
    assert [row.id for row in queries.assignments(session, run="r1", only_open=True)] == ["a5"]
    assert [row.id for row in queries.assignments(session, limit=2)] == ["a5", "a4"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (UpdateFilter(), [1, 2, 3, 4]),
        (UpdateFilter(run="r2"), []),
        (UpdateFilter(device="pico"), [1, 3]),
        (UpdateFilter(device="id-tre"), [2, 4]),
        (UpdateFilter(outcome="applied"), [1, 2]),
        (UpdateFilter(width=1.0), [1, 3]),
        (UpdateFilter(since=T0 + 40, until=T0 + 50), [2, 3]),
    ],
)
def test_updates_are_filtered_alike_in_pages_and_in_the_export(session, wanted, found):
    page = queries.updates(session, wanted, Order("id"))

    assert [row.id for row in page.rows] == found
    assert page.total == len(found)
    assert [row.id for row in queries.export(session, wanted, batch=1)] == found


def test_an_update_row_has_every_column_of_the_file(session):
    (row,) = queries.updates(session, UpdateFilter(outcome="refused"), Order("id")).rows

    assert set(queries.UPDATE_COLUMNS) <= {one.name for one in fields(type(row))}
    assert (row.device, row.device_id, row.reason, row.seconds_upload) == ("tre", "id-tre", "not finite", None)


def test_events_after_a_cursor_newest_first(session):
    assert [row.seq for row in queries.events(session)] == [3, 2, 1]
    assert [row.seq for row in queries.events(session, after=1)] == [3, 2]
    assert [row.seq for row in queries.events(session, run="r1")] == [1]
    assert [(row.seq, row.device) for row in queries.events(session, device="id-tre")] == [(3, "tre")]


def test_the_overview_lists_what_needs_attention(session):
    seen = queries.overview(session, NOW)

    assert [(one.kind, one.count, [case.name for case in one.cases]) for one in seen.attention] == [
        ("refused", 1, ["tre"]),
        ("offline", 1, ["tre"]),
        ("hot", 1, ["pico"]),
    ]  # tre is low on disk, too, but that is old news of a device that is offline
    assert seen.attention[0].cases[0].note == "not finite"
    assert seen.attention[1].cases[0].note == "no sign for 120 s"
    assert (seen.devices, seen.working, seen.updates) == (3, 1, 4)
    assert [run.id for run in seen.running] == ["r1"]
    assert (seen.accuracy, seen.accuracy_run) == (0.5, "r1")


def test_a_refusal_is_no_news_after_an_hour(session):
    assert "refused" not in [one.kind for one in queries.overview(session, T0 + 320 + 3601).attention]


def test_a_running_run_that_no_device_works_for_needs_attention(fresh):
    with fresh.write() as session:
        session.get(Assignment, "a5").state = "cancelled"
    with fresh.read() as session:
        idle = [one for one in queries.overview(session, NOW).attention if one.kind == "idle-run"]
    assert [case.id for case in idle[0].cases] == ["r1"]


def test_throughput_counts_updates_by_minute(session):
    minutes = queries.throughput(session, T0 + 320, minutes=6)

    # T0 lies 20 s into its minute: the update at 20 s falls into that one, those at 40 s and 50 s into the next.
    assert T0 % 60 == 20
    assert minutes == (1, 2, 0, 0, 0, 1)


def test_an_empty_database_gives_an_empty_overview(empty):
    seen = queries.overview(empty, NOW)

    assert (seen.devices, seen.attention, seen.running, seen.events, seen.accuracy) == (0, (), (), (), None)
    assert seen.per_minute == (0,) * 60
    assert queries.devices(empty, DeviceFilter(), Order("name")).pages == 1


def test_the_cursor_moves_with_everything_the_pages_show(fresh):
    def cursor(**given):
        with fresh.read() as session:
            return queries.cursor(session, **given)

    def add(row):
        with fresh.write() as session:
            session.add(row)

    seen = [cursor()]
    for row in (
        Event(seq=1000, at=NOW, kind="note", text="x"),
        Input(run_id="r1", kind="tick", body={}, at=NOW),
        StatusChange(device_id="id-pico", old="idle", new="training", reason="", at=NOW),
    ):
        add(row)
        seen.append(cursor())
    assert len(set(seen)) == 4

    still, beating = cursor(), cursor(telemetry=True)
    add(Telemetry(device_id="id-pico", at=NOW, uptime=1, memory=1, spool=0))
    assert cursor() == still
    assert cursor(telemetry=True) != beating


def test_a_contribution_is_the_part_of_the_applied_updates_of_the_run_it_got_work_of_last(session):
    """Of the two updates that r1 applied one is pico's and one is tre's; cinque never had work."""
    rows = queries.devices(session, DeviceFilter(), Order("contribution", descending=True)).rows

    assert [(row.name, row.contribution) for row in rows] == [("tre", 0.5), ("pico", 0.5), ("cinque", None)]


def test_what_a_gate_remarks_is_told_of_the_update_its_assignment_and_its_device(fresh):
    remark = "it seems to learn wrong labels"
    with fresh.write() as session:
        first, second = session.query(Update).filter_by(outcome="applied").order_by(Update.id)
        first.scores = {"outlier": {"norm": 1.5}, "label_flip": {"cosine": -0.5, "flag": remark}}
        second.scores = {"label_flip": {"cosine": 0.5, "flag": ""}}
        first.at = NOW - 60
        assignment, device = first.assignment_id, first.device_id
    with fresh.read() as session:
        (row,) = queries.updates(session, UpdateFilter(flagged=True), Order("id")).rows
        (flagged,) = [one for one in queries.overview(session, NOW).attention if one.kind == "flagged"]
        assert (row.assignment, row.flags) == (assignment, {"label_flip": remark})
        assert [(case.id, case.note) for case in flagged.cases] == [(device, remark)]
        assert queries.why(session, assignment).flags == {"label_flip": remark}
        assert queries.why(session, assignment).scores["outlier"] == {"norm": 1.5}
        asked = session.execute(text(queries.statement(UpdateFilter(flagged=True), Order("id"))))
        assert [one.id for one in asked] == [row.id]
