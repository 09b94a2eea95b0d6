"""Releases reach devices through the steward: told, told again, reported, judged, and brought back."""

from __future__ import annotations

import shutil

import pytest

from coordinator.errors import ShoalError
from coordinator.fleet import orders, releases
from coordinator.fleet.orders import Target
from coordinator.fleet.releases import ReleaseKey
from coordinator.fleet.rules import Rules
from coordinator.store import models, registry
from coordinator.training import rollouts, steward
from protocol.deployments import Deploy, Deployed, Deployment, Recall
from protocol.wire import encode
from tests.training.house import ANSWERS, House

FEATURES = ("train", "int8", "deploy")
QUICK = Rules(soak=0.0)


@pytest.fixture
def house(tmp_path, migrated, monkeypatch):
    monkeypatch.setattr(steward, "BEAT", 0.01)
    shutil.copy(migrated, tmp_path / "shoal.db")
    monkeypatch.setitem(ANSWERS, "deploy", Deploy)
    monkeypatch.setitem(ANSWERS, "recall", Recall)
    house = House(tmp_path).open()
    yield house
    house.close()


def enrol(house: House, *names: str, features: tuple[str, ...] = FEATURES, group: str = "") -> None:
    for device in house.enrol(*names, group=group):
        device.check_in(features=features)


def release(house: House, version: str = "night", kind: str = "config") -> int:
    key = ReleaseKey.of(house.home)

    def make(session) -> int:
        made = releases.create(session, key, kind=kind, version=version, now=house.clock.now, by="ada")
        return made.id

    return house.steward.write(make)


def start(house: House, release: int, rules: Rules = QUICK, **target) -> int:
    wanted = Target(**(target or {"every": True}))

    def begin(session) -> int:
        return orders.start(session, release, wanted, rules, house.clock.now, 10.0, by="ada").id

    return house.steward.write(begin)


def operate(house: House, rollout: int, action: str) -> None:
    house.steward.write(lambda session: orders.operate(session, rollout, action, house.clock.now, by="ada"))


def deploys(house: House, device: str) -> list[Deploy]:
    return [message for message in house.sent[device] if isinstance(message, Deploy)]


def told(house: House, device: str, times: int = 1) -> Deploy:
    """The device is told to deploy, for the n-th time."""
    house.until(lambda: len(deploys(house, device)) >= times)
    return deploys(house, device)[times - 1]


def say(house: House, device: str, order: Deploy | str, state: str, number: int = 1, **given) -> list:
    id = order if isinstance(order, str) else order.id
    return house.tell(device, "deployment", encode(Deployment(id=id, number=number, state=state, **given)))


def states(house: House, rollout: int) -> dict[str, str]:
    return {one.device_id: one.state for one in house.rows(models.Execution, rollout_id=rollout)}


def until_state(house: House, rollout: int, state: str) -> models.Rollout:
    house.until(lambda: house.row(models.Rollout, id=rollout).state == state)
    return house.row(models.Rollout, id=rollout)


def course(house: House, device: str) -> list[str]:
    mine = {one.id for one in house.rows(models.Execution, device_id=device)}
    return [one.state for one in house.rows(models.ExecutionChange) if one.execution_id in mine]


def test_a_release_reaches_a_device_and_its_whole_course_is_kept(house):
    enrol(house, "pi")
    made = release(house)
    rollout = start(house, made)
    order = told(house, "pi")
    row = house.row(models.Release)
    assert (order.manifest, order.signature, order.back) == (row.manifest, row.signature, False)
    assert (order.seconds, order.lock, order.trial) == (1800 + 6 * 3600, 6 * 3600, 180)
    for number, state in enumerate(("accepted", "downloading", "verifying", "switching", "probation"), 1):
        say(house, "pi", order, state, number)
    say(house, "pi", order, "succeeded", 6, facts={"seconds": 12.5})
    done = until_state(house, rollout, "completed")
    assert (done.reason, done.ended_at) == ("1 of 1 devices succeeded", house.clock.now)
    assert course(house, "pi") == [
        "queued", "notified", "accepted", "downloading", "verifying", "switching", "probation", "succeeded",
    ]  # fmt: skip
    assert house.row(models.Execution).facts == {"seconds": 12.5}
    assert house.events("execution-succeeded") == ["pi: config night succeeded"]
    assert house.events("rollout-completed") == [f"rollout {rollout} of config night is completed: {done.reason}"]


def test_who_does_not_answer_is_told_again_while_it_is_heard(house):
    enrol(house, "pi")
    start(house, release(house))
    first = told(house, "pi")
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert len(deploys(house, "pi")) == 1
    house.clock.now += rollouts.AGAIN
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert deploys(house, "pi")[1].id == first.id
    say(house, "pi", first, "accepted")
    house.clock.now += rollouts.REMINDER - 1
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert len(deploys(house, "pi")) == 2
    house.clock.now += 1
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert deploys(house, "pi")[2].seconds == 1800 + 6 * 3600 - rollouts.REMINDER


