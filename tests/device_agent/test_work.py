"""The assignment in hand, as scripts: several commits, fresh models, amended plans, refusals, restarts."""

from __future__ import annotations

import pytest
from attrs import evolve

from device_agent import conversation as c
from protocol.messages import Amend, Ask, Blob, Fresh, Merge, Plan
from tests.device_agent.conversation_partner import (
    PLAN,
    RESULT,
    Device,
    assignment,
    checkpoint,
    leaves,
    receipt,
    retry,
)

LONG = evolve(PLAN, commits=8)
MERGE = Merge(step=3, version=9, merge=0.5, keep=0.25, loss_before=1.0, loss_after=0.5)


@pytest.fixture
def device() -> Device:
    """Trains assignment a1, of which eight commits are wanted."""
    device = Device()
    device.connect()
    device.hear(evolve(assignment(device.check_in.id), plan=LONG))
    device.feel(c.Fetched("a1", 1.5, 900))
    return device


def commit(device: Device, number: int, last: bool = False, body: bytes | None = None, **result: object) -> list[str]:
    """Training makes a commit; what the device says."""
    made = evolve(RESULT, commit=number, last=last, **result)
    place = None if last else checkpoint("a1", number, number)
    return leaves(device.feel(c.Trained("a1", made, 0, body or b"%d" % number, "", None, place)))


def amend(plan: Plan | None, number: int = 1) -> Amend:
    return Amend(assignment="a1", number=number, plan=plan, reason="so it is wanted")


def fresh(version: int) -> Fresh:
    blob = Blob(sha256=f"{version:064x}", size=1)
    return Fresh(assignment="a1", version=version, weights=blob, merge=0.5, keep=0.25)


# Commits.


def test_after_a_commit_training_goes_on_with_the_next_allowed(device: Device) -> None:
    assert device.did[-1] == c.Allow("a1", 1)
    assert commit(device, 1) == ["update"]
    update = device.update
    assert device.did == [c.Commit(update, b"1", "", None, checkpoint("a1", 1, 1)), c.Allow("a1", 2)]
    assert not update.last
    assert device.held is not None
    assert device.session.state == "training"


def test_after_the_last_commit_it_asks_for_work(device: Device) -> None:
    assert commit(device, 1, last=True) == ["update", "check-in"]
    assert device.update.last
    assert device.held is None


def test_a_commit_tells_what_it_builds_on_and_only_its_own_downloads(device: Device) -> None:
    device.hear(fresh(9))
    device.feel(c.FreshFetched("a1", 9, 2.0, 500))
    commit(device, 1, merges=(MERGE,))
    first = device.update
    assert (first.lineage.version, first.lineage.merges) == (7, (MERGE,))
    assert (first.timings.download, first.bytes_down) == (3.5, 1400)
    device.hear(receipt(first, "stored"))
    commit(device, 2, version=9)
    second = device.update
    assert (second.lineage.version, second.lineage.merges) == (9, ())
    assert (second.timings.download, second.bytes_down) == (0, 0)


def test_while_updates_pile_up_no_commit_is_allowed_until_one_is_acknowledged(device: Device) -> None:
    for number in range(1, 5):
        commit(device, number)
    first = device.updates["a1", 1][0]
    assert device.allowed == {"a1": 4}
    device.hear(receipt(first, "stored"))
    assert device.allowed == {"a1": 5}


def test_the_last_commit_always_finds_room(device: Device) -> None:
    device.disconnect()
    for number in range(1, 5):
        commit(device, number)
    device.hear(amend(evolve(LONG, commits=5)))
    assert device.allowed == {"a1": 5}


def test_large_updates_leave_less_room() -> None:
    device = Device(limit=1000)
    device.connect()
    device.hear(evolve(assignment(device.check_in.id), plan=LONG))
    device.feel(c.Fetched("a1", 1.5, 900))
    commit(device, 1, body=bytes(600))
    assert device.allowed == {"a1": 2}
    commit(device, 2, body=bytes(600))
    assert device.allowed == {"a1": 2}
    device.hear(receipt(device.updates["a1", 1][0], "stored"))
    assert device.allowed == {"a1": 3}


def test_commits_of_one_assignment_never_overtake_each_other(device: Device) -> None:
    commit(device, 1)
    commit(device, 2)
    device.later(300)
    sent = [message.commit for leaf, message in device.told if leaf == "update"]
    assert set(sent) == {1}
    assert len(sent) > 3


