"""One run's files and its survival: what lies on the disk, and how a run becomes itself again."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import delete, update

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import layout
from coordinator.compiler.targets import target_of
from coordinator.errors import ShoalError
from coordinator.store import models, segments
from coordinator.store.snapshots import Thinning
from coordinator.strategies.base import Cost
from coordinator.training import live
from coordinator.training.live import cost
from coordinator.training.runs import read_spec
from protocol.messages import Retry
from protocol.subnetwork import FULL, nested
from protocol.weights import digest

from .house import FEDASMU, FEDAVG, HALF, LAYOUT, RECIPE, SSP, START, TOY, WHALE, Device

RECIPES = {"fedbuff": RECIPE, "fedasmu": FEDASMU, "whale": WHALE, "ssp": SSP}
recipes = pytest.mark.parametrize("recipe", list(RECIPES.values()), ids=list(RECIPES))
ONE = RECIPE.replace("goal = 2", "goal = 1")


def files(house):
    return {path.name for path in house.blobs.folder.glob("*/*")}


def test_what_a_width_costs():
    # 4·8 + 8 + 8·3 + 3 parameters; forward 2·(32 + 24), twice more for the gradients but for the input's: 280
    spec = read_spec(TOY)
    assert cost(spec, FULL) == Cost(67, 3 * 2 * (32 + 24) - 2 * 32)
    assert cost(spec, nested(layout(spec), 0.5)) == Cost(35, 3 * 2 * (16 + 12) - 2 * 16)


# -- files -------------------------------------------------------------------------------------------------------


def test_devices_of_one_version_and_width_share_their_files(house):
    house.start_run(HALF)
    a, b = house.enrol("a", "b")
    first, second = a.check_in(), b.check_in()
    assert (first.artifact, first.weights) == (second.artifact, second.weights)
    assert files(house) == {first.artifact.sha256, first.weights.sha256}


def test_every_runtime_gets_the_artifact_it_is_fastest_with(house):
    house.start_run(HALF)
    names = ("litert", "tflite", "tflite-2.14", "numpy", "another", "numpy-2")
    works = {n: device.check_in(runtime=n) for n, device in zip(names, house.enrol(*"abcdef"), strict=True)}
    contents = {name: house.blobs.get(work.artifact.sha256) for name, work in works.items()}
    assert len({work.weights for work in works.values()}) == 1
    for name, content in contents.items():
        made = compile_model(read_spec(TOY), nested(LAYOUT, 0.5), 4, target=target_of(name))
        assert content == made.for_backend(name.partition("-")[0])
    assert contents["numpy"][:1] == contents["numpy-2"][:1] == b"{"
    assert contents["another"] == contents["litert"]


def test_held_work_comes_in_the_form_the_device_reads_now(house):
    """A board whose LiteRT wheel went, or came, between offer and check-in."""
    house.start_run()
    (a,) = house.enrol("a")
    work = a.check_in(runtime="litert")
    assert a.check_in(runtime="litert", held=work.id).artifact == work.artifact
    moved = a.check_in(runtime="numpy", held=work.id)
    assert (moved.id, moved.weights) == (work.id, work.weights)
    assert house.blobs.get(moved.artifact.sha256)[:1] == b"{"
    assert house.row(models.Assignment, id=work.id).artifact_sha256 == moved.artifact.sha256
    assert a.check_in(runtime="tflite", held=work.id).artifact == work.artifact


def test_weights_go_when_nobody_trains_from_them_any_more(house):
    house.start_run(ONE)
    a, b, c = house.enrol("a", "b", "c")
    slow, quick = a.check_in(), b.check_in()
    b.deliver(quick)
    now = c.check_in()
    assert now.weights != slow.weights
    assert files(house) == {slow.artifact.sha256, slow.weights.sha256, now.weights.sha256}
    a.deliver(slow)
    house.until(lambda: files(house) == {slow.artifact.sha256, now.weights.sha256})


def test_the_current_versions_weights_stay_for_the_next_device(house):
    house.start_run()
    a, b = house.enrol("a", "b")
    work = a.check_in()
    a.deliver(work)
    assert house.blobs.path(work.weights.sha256).exists()
    assert b.check_in().weights == work.weights


def test_a_version_that_changes_nothing_is_a_version_with_files_of_its_own(house):
    house.start_run(ONE)
    a, b = house.enrol("a", "b")
    slow = a.check_in()
    b.deliver(b.check_in(), 0.0)
    assert len({version.sha256 for version in house.rows(models.ModelVersion)}) == 1
    assert b.check_in().version == 1
    assert house.blobs.path(slow.weights.sha256).exists()
    a.deliver(slow, 0.0)
    assert house.blobs.get(b.check_in().weights.sha256)


def test_runs_that_begin_alike_do_not_remove_each_others_weights(house):
    one, two = house.start_run(ONE), house.start_run(ONE)
    devices = house.enrol("a", "b", "c")
    works = [device.check_in() for device in devices[:2]]
    assert {work.run for work in works} == {one, two}
    for _ in range(3):  # the first run moves on
        devices[0].deliver(works[0])
        works[0] = devices[0].check_in()
    house.blobs.get(works[1].weights.sha256)
    house.steward.operate(works[0].run, "stop", "ada")
    house.blobs.get(works[1].weights.sha256)


def test_what_was_used_before_a_start_is_kept_while_it_is_used_and_goes_after(house):
    house.start_run(ONE)
    a, b = house.enrol("a", "b")
    slow = a.check_in()
    b.work()
    house.reopened()
    now = b.check_in()
    assert house.blobs.get(slow.weights.sha256)
    a.deliver(slow)
    house.until(lambda: files(house) >= {now.weights.sha256} and slow.weights.sha256 not in files(house))


def test_held_work_whose_weights_are_gone_is_cancelled_and_other_work_offered(house, tmp_path):
    run = house.start_run()
    (a,) = house.enrol("a")
    work = a.check_in()
    house.blobs.remove(work.weights.sha256)
    other = a.check_in(held=work.id)
    assert other.id != work.id
    assert house.blobs.get(other.weights.sha256)
    closed = house.row(models.Assignment, id=work.id)
    assert (closed.state, closed.reason) == ("cancelled", "its weights are gone")
    assert house.events("assignment-cancelled") == [f"{work.id}: its weights are gone"]
    assert house.events("internal-error") == []
    again = house.crashed(tmp_path / "after")
    same(house.engines()[run], again.engines()[run])
    again.close()


def test_held_work_whose_artifact_is_gone_gets_it_compiled_anew(house):
    house.start_run()
    (a,) = house.enrol("a")
    work = a.check_in()
    house.blobs.remove(work.artifact.sha256)
    again = a.check_in(held=work.id)
    assert (again.id, again.artifact, again.weights) == (work.id, work.artifact, work.weights)
    assert house.blobs.get(again.artifact.sha256)


def test_an_artifact_of_another_compiler_is_what_the_device_may_fetch(house):
    """After an upgrade the bytes may be others: the assignment's row names what its device is told to fetch."""
    house.start_run()
    (a,) = house.enrol("a")
    work = a.check_in()
    elder = models.Assignment.id == work.id
    house.steward.write(lambda s: s.execute(update(models.Assignment).where(elder).values(artifact_sha256="0" * 64)))
    assert a.check_in(held=work.id).artifact == work.artifact
    assert house.row(models.Assignment, id=work.id).artifact_sha256 == work.artifact.sha256