def test_what_is_under_way_survives_a_restart(house):
    enrol(house, "pi")
    rollout = start(house, release(house))
    order = told(house, "pi")
    say(house, "pi", order, "accepted")
    house.reopened()
    house.clock.now += rollouts.REMINDER
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert deploys(house, "pi")[-1].id == order.id
    say(house, "pi", order, "succeeded", 2)
    until_state(house, rollout, "completed")


def test_an_agent_that_takes_no_releases_is_rejected_when_it_is_its_turn(house):
    enrol(house, "old", features=("train",))
    rollout = start(house, release(house))
    until_state(house, rollout, "completed")
    assert states(house, rollout) == {"old": "rejected"}
    assert "takes no releases" in house.row(models.Execution).text
    assert house.row(models.Device).capability["features"] == ["train"]
    assert deploys(house, "old") == []


def test_a_device_of_which_nobody_knows_what_it_can_do_waits(house):
    (pi,) = house.enrol("pi")
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    rollout = start(house, release(house))
    house.until(lambda: house.row(models.Device).last_seen_at)
    assert states(house, rollout) == {"pi": "queued"}
    pi.check_in(features=FEATURES)
    house.clock.now += rollouts.LOOK
    told(house, "pi")


def test_what_devices_run_is_remembered_and_is_what_they_go_back_to(house):
    enrol(house, "pi", "tre")
    first, second = release(house, "first"), release(house, "second")
    sha256 = {row.version: row.sha256 for row in house.rows(models.Release)}
    house.tell("pi", "deployed", encode(Deployed(kind="config", version="first", manifest=sha256["first"])))
    house.tell("tre", "deployed", encode(Deployed(kind="config", version="handmade")))
    known = {row.device_id: row.release_id for row in house.rows(models.DeviceRelease)}
    assert known == {"pi": first, "tre": None}
    rollout = start(house, second, rules=Rules(waves=[1], soak=0.0))
    for device in ("pi", "tre"):
        say(house, device, told(house, device), "succeeded")
    until_state(house, rollout, "completed")
    back = house.steward.write(lambda session: orders.back(session, rollout, house.clock.now, 10.0, by="ada").id)
    order = told(house, "pi", 2)
    assert order.back
    assert '"version":"first"' in order.manifest
    assert states(house, back) == {"pi": "notified"}  # tre had nothing that anybody could bring back
    assert house.row(models.Rollout, id=back).back_of == rollout
    with pytest.raises(ShoalError, match="a release that it could go back to"):
        house.steward.write(lambda session: orders.back(session, back, house.clock.now, 10.0, by="ada"))


def test_a_release_that_a_device_went_back_from_is_offered_again_only_by_force(house):
    enrol(house, "pi")
    made = release(house)
    first = start(house, made)
    say(house, "pi", told(house, "pi"), "rolled-back", text="no connection")
    until_state(house, first, "completed")
    second = start(house, made)
    until_state(house, second, "completed")
    assert states(house, second) == {"pi": "rejected"}
    start(house, made, rules=Rules(soak=0.0, force=True))
    told(house, "pi", 2)


def test_a_newer_rollout_takes_over_who_was_not_told_yet_and_waits_for_who_was(house):
    enrol(house, "pi", "tre")
    older = start(house, release(house, "a"), rules=Rules(waves=[1], parallel=1))
    house.until(lambda: "notified" in states(house, older).values())
    busy = next(device for device, state in states(house, older).items() if state == "notified")
    free = {"pi": "tre", "tre": "pi"}[busy]
    newer = start(house, release(house, "b"), rules=Rules(waves=[1]))
    assert states(house, older) == {busy: "notified", free: "superseded"}
    told(house, free)
    assert states(house, newer)[busy] == "queued"
    say(house, busy, told(house, busy), "succeeded")
    assert '"version":"b"' in told(house, busy, 2).manifest
    assert until_state(house, older, "completed").reason == "1 of 2 devices succeeded, 1 superseded"


def test_a_device_does_one_thing_at_a_time_whatever_its_kind(house):
    enrol(house, "pi")
    start(house, release(house, "a", kind="agent"))
    first = told(house, "pi")
    later = start(house, release(house, "b"))
    say(house, "pi", first, "waiting")
    house.clock.now += rollouts.LOOK
    courses = house.steward._rollouts._courses
    house.until(lambda: later in courses and courses[later].looked == house.clock.now)
    assert states(house, later) == {"pi": "queued"}
    say(house, "pi", first, "succeeded", 2)
    assert '"version":"b"' in told(house, "pi", 2).manifest


def test_an_abort_recalls_who_was_told_and_lets_the_others_finish(house):
    enrol(house, "pi", "tre")
    rollout = start(house, release(house), rules=Rules(waves=[1]))
    order = told(house, "pi")
    told(house, "tre")
    say(house, "pi", order, "accepted")
    operate(house, rollout, "abort")
    house.until(lambda: states(house, rollout) == {"pi": "accepted", "tre": "cancelled"})
    house.until(lambda: any(isinstance(message, Recall) for message in house.sent["tre"]))
    assert say(house, "tre", told(house, "tre"), "downloading")[-1] == Recall(id=told(house, "tre").id)
    assert house.row(models.Rollout).ended_at is None
    say(house, "pi", order, "succeeded", 2)
    house.until(lambda: house.row(models.Rollout).ended_at is not None)
    assert house.row(models.Rollout).reason == "aborted by ada"