def test_offline_commits_go_out_in_order_at_the_next_connection(device: Device) -> None:
    device.disconnect()
    assert commit(device, 1) == commit(device, 2) == []
    assert leaves(device.connect()) == ["update"]
    said = device.hear(receipt(device.update, "stored"))
    assert [message.commit for _, message in said] == [2]


@pytest.mark.parametrize("state", ["refused", "expired", "unknown"])
def test_a_refused_commit_ends_the_rest_of_its_assignment(device: Device, state: str) -> None:
    commit(device, 1)
    said = leaves(device.hear(receipt(device.update, state)))
    assert device.settled == [("a1", True)]
    assert [type(output) for output in device.did] == [c.Settle, c.Stop, c.Drop]
    assert device.held is None
    assert said == ["check-in"]
    assert commit(device, 2) == [], "what was still being trained comes to nothing"


def test_a_stale_commit_does_not(device: Device) -> None:
    commit(device, 1)
    device.hear(receipt(device.update, "stale"))
    assert device.settled == [("a1", True)]
    assert device.session.state == "training"


def test_a_receipt_for_another_assignment_does_not(device: Device) -> None:
    commit(device, 1, last=True)
    old = device.update
    device.hear(evolve(assignment(device.check_in.id, "a2"), plan=LONG))
    device.hear(receipt(old, "refused"))
    assert device.session.assignment is not None
    assert device.session.assignment.id == "a2"


def test_training_that_fails_after_a_commit_is_never_begun_again(device: Device) -> None:
    commit(device, 1)
    device.feel(c.Failed("a1", "training-failed", "no"))
    assert device.finished == ["a1"]
    device.later(10)
    device.hear(assignment(device.check_in.id))
    assert device.session.state == "idle"


# Restarts.


def test_after_a_power_cut_it_goes_on_where_it_was(device: Device) -> None:
    commit(device, 1)
    device.feel(c.Checkpointed("a1", checkpoint("a1", 1, 5)))
    device.restart()
    device.connect()
    assert device.check_in.held == "a1"
    assert device.check_in.unsent == ("a1",)
    device.hear(evolve(assignment(device.check_in.id), plan=LONG))
    device.feel(c.Fetched("a1", 0, 0))
    assert device.did[0] == c.Train(evolve(assignment(device.check_in.id), plan=LONG), 1)
    assert device.allowed == {"a1": 2}
    assert device.checkpoint == checkpoint("a1", 1, 5)


def test_other_work_after_a_power_cut_ends_what_was_committed_for_good(device: Device) -> None:
    commit(device, 1)
    device.restart()
    device.connect()
    device.hear(assignment(device.check_in.id, "a2"))
    assert device.finished == ["a1"]
    assert [event.kind for event in device.events.values()] == ["assignment-dropped"]


def test_a_plan_that_has_been_cut_down_to_what_is_done_is_done(device: Device) -> None:
    commit(device, 1)
    device.restart()
    device.connect()
    said = device.hear(evolve(assignment(device.check_in.id), plan=evolve(LONG, commits=1)))
    assert leaves(said) == ["check-in"]
    assert device.check_in.held is None


def test_a_checkpoint_of_what_was_dropped_is_not_saved(device: Device) -> None:
    device.hear(amend(None))
    device.feel(c.Checkpointed("a1", checkpoint("a1", 0, 5)))
    assert device.did == []


# Amended plans.


def test_an_amended_plan_is_held_and_passed_on(device: Device) -> None:
    faster = evolve(LONG, learning_rate=0.5, seconds=3.0)
    device.hear(amend(faster))
    assert device.held is not None
    assert device.did == [c.Hold(device.held), c.Amended("a1", faster)]
    assert device.held.plan == faster


def test_amendments_out_of_order_and_for_other_assignments_are_ignored(device: Device) -> None:
    device.hear(amend(evolve(LONG, learning_rate=0.5), number=5))
    device.hear(amend(evolve(LONG, learning_rate=0.6), number=5))
    device.hear(amend(None, number=4))
    device.hear(evolve(amend(None, number=6), assignment="a9"))
    assert device.held is not None
    assert device.held.plan.learning_rate == 0.5


@pytest.mark.parametrize("change", [{"width": 0.5}, {"batch": 8}, {"coding": "int8"}, {"roll": 3}])
def test_what_no_training_can_change_is_refused(device: Device, change: dict[str, object]) -> None:
    assert leaves(device.hear(amend(evolve(LONG, **change)))) == ["event"]
    (event,) = device.events.values()
    assert event.kind == "amend-refused"
    assert next(iter(change)) in event.text
    assert device.held is not None
    assert device.held.plan == LONG