@pytest.mark.parametrize("harm", ["gone", "cut short"])
def test_files_that_are_gone_are_made_anew_for_the_next_device(house, harm):
    house.start_run()
    a, b = house.enrol("a", "b")
    work = a.check_in()
    contents = {sha256: house.blobs.get(sha256) for sha256 in (work.artifact.sha256, work.weights.sha256)}
    for sha256, content in contents.items():
        if harm == "gone":
            house.blobs.remove(sha256)
        else:
            house.blobs.path(sha256).write_bytes(content[:10])
    other = b.check_in()
    assert (other.artifact, other.weights) == (work.artifact, work.weights)
    assert {sha256: house.blobs.get(sha256) for sha256 in contents} == contents


# -- survival ----------------------------------------------------------------------------------------------------


def eventful(house, recipe, inputs):
    """A run with updates of three devices, refusals, an expired lease, an open assignment and a pause."""
    run = house.start_run(recipe)
    devices, rng = house.enrol("a", "b", "c"), np.random.default_rng(4)
    lost = devices[2].check_in()
    while len(house.rows(models.Input)) < inputs:
        device = devices[rng.integers(0, 2)]
        work = device.check_in()
        device.deliver(work, rng, steps=6 if rng.uniform() < 0.2 else 5)
    house.clock.now += 61
    house.until(lambda: house.row(models.Assignment, id=lost.id).state == "expired")
    house.steward.operate(run, "pause", "ada")
    house.steward.operate(run, "resume", "ada")
    devices[0].check_in()
    return run