def test_nobody_is_told_while_it_is_paused(house):
    enrol(house, "pi")
    rollout = start(house, release(house))
    told(house, "pi")
    operate(house, rollout, "pause")
    house.clock.now += rollouts.AGAIN
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert len(deploys(house, "pi")) == 1
    operate(house, rollout, "resume")
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert len(deploys(house, "pi")) == 2


def test_a_failure_that_may_be_mended_is_another_order(house):
    enrol(house, "pi")
    start(house, release(house))
    order = told(house, "pi")
    say(house, "pi", order, "accepted")
    say(house, "pi", order, "failed", 2, retry=True, text="no room")
    house.clock.now += 100
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    again = told(house, "pi", 2)
    assert again.id == f"{order.id}.1"
    say(house, "pi", order, "succeeded", 9)  # of the attempt before: its end was told
    assert house.row(models.Execution).state == "notified"
    say(house, "pi", again, "succeeded")
    assert house.row(models.Execution).state == "succeeded"


def test_late_truth_corrects_and_both_stay_in_the_course(house):
    enrol(house, "pi")
    start(house, release(house))
    order = told(house, "pi")
    say(house, "pi", order, "switching")
    house.clock.now += 1800
    house.until(lambda: house.row(models.Execution).state == "timed-out")
    say(house, "pi", order, "succeeded", 2)
    assert course(house, "pi")[-3:] == ["switching", "timed-out", "succeeded"]
    assert house.events("execution-timed-out") == [
        "pi: config night timed-out: it did not come to an end in time: switching"
    ]


def test_of_what_a_device_measures_a_bounded_part_is_kept(house):
    enrol(house, "pi")
    start(house, release(house))
    order = told(house, "pi")
    say(house, "pi", order, "accepted", facts={"first": 1.0})
    say(house, "pi", order, "downloading", 2, facts={"bytes": 2.0})
    assert house.row(models.Execution).facts == {"first": 1.0, "bytes": 2.0}
    for number in (3, 4):
        say(house, "pi", order, "verifying", number, facts={f"{number}-{n}": 1.0 for n in range(300)})
    facts = house.row(models.Execution).facts
    assert len(facts) == rollouts.FACTS
    assert all(name.startswith("4-") for name in facts)


def test_what_others_say_of_an_execution_counts_for_nothing(house):
    enrol(house, "pi", "eve")
    start(house, release(house), devices=("pi",))
    say(house, "eve", told(house, "pi"), "succeeded")
    say(house, "eve", "nothing-there", "succeeded")
    assert house.row(models.Execution).state == "notified"


def test_who_joins_while_it_goes_on_comes_last(house):
    enrol(house, "pi", "tre", group="roof")
    rollout = start(house, release(house), group="roof")
    house.until(lambda: "notified" in states(house, rollout).values())
    house.clock.now += 1

    def add(session) -> None:
        for name, group in (("new", "roof"), ("other", "")):
            session.add(models.Device(
                id=name, name=name, group=group, capability={}, enrolled_at=house.clock.now, status_at=house.clock.now,
            ))  # fmt: skip

    house.steward.write(add)
    house.clock.now += rollouts.NEWCOMERS
    house.until(lambda: states(house, rollout).get("new") == "queued")
    assert "other" not in states(house, rollout)
    assert {one.device_id: one.wave for one in house.rows(models.Execution)}["new"] == 1


def test_a_revoked_device_is_left_out(house):
    enrol(house, "pi")
    rollout = start(house, release(house))
    told(house, "pi")
    house.steward.write(lambda session: registry.revoke(session, "pi", house.clock.now, 10.0, by="ada"))
    house.steward.disconnect("pi")
    assert until_state(house, rollout, "cancelled").reason == "0 of 1 devices succeeded, 1 cancelled"


@pytest.mark.parametrize(
    ("target", "code"),
    [({"group": "nobody"}, "bad-request"), ({"devices": ("eve",)}, "not-found")],
)
def test_a_rollout_is_for_somebody(house, target, code):
    enrol(house, "pi")
    made = release(house)
    with pytest.raises(ShoalError) as refused:
        start(house, made, **target)
    assert refused.value.code == code
    assert house.rows(models.Rollout) == []


def test_what_was_withdrawn_or_has_run_out_is_not_begun_with(house):
    enrol(house, "pi")
    made = release(house)
    house.clock.now += releases.LIFE
    with pytest.raises(ShoalError, match="has run out"):
        start(house, made)
    house.clock.now -= 5
    house.steward.write(lambda s: releases.withdraw(s, made, house.clock.now, by="ada"))
    with pytest.raises(ShoalError, match="is withdrawn"):
        start(house, made)