def test_what_training_cannot_follow_is_told_and_the_plan_before_counts(device: Device) -> None:
    wanted = evolve(LONG, momentum=0.9)
    device.hear(amend(wanted))
    device.feel(c.Refused("a1", wanted, LONG, "the artifact was made without it"))
    assert device.held is not None
    assert device.held.plan == LONG
    assert [event.kind for event in device.events.values()] == ["amend-refused"]


def test_without_a_plan_the_assignment_is_dropped_and_what_was_committed_delivered(device: Device) -> None:
    commit(device, 1)
    said = device.hear(amend(None))
    assert leaves(said) == ["check-in"]
    assert device.did == [c.Stop("a1", "so it is wanted"), c.Drop("a1")]
    assert device.check_in.unsent == ("a1",)
    assert device.events == {}
    device.hear(receipt(device.updates["a1", 1][0], "stored"))
    assert device.settled == [("a1", False)]


def test_a_plan_with_no_more_commits_than_were_made_ends_it_too(device: Device) -> None:
    commit(device, 1)
    commit(device, 2)
    device.hear(amend(evolve(LONG, commits=2)))
    assert device.held is None


def test_an_amended_plan_that_training_had_not_seen_makes_its_commit_the_last(device: Device) -> None:
    device.hear(amend(evolve(LONG, commits=1)))
    commit(device, 1, last=False)
    assert device.update.last
    assert c.Stop("a1", "its last commit was made") in device.did
    assert device.held is None
    assert device.finished == ["a1"]


# Fresh models.


def test_a_fresh_model_is_fetched_and_taken(device: Device) -> None:
    device.hear(fresh(9))
    assert device.held is not None
    assert device.did == [c.FetchFresh(device.held, fresh(9))]
    device.feel(c.FreshFetched("a1", 9, 1.0, 5))
    assert device.did == [c.TakeFresh("a1", fresh(9))]


@pytest.mark.parametrize("version", [6, 7])
def test_one_that_is_not_newer_is_left_alone(device: Device, version: int) -> None:
    device.hear(fresh(version))
    assert device.did == []


def test_of_several_only_the_newest_waits_its_turn(device: Device) -> None:
    for version in (9, 10, 12, 11):
        device.hear(fresh(version))
    assert device.did == []
    device.feel(c.FreshFetched("a1", 9, 1.0, 5))
    assert device.held is not None
    assert device.did == [c.TakeFresh("a1", fresh(9)), c.FetchFresh(device.held, fresh(12))]
    device.feel(c.FreshFetched("a1", 12, 1.0, 5))
    assert device.did == [c.TakeFresh("a1", fresh(12))]
    device.hear(fresh(12))
    assert device.did == []


def test_one_that_cannot_be_had_is_told_and_training_goes_on(device: Device) -> None:
    device.hear(fresh(9))
    assert leaves(device.feel(c.FreshFailed("a1", 9, "it is gone"))) == ["event"]
    assert [event.kind for event in device.events.values()] == ["fresh-failed"]
    assert device.session.state == "training"
    device.hear(fresh(9))
    assert isinstance(device.did[0], c.FetchFresh), "it may be tried again"


def test_the_question_for_it_waits_for_a_connection(device: Device) -> None:
    assert device.feel(c.Asked("a1", 1, 5, 7)) == [("ask", Ask(assignment="a1", commit=1, step=5, version=7))]
    device.disconnect()
    assert device.feel(c.Asked("a1", 2, 9, 7)) == []
    assert ("ask", Ask(assignment="a1", commit=2, step=9, version=7)) in device.connect()
    device.disconnect()
    assert "ask" not in leaves(device.connect())


def test_a_question_of_an_assignment_that_is_over_is_not_asked(device: Device) -> None:
    device.disconnect()
    device.feel(c.Asked("a1", 1, 5, 7))
    commit(device, 1, last=True)
    assert "ask" not in leaves(device.connect())


def test_a_held_assignment_is_not_amended_but_can_be_ended(device: Device) -> None:
    device.restart()
    device.connect()
    device.hear(retry(device.check_in.id, 60))
    device.hear(amend(evolve(LONG, learning_rate=0.5)))
    device.hear(fresh(9))
    assert device.did == []
    device.hear(amend(None, number=2))
    assert device.held is None