def same(one, other):
    assert digest(one.core.weights) == digest(other.core.weights)
    assert one.core.version == other.core.version
    assert one.core.open == other.core.open
    assert one.snapshot() == other.snapshot()


@recipes
def test_a_crash_loses_nothing(house, tmp_path, recipe):
    run = eventful(house, recipe, 30)
    other = house.crashed(tmp_path / "image")
    assert other.rows(models.Snapshot) == []
    same(other.engines()[run], house.engines()[run])
    text = f"{run} goes on at version {house.row(models.Run).version}, after replaying "
    assert other.events("run-recovered")[0].startswith(text)
    # and both go on alike
    (work,) = (a for a in house.rows(models.Assignment) if a.state == "offered")
    for one in (house, other):
        one.steward.operate(run, "pause", "ada")
        assert one.row(models.Assignment, id=work.id).state == "offered"
    same(other.engines()[run], house.engines()[run])
    other.close()


@recipes
def test_a_snapshot_and_the_inputs_after_it_make_what_all_inputs_make(house, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 7)
    run = eventful(house, recipe, 20)
    assert len(house.rows(models.Snapshot)) == 2
    other = house.crashed(tmp_path / "image")
    same(other.engines()[run], house.engines()[run])
    replayed = int(other.events("run-recovered")[0].split()[-2])
    assert 0 < replayed < 7
    other.steward.write(lambda session: session.execute(delete(models.Snapshot)))
    from_the_start = other.crashed(tmp_path / "second")
    same(from_the_start.engines()[run], house.engines()[run])
    from_the_start.close()
    other.close()


@pytest.mark.parametrize("damage", [b"", b"of another version"], ids=["gone", "unreadable"])
def test_without_a_snapshot_that_can_be_read_the_inputs_are_enough(house, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 7)
    run = eventful(house, RECIPE, 20)
    for row in house.rows(models.Snapshot):
        path = house.blobs.path(row.sha256)
        path.unlink()
        if damage:
            sha256 = house.blobs.put(damage + row.sha256.encode())
            change = update(models.Snapshot).where(models.Snapshot.seq == row.seq).values(sha256=sha256)
            house.steward.write(lambda session, change=change: session.execute(change))
    other = house.crashed(tmp_path / "image")
    same(other.engines()[run], house.engines()[run])
    other.close()


def test_a_clean_end_leaves_nothing_to_replay(house, caplog):
    run = eventful(house, RECIPE, 10)
    before = house.engines()[run].snapshot()
    for _ in range(3):
        house.reopened()
        assert house.engines()[run].snapshot() == before
    assert house.events("run-recovered")[-1].endswith("after replaying 0 inputs")
    assert "turn-failed" not in caplog.text
    assert len(house.rows(models.Snapshot)) == 1


