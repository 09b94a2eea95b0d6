"""What devices say, and what they are answered; every word of it ends in the store."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from attrs import evolve

from coordinator.store import models, registry
from protocol import tensors
from protocol.messages import Assignment, DeviceEvent, Progress, Retry, Telemetry
from protocol.subnetwork import Region, layout_to_json, nested
from protocol.wire import encode, frame

from .house import FEDASMU, HALF, HEARTBEAT, LAYOUT, RECIPE, START, TOY, trained

BEAT = Telemetry(
    boot="b-1", uptime=12.5, state="training", assignment=None, step=None, load=0.5, temperature=48.0, memory=1 << 40,
    memory_free=None, disk_free=1 << 41, spool=3, training=9.5, since=1.0,
)  # fmt: skip
OTHER = "0" * 64


# -- from the check-in to a new version --------------------------------------------------------------------------


def test_an_offer_keeps_what_the_device_last_said_of_itself(house):
    house.start_run()
    a, b = house.enrol("a", "b")
    house.tell("a", "telemetry", encode(BEAT))
    for device in (a, b):
        device.check_in()
    heard = {row.device_id: (row.temperature, row.load) for row in house.rows(models.Assignment)}
    assert heard == {"a": (48.0, 0.5), "b": (None, None)}


def test_an_update_tells_how_long_it_took_from_its_offer_on(house):
    house.start_run()
    (a,) = house.enrol("a")
    work = a.check_in()
    house.clock.now += 12.5
    a.deliver(work)
    assert house.row(models.Update).seconds_total == 12.5


def test_a_check_in_tells_what_the_device_has_of_each_class(house):
    (a,) = house.enrol("a")
    a.check_in(labels=(40, 0, 10))
    assert house.row(models.Device).labels == [40, 0, 10]
    a.check_in()
    assert house.row(models.Device).labels == [40, 0, 10], "it was not asked"
    a.check_in(labels=())
    assert house.row(models.Device).labels is None, "its owner allows it no more"


def test_work_is_offered_with_everything_a_device_needs(house):
    run = house.start_run(HALF)
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    assert (work.id, work.run, work.kind, work.version, work.lease) == (f"{run}.1", run, "train", 0, 60.0)
    assert (work.plan.width, work.plan.batch, work.plan.steps) == (0.5, 4, 5)
    artifact, weights = (house.blobs.get(blob.sha256) for blob in (work.artifact, work.weights))
    assert (len(artifact), len(weights)) == (work.artifact.size, work.weights.size)
    assert artifact[4:8] == b"TFL3"
    arrays, metadata = tensors.decode(weights)
    assert {name: array.shape for name, array in arrays.items()} == Region(LAYOUT, nested(LAYOUT, 0.5)).shapes
    assert json.loads(metadata["layout"]) == layout_to_json(LAYOUT)
    assert json.loads(metadata["channels"]) == {"dense1": 4}
    row = house.row(models.Assignment)
    assert (row.state, row.offered_at, row.expires_at) == ("offered", START, START + 60)
    assert row.explanation == {"fixed": {"width": 0.5}}
    assert row.bytes_down == work.artifact.size + work.weights.size
    device = house.row(models.Device)
    assert (device.status, device.assignment_id, device.samples) == ("training", work.id, 50)
    assert (device.agent, device.runtime) == ("0.1.0", "tflite-2.14")


def test_two_updates_make_a_version(house):
    run = house.start_run()
    a, b = house.enrol("a", "b")
    first, second = a.check_in(), b.check_in()
    before = tensors.decode(house.blobs.get(first.weights.sha256))[0]
    assert a.deliver(first, 1.0).state == "stored"
    assert house.row(models.Update).outcome == "stored"
    assert b.deliver(second, 3.0).state == "stored"
    rows = house.rows(models.Update)
    assert [(u.outcome, u.applied_version, u.weight, u.staleness) for u in rows] == [("applied", 1, 1.0, 0)] * 2
    assert [(u.samples, u.steps, u.loss, u.accuracy, u.width) for u in rows] == [(20, 5, 0.5, 0.75, 1.0)] * 2
    versions = house.rows(models.ModelVersion)
    assert [(v.version, v.updates) for v in versions] == [(0, 0), (1, 2)]
    assert versions[1].step_norm == pytest.approx(2 * 67**0.5)  # 67 parameters of 2
    assert house.row(models.Run).version == 1
    assert [one.state for one in house.rows(models.Assignment)] == ["closed", "closed"]
    third = a.check_in()
    after = tensors.decode(house.blobs.get(third.weights.sha256))[0]
    assert third.version == 1
    assert all(np.array_equal(after[name], before[name] + np.float32(2)) for name in before)
    kinds = [one.kind for one in house.rows(models.Input, run_id=run)]
    assert kinds == ["checked-in", "checked-in", "delivered", "delivered", "checked-in"]


def test_bodies_lie_where_the_ledger_says(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in(), np.random.default_rng(1))
    pi.announce(update, body)
    row = house.row(models.Update)
    assert house.segments.read(row.segment, row.offset, row.bytes_up) == body
    assert hashlib.sha256(body).hexdigest() == row.sha256


def test_a_device_that_has_begun_says_so(house):
    house.start_run()
    a, b = house.enrol("a", "b")
    work = a.check_in()
    progress = encode(Progress(assignment=work.id, step=0, loss=None))
    assert house.tell("b", "progress", progress) == []
    assert house.row(models.Assignment).state == "offered"
    house.clock.now += 3
    assert house.tell("a", "progress", progress) == []
    row = house.row(models.Assignment)
    assert (row.state, row.taken_at) == ("taken", START + 3)
    assert a.deliver(work).state == "stored"
    assert b.check_in().id != work.id


def test_what_a_device_holds_is_offered_again_with_the_time_that_is_left(house):
    house.start_run(HALF)
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.clock.now += 20
    again = pi.check_in(held=work.id)
    assert again == evolve(work, check_in="pi.2", lease=40.0)
    assert len(house.rows(models.Assignment)) == 1


def test_an_assignment_that_never_arrived_is_cancelled(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    lost, work = pi.check_in(), pi.check_in()
    assert work.id != lost.id
    row = house.row(models.Assignment, id=lost.id)
    assert (row.state, row.reason) == ("cancelled", "the device does not hold it any more")
    assert house.events("assignment-cancelled") == [f"{lost.id}: the device does not hold it any more"]
    assert house.row(models.Device).assignment_id == work.id


def test_an_old_agent_is_given_what_it_can_do(house):
    house.start_run(RECIPE.replace("lease = 60", 'lease = 60\ncoding = "int8"'))
    (pi,) = house.enrol("pi")
    old = pi.check_in(features=("train",))
    assert old.plan.coding == "float32"
    assert pi.deliver(old).state == "stored"
    new = pi.check_in()
    assert new.plan.coding == "int8"
    assert pi.deliver(new).state == "stored"


# -- who gets no work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": 2}, "the agent speaks protocol 2, this coordinator 1"),
        ({"input": (2, 2)}, "no run is going on that wants data of shape 2×2 with 3 classes"),
        ({"classes": 4}, "no run is going on that wants data of shape 4 with 4 classes"),
        ({"samples": 0}, "no run is going on that wants data of shape 4 with 3 classes"),
    ],
)
def test_a_device_that_does_not_fit_comes_back_later(house, changes, reason):
    house.start_run()
    (pi,) = house.enrol("pi")
    assert pi.check_in(**changes) == Retry(check_in="pi.1", seconds=2.0, reason=reason)
    assert house.rows(models.Input) == []
    assert house.row(models.Device).status == "idle"


def test_without_a_run_there_is_no_work(house):
    (pi,) = house.enrol("pi")
    assert isinstance(pi.check_in(), Retry)


def test_devices_with_fewer_classes_than_the_model_fit(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    assert isinstance(pi.check_in(classes=2), Assignment)


def test_a_paused_device_gets_no_work_but_may_deliver(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.steward.write(lambda s: registry.pause(s, "pi", house.clock.now, HEARTBEAT, by="ada"))
    assert pi.check_in(unsent=(work.id,)).reason == "the device is paused"
    assert pi.deliver(work).state == "stored"


def test_a_paused_run_gives_no_work_but_takes_what_comes(house):
    run = house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.steward.operate(run, "pause", "ada")
    assert isinstance(pi.check_in(held=work.id), Retry)
    assert pi.deliver(work).state == "stored"


def test_idle_devices_together_come_back_fifty_times_a_second(house):
    devices = house.enrol(*(f"d{n}" for n in range(150)))
    answers = [device.check_in() for device in devices]
    assert answers[0].seconds == 2.0
    assert answers[-1].seconds == 150 / 50
    house.clock.now += 3601
    assert devices[0].check_in().seconds == 2.0


def test_the_least_busy_run_that_fits_is_served(house):
    one, two = house.start_run(name="one"), house.start_run(name="two")
    a, b, c = house.enrol("a", "b", "c")
    assert {a.check_in().run, b.check_in().run} == {one, two}
    held = c.check_in()
    assert c.check_in(held=held.id).id == held.id


def test_naming_somebody_elses_work_opens_no_door(house):
    house.start_run()
    a, eve = house.enrol("a", "eve")
    work = a.check_in()
    assert isinstance(eve.check_in(held=work.id, input=(9,)), Retry)
    assert a.deliver(work).state == "stored"


# -- updates that come twice, late, or from somebody else --------------------------------------------------------


def test_an_update_that_comes_twice_counts_once(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in())
    first, again = pi.announce(update, body), pi.announce(update, body)
    assert again == first
    assert len(house.rows(models.Update)) == 1
    other = pi.announce(evolve(update, sha256=OTHER), body)
    assert (other.state, other.sha256) == ("stored", update.sha256)
    assert len(house.rows(models.Update)) == 1


def test_an_applied_update_is_stored_too(house):
    house.start_run(FEDASMU)
    (pi,) = house.enrol("pi")
    update, body = trained(pi.check_in())
    pi.announce(update, body)
    assert house.row(models.Update).outcome == "applied"
    assert pi.announce(update, body).state == "stored"


@pytest.mark.parametrize("changes", [{"assignment": "toy-1.77"}, {"run": "toy-2"}, {}])
def test_an_update_that_is_not_this_devices_is_unknown(house, changes):
    house.start_run()
    a, eve = house.enrol("a", "eve")
    work = a.check_in()
    update, body = trained(work)
    update = evolve(update, **changes)
    sender = a if changes else eve
    receipt = sender.announce(update, body)
    assert (receipt.state, receipt.reason) == ("unknown", "there is no such assignment for this device")
    assert house.rows(models.Update) == []
    (event,) = house.rows(models.Event, kind="message-refused")
    assert event.text == f"an update came for assignment {update.assignment}, which is not this device's"
    assert event.device_id == sender.name
    assert a.deliver(work).state == "stored"


def test_an_update_after_the_lease_is_expired_once_and_for_all(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.clock.now += 61
    house.until(lambda: house.row(models.Assignment).state == "expired")
    assert house.row(models.Device).assignment_id is None
    for _ in range(2):
        receipt = pi.deliver(work)
        assert (receipt.state, receipt.reason) == ("expired", "the assignment was closed before the update came")
    row = house.row(models.Update)
    assert (row.outcome, row.staleness, row.norm, row.applied_version) == ("expired", None, None, None)
    assert house.row(models.Assignment).state == "expired"
    assert len(house.events("update-expired")) == 1


def test_an_update_for_a_run_that_is_over_is_expired(house):
    run = house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.steward.operate(run, "stop", "ada")
    assert pi.deliver(work).state == "expired"
    assert house.row(models.Assignment).state == "cancelled"


def test_a_stale_update_is_kept_out_of_the_model_and_in_the_books(house):
    house.start_run(RECIPE.replace("goal = 2", "goal = 1\nmax_staleness = 0"))
    late, pi = house.enrol("late", "pi")
    work = late.check_in()
    pi.work()
    receipt = late.deliver(work)
    assert (receipt.state, receipt.reason) == ("stale", "1 versions old, at most 0 are taken")
    assert house.row(models.Update, device_id="late").staleness == 1
    assert late.deliver(work).state == "stale"


def test_a_revoked_device_is_shut_out(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.steward.write(lambda s: registry.revoke(s, "pi", house.clock.now, HEARTBEAT, by="ada"))
    house.steward.disconnect("pi")
    assert house.cut_off == ["pi"]
    row = house.row(models.Assignment)
    assert (row.state, row.reason) == ("cancelled", "the device was revoked")
    assert pi.check_in() is None
    assert house.tell("pi", "update", frame(*trained(work))) == []  # what it still says counts for nothing
    assert house.rows(models.Update) == []
    assert house.row(models.Device).status == "revoked"


def test_whoever_is_not_enrolled_is_not_heard(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    for leaf in ("check-in", "telemetry", "update", "nonsense"):
        assert house.tell("nobody", leaf, encode(BEAT)) == []
    assert house.rows(models.Telemetry) == []
    assert house.events("internal-error") == []
    assert isinstance(pi.check_in(), Assignment)


# -- updates that are not sound ----------------------------------------------------------------------------------


def hostile(name):
    def build(work):
        update, body = trained(work)
        match name:
            case "NaN":
                return trained(work, np.nan)
            case "another shape":
                return trained(work, body=tensors.encode({"dense1.bias": np.zeros(5, np.float32)}))
            case "another hash":
                return evolve(update, sha256=OTHER), body
            case "too short":
                return update, body[:-1]
            case "too large":
                return evolve(update, size=1 << 32, chunk=65536), b""
            case "too large for one message":
                return evolve(update, size=97 * 1024), body
            case "a strange chunk size":
                return evolve(update, chunk=17), b""
            case "too many steps":
                return evolve(update, steps=6), body

    return build


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NaN", "the difference has elements that are not finite"),
        ("another shape", "the update's tensors are not the subnetwork's: 'dense1.weight', 'dense2.bias', 'dense2.w"),
        ("another hash", "the body's sha256 is not the announced one"),
        ("too short", "a body of "),
        ("too large", "the update announces 4294967296 bytes, at most 65804 are expected"),
        ("too large for one message", "the update announces 99328 bytes, at most 65804 are expected"),
        ("a strange chunk size", "chunks of 17 bytes are announced, expected 4096 to 98304"),
        ("too many steps", "6 steps and 20 samples are reported"),
    ],
)
def test_an_unsound_update_is_refused_with_a_reason(house, name, reason):
    house.start_run(FEDASMU)
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    update, body = hostile(name)(work)
    receipt = pi.announce(update, body)
    assert receipt.state == "refused"
    assert receipt.reason.startswith(reason)
    row = house.row(models.Update)
    assert (row.outcome, row.reason, row.applied_version) == ("refused", receipt.reason, None)
    assert house.row(models.Assignment).state == "closed"
    assert pi.announce(update, body).state == "refused"
    assert pi.work().state == "stored"
    assert house.row(models.Run).version == 1


@pytest.mark.parametrize("leaf", ["check-in", "update", "chunk", "progress", "telemetry", "event"])
@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff\xfe", b"null", b'{"id": NaN}', b"\xff\xff\xff\xff{}", b"[" * 5000],
    ids=["nothing", "half", "no-text", "null", "nan", "frame", "deep"],
)
def test_noise_ends_in_the_journal(house, leaf, payload):
    (pi,) = house.enrol("pi")
    assert house.tell("pi", leaf, payload) == []
    (event,) = house.rows(models.Event, kind="message-refused")
    assert event.text.startswith(f"{leaf}: ")
    assert event.device_id == "pi"
    assert house.row(models.Device).last_seen_at == START
    assert house.events("internal-error") == []
    assert isinstance(pi.check_in(), Retry)


def test_nobody_floods_the_journal(house):
    house.enrol("pi", "eve")
    for _ in range(20):
        house.tell("eve", "check-in", b"noise")
    house.tell("pi", "check-in", b"noise")
    assert len(house.events("message-refused")) == 2
    house.clock.now += 10
    house.tell("eve", "check-in", b"noise")
    assert len(house.events("message-refused")) == 3


# -- large updates -----------------------------------------------------------------------------------------------

WIDE = TOY.replace('"units": 8', '"units": 2000')


@pytest.fixture
def large(house):
    """A device with an update of 64 kB in chunks of 16 KiB: four of them."""
    house.start_run(RECIPE, model=WIDE)
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    shapes = {"dense1.weight": (4, 2000), "dense1.bias": (2000,), "dense2.weight": (2000, 3), "dense2.bias": (3,)}
    body = tensors.encode({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    update, _ = trained(work, body=body, chunk=16384)
    assert -(-len(body) // 16384) == 4
    return pi, update, body


def test_chunks_may_come_in_any_order_and_twice(house, large):
    pi, update, body = large
    assert pi.announce(update).missing == ((0, 3),)
    for index in (3, 0, 0):
        assert pi.chunk(update, body, index) == []
    receipt = pi.announce(update)
    assert (receipt.state, receipt.missing) == ("missing", ((1, 2),))
    assert pi.chunk(update, body, 2) == []
    (receipt,) = pi.chunk(update, body, 1)
    assert receipt.state == "stored"
    assert pi.chunk(update, body, 1) == []
    assert house.row(models.Update).bytes_up == len(body)


def test_a_restart_loses_the_chunks_but_not_the_update(house, large):
    pi, update, body = large
    pi.announce(update)
    pi.chunk(update, body, 0)
    house.reopened()
    assert pi.chunk(update, body, 1) == []  # of a transfer that nobody remembers
    assert pi.announce(update).missing == ((0, 3),)
    *_, (receipt,) = (pi.chunk(update, body, index) for index in range(4))
    assert receipt.state == "stored"


def test_a_chunk_nobody_announced_is_dropped(house, large):
    pi, update, body = large
    assert pi.chunk(update, body, 0) == []
    pi.announce(update)
    assert pi.chunk(evolve(update, commit=2), body, 0) == []
    assert pi.announce(update).missing == ((0, 3),)


@pytest.mark.parametrize(
    ("index", "piece", "reason"), [(0, b"short", "chunk 0 has 5 bytes, expected 16384"), (9, b"", "chunk 9 was not")]
)
def test_a_wrong_chunk_is_the_end_of_the_update(house, large, index, piece, reason):
    pi, update, _ = large
    pi.announce(update)
    (receipt,) = pi.chunk(update, b"\0" * 16384 * index + piece, index)
    assert receipt.state == "refused"
    assert receipt.reason.startswith(reason)
    assert pi.announce(update).state == "refused"


def test_a_body_that_is_not_what_was_announced_is_refused(house, large):
    pi, update, body = large
    pi.announce(update)
    *_, (receipt,) = (pi.chunk(update, bytes(len(body)), index) for index in range(4))
    assert (receipt.state, receipt.reason) == ("refused", "the body's sha256 is not the announced one")


@pytest.mark.parametrize("announced", [False, True])
def test_chunks_that_come_after_the_lease_make_no_second_row(house, large, announced):
    pi, update, body = large
    pi.announce(update)
    pi.chunk(update, body, 0)
    house.clock.now += 61
    house.until(lambda: house.row(models.Assignment).state == "expired")
    if announced:
        assert pi.announce(update).state == "expired"
    for index in range(1, 4):
        assert pi.chunk(update, body, index) == []
    assert pi.announce(update).state == "expired"
    assert house.row(models.Update).outcome == "expired"
    assert house.events("internal-error") == []


def test_chunks_for_a_run_that_is_over_are_dropped(house, large):
    pi, update, body = large
    pi.announce(update)
    house.steward.operate(update.run, "stop", "ada")
    assert pi.chunk(update, body, 0) == []
    assert pi.announce(update).state == "expired"


def test_a_new_announcement_takes_the_place_of_the_old_one(house, large):
    pi, update, body = large
    pi.announce(update)
    pi.chunk(update, body, 0)
    smaller = evolve(update, chunk=8192)
    assert pi.announce(smaller).missing == ((0, 7),)
    *_, (receipt,) = (pi.chunk(smaller, body, index) for index in range(8))
    assert receipt.state == "stored"


# -- signs of life -----------------------------------------------------------------------------------------------


def test_a_heartbeat_is_a_row_and_the_devices_state(house):
    house.enrol("pi")
    assert house.row(models.Device).status == "new"
    house.clock.now += 5
    assert house.tell("pi", "telemetry", encode(BEAT)) == []
    row = house.row(models.Telemetry)
    assert (row.device_id, row.at, row.uptime, row.load, row.temperature) == ("pi", START + 5, 12.5, 0.5, 48.0)
    assert (row.memory, row.memory_free, row.disk_free, row.spool) == (1 << 40, None, 1 << 41, 3)
    device = house.row(models.Device)
    assert (device.status, device.last_seen_at) == ("idle", START + 5)
    assert device.telemetry["state"] == "training"
    assert house.row(models.StatusChange).reason == "heard for the first time"


def test_a_device_that_falls_silent_is_late_and_comes_back(house):
    house.enrol("pi")
    house.tell("pi", "telemetry", encode(BEAT))
    house.clock.now += 31
    house.until(lambda: house.row(models.Device).status == "late")
    house.tell("pi", "telemetry", encode(BEAT))
    assert [(c.old, c.new) for c in house.rows(models.StatusChange)] == [
        ("new", "idle"), ("idle", "late"), ("late", "idle")
    ]  # fmt: skip


def test_what_a_device_has_to_tell_stands_in_the_journal(house):
    house.enrol("pi")
    kind = "x" * 60
    house.tell("pi", "event", encode(DeviceEvent(kind="dropped", text="the artifact's hash was another")))
    house.tell("pi", "event", encode(DeviceEvent(kind=kind, text="")))
    (event,) = house.rows(models.Event, kind="device-dropped")
    assert (event.text, event.device_id, event.run_id) == ("the artifact's hash was another", "pi", None)
    assert house.events(f"device-{kind}"[:40]) == [""]


def test_a_frame_without_its_body_is_refused_like_any_other(house):
    house.start_run()
    (pi,) = house.enrol("pi")
    update, _ = trained(pi.check_in())
    (receipt,) = house.tell("pi", "update", frame(update))
    assert (receipt.state, receipt.reason) == (
        "refused", f"a body of 0 bytes came whole, {update.size} were announced"
    )  # fmt: skip