def test_snapshots_come_now_and_then_and_old_ones_go(house, monkeypatch):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 4)
    run = house.start_run()
    (pi,) = house.enrol("pi")
    for _ in range(10):
        pi.work()
    rows = house.rows(models.Snapshot)
    assert [row.seq for row in rows] == [16, 20]
    assert [row.version for row in rows] == [4, 5]
    kept = {row.sha256 for row in rows}
    assert kept <= files(house)
    assert len(files(house)) == 2 + 2  # an artifact and the newest weights beside them
    assert house.blobs.get(rows[-1].sha256) == house.engines()[run].snapshot()


def test_runs_that_begin_alike_do_not_remove_each_others_snapshots(house, monkeypatch):
    one, two = house.start_run(), house.start_run()
    for run in (one, two):
        house.steward.operate(run, "pause", "ada")
    house.reopened()
    assert len({row.sha256 for row in house.rows(models.Snapshot)}) == 1
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 1)
    for action in ("resume", "pause", "resume"):
        house.steward.operate(one, action, "ada")
    house.reopened()
    assert sorted(house.engines()) == [one, two]


@pytest.mark.parametrize("length", [1, None], ids=["torn", "scrambled"])
def test_a_snapshot_that_is_damaged_is_replaced(house, caplog, length):
    run = house.start_run()
    (pi,) = house.enrol("pi")
    pi.work()
    before = house.engines()[run].snapshot()
    house.close()
    before = house.engines()[run].snapshot()
    (row,) = house.rows(models.Snapshot)
    house.blobs.path(row.sha256).write_bytes(b"x" * (length or len(before)))
    house.reopened()
    assert "is damaged on disk" in caplog.text
    assert house.engines()[run].snapshot() == before
    house.reopened()
    assert house.events("run-recovered")[-1].endswith("after replaying 0 inputs")
    assert house.engines()[run].snapshot() == before
    assert "turn-failed" not in caplog.text


def test_an_open_round_and_its_time_limit_survive_a_crash(house, tmp_path):
    run = house.start_run(FEDAVG)
    a, b = house.enrol("a", "b")
    work = a.check_in()
    b.check_in()
    a.deliver(work, 3.0)
    after = house.crashed(tmp_path / "image")
    assert after.engines()[run].core.wake_at == START + 30
    assert isinstance(Device(after, "a").check_in(), Retry)
    assert isinstance(a.check_in(), Retry)
    house.clock.now += 30
    for one in (house, after):
        one.until(lambda one=one: one.row(models.Run).version == 1)
    same(after.engines()[run], house.engines()[run])
    assert house.row(models.Update).weight == 1.0
    replayed = house.crashed(tmp_path / "later")
    same(replayed.engines()[run], house.engines()[run])
    replayed.close()
    after.close()


def test_runs_that_are_over_are_not_loaded(house):
    run = house.start_run()
    house.steward.operate(run, "stop", "ada")
    other = house.start_run()
    house.reopened()
    assert list(house.engines()) == [other]


def test_a_house_may_crash_again_and_again(house, tmp_path):
    run = eventful(house, WHALE, 12)
    work = house.sent["a"][-1]
    images = [house]
    for name in ("first", "second", "third"):
        images.append(images[-1].crashed(tmp_path / name))
        same(images[-1].engines()[run], house.engines()[run])
    for one in images:
        assert Device(one, "a").deliver(work).state == "stored"
        same(one.engines()[run], house.engines()[run])
    for one in images[1:]:
        one.close()


def test_a_run_whose_past_is_lost_is_left_alone_and_the_others_go_on(house, caplog):
    lost, well = house.start_run(RECIPE), house.start_run(RECIPE)
    (pi,) = house.enrol("pi")
    for _ in range(6):
        pi.work()
    house.close()
    versions = {row.id: row.version for row in house.rows(models.Run)}
    assert max(versions.values()) > 0
    lost = max(versions, key=versions.get)
    (well,) = versions.keys() - {lost}
    for row in house.rows(models.Snapshot):
        house.blobs.path(row.sha256).unlink()
    with house.database.write() as session:
        session.execute(delete(models.Input).where(models.Input.run_id == lost))
    house.open()
    assert house.engines().keys() == {well}
    (event,) = house.events("run-unrecoverable")
    assert f"Run {lost} is at version {versions[lost]} in the ledger, but" in event
    assert house.row(models.Run, id=lost).version == versions[lost]


# -- read beside the steward -------------------------------------------------------------------------------------


@recipes
def test_the_weights_of_a_run_are_read_while_it_trains(house, recipe):
    """From no snapshot, and from one with inputs after it; nothing is written."""
    run = house.start_run(recipe)
    a, b = house.enrol("a", "b")
    for _ in range(2):
        for device in (a, b, a, b):
            device.deliver(device.check_in())
        newest = max(house.rows(models.ModelVersion), key=lambda row: row.version)
        before = files(house)
        with house.database.read() as session:
            spec, weights, version = live.weights_of(
                session, house.blobs, lambda *place: segments.read(house.home / "segments", *place), run
            )
        assert (spec.name, version, digest(weights)) == ("toy", newest.version, newest.sha256)
        assert version > 0
        assert files(house) == before
        house.reopened()


def test_the_weights_of_the_past_are_had_while_a_snapshot_keeps_them(house):
    run = house.start_run(ONE)
    [a] = house.enrol("a")
    for _ in range(3):
        a.deliver(a.check_in())
    house.reopened()  # a clean end keeps the newest
    [first] = {row.version for row in house.rows(models.Snapshot)}
    a.deliver(a.check_in())

    versions = {row.version: row.sha256 for row in house.rows(models.ModelVersion)}
    with house.database.read() as session:
        read = house.segments.read
        _, weights, version = live.weights_of(session, house.blobs, read, run, first)
        assert (version, digest(weights)) == (first, versions[first])
        assert max(versions) > first
        with pytest.raises(ShoalError, match=f"only those of {first}, {max(versions)}"):
            live.weights_of(session, house.blobs, read, run, 1)


def test_the_weights_of_no_run_are_not_found(house):
    with house.database.read() as session, pytest.raises(ShoalError, match="There is no run 'gone-1'"):
        live.weights_of(session, house.blobs, house.segments.read, "gone-1")


def test_every_so_many_versions_stay_and_can_be_replayed_from(house, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 3)
    house.close()
    house.thinning = Thinning(every=4)
    house.open()
    run = house.start_run(ONE)
    (a,) = house.enrol("a")
    hashes = {}
    for _ in range(13):
        a.work()
        hashes[house.engines()[run].core.version] = digest(house.engines()[run].core.weights)
    kept = house.rows(models.Snapshot)
    assert [row.version for row in kept] == [1, 4, 8, 11, 12]  # the first there was, multiples, and the last two
    engine = house.engines()[run]
    for row in kept:
        past = live.LiveRun(house.row(models.Run), read_spec(TOY), None, house.blobs)
        past.engine.restore(house.blobs.get(row.sha256))
        assert row.version == 0 or digest(past.engine.core.weights) == hashes[row.version]
    again = house.crashed(tmp_path / "after")
    same(engine, again.engines()[run])
    again.close()


def test_weights_that_a_release_was_made_of_are_never_thinned(house, monkeypatch):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", 3)
    run = house.start_run(ONE)
    (a,) = house.enrol("a")
    while not house.rows(models.Snapshot):
        a.work()
    version = house.rows(models.Snapshot)[0].version

    def promote(session) -> None:
        session.add(
            models.Release(
                kind="model",
                version="1",
                number=1,
                manifest="{}",
                sha256="0" * 64,
                signature="0" * 128,
                run_id=run,
                model_version=version,
                created_by="ada",
                created_at=house.clock.now,
            )
        )

    house.steward.write(promote)
    for _ in range(12):
        a.work()
    versions = [row.version for row in house.rows(models.Snapshot)]
    assert versions[0] == version
    assert len(versions) == 3  # and the last two
