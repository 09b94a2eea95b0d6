"""The conversation with the coordinator, as scripts: what happens, and what the device does about it."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent import conversation as c
from device_agent.outbox import Tag
from protocol.messages import Amend, DeviceEvent, Progress, Status
from tests.device_agent.conversation_partner import (
    RESULT,
    Device,
    assignment,
    leaves,
    receipt,
    retry,
)

BODY = bytes(range(256)) * 1200  # 307,200 bytes: 75 chunks of 4 KiB


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def working(device: Device) -> Device:
    """Has been given assignment a1."""
    device.connect()
    device.hear(assignment(device.check_in.id))
    return device


def test_from_check_in_to_stored(device: Device) -> None:
    assert leaves(device.connect()) == ["check-in"]
    work = assignment(device.check_in.id)
    assert device.hear(work) == []
    assert device.did == [c.Hold(work), c.Fetch(work)]
    device.feel(c.Fetched("a1", 1.5, 900))
    assert device.did == [c.Train(work, 0), c.Allow("a1", 1)]
    said = device.feel(c.Trained("a1", RESULT, 2, b"body", "region", b"left"))
    assert leaves(said) == ["update", "check-in"], (
        "the next work is asked for without waiting for the receipt"
    )
    update = device.update
    assert device.did == [c.Commit(update, b"body", "region", b"left")]
    assert (update.lineage.version, update.lineage.shape_epoch) == (7, 2)
    assert (update.timings.download, update.timings.train, update.timings.upload) == (1.5, 3.0, None)
    assert (update.bytes_down, update.size, update.chunk) == (900, 4, 0)
    device.hear(receipt(update, "stored"))
    assert device.did == [c.Settle(update, give_back=False)]
    assert device.session.waiting == 0


def test_the_spool_has_the_update_before_the_coordinator_hears_of_it(working: Device) -> None:
    working.feel(c.Fetched("a1", 1.0, 1))
    outputs = working.session.handle(c.Trained("a1", RESULT, 0, b"b", "", None), working.now)
    kinds = [type(output) for output in outputs]
    assert kinds.index(c.Commit) < kinds.index(c.Publish)


def test_the_next_update_tells_how_long_this_one_took_to_upload(working: Device) -> None:
    working.train()
    first = working.update
    working.hear(assignment(working.check_in.id, "a2"))
    working.later(2)
    working.hear(receipt(first, "stored"))
    working.train("a2")
    assert working.update.timings.upload == 2


@pytest.mark.parametrize(("allowed", "told"), [((2, 1), [None, (2, 1), None]), ((), [(), (), ()])])
def test_labels_are_told_after_a_plan_that_asks_if_the_owner_allows_it(
    device: Device, allowed: tuple[int, ...], told: list[tuple[int, ...] | None]
) -> None:
    device.session.offer = evolve(device.session.offer, classes=2, labels=allowed)
    device.connect()
    found = [device.check_in.labels]
    for name, asks in (("a1", True), ("a2", False)):
        work = assignment(device.check_in.id, name)
        device.hear(evolve(work, plan=evolve(work.plan, labels=asks)))
        device.hear(Amend(assignment=name, number=1, plan=None, reason="that was all"))
        found.append(device.check_in.labels)
    assert found == told


def test_a_retry_is_obeyed(device: Device) -> None:
    device.connect()
    first = device.check_in.id
    device.hear(retry(first, 300))
    assert "check-in" not in leaves(device.later(299))
    assert "check-in" in leaves(device.later(2))
    assert device.check_in.id != first


def test_a_lost_answer_is_asked_for_again_under_a_new_id(device: Device) -> None:
    device.connect()
    first = device.check_in.id
    assert leaves(device.later(13)).count("check-in") == 1
    assert device.check_in.id != first


def test_an_answer_to_an_earlier_check_in_is_ignored(device: Device) -> None:
    device.connect()
    first = device.check_in.id
    device.later(13)
    device.hear(assignment(first, "late"))
    assert device.did == []
    device.hear(retry(first, 3600))
    device.hear(assignment(device.check_in.id))
    assert device.held is not None
    assert device.held.id == "a1"


def test_questions_become_rarer_while_nobody_answers(device: Device) -> None:
    device.connect()
    assert 10 <= leaves(device.later(900)).count("check-in") <= 25


def test_an_assignment_delivered_twice_is_taken_once(working: Device) -> None:
    working.hear(assignment(working.check_in.id))
    assert working.did == []


def test_a_break_during_training_costs_nothing(working: Device) -> None:
    working.feel(c.Fetched("a1", 1, 1))
    working.disconnect()
    working.later(100)
    assert leaves(working.connect()) == [], "it has work and nothing to tell"
    assert leaves(working.feel(c.Trained("a1", RESULT, 0, b"b", "", None))) == ["update", "check-in"]


def test_training_that_ends_offline_is_told_at_reconnection(working: Device) -> None:
    working.disconnect()
    assert working.train() == []
    assert leaves(working.connect()) == ["update", "check-in"]


def test_a_pending_check_in_is_repeated_after_reconnection(device: Device) -> None:
    device.connect()
    first = device.check_in.id
    device.disconnect()
    assert leaves(device.connect()) == ["check-in"]
    assert device.check_in.id != first


def test_a_retry_outlives_a_reconnection(device: Device) -> None:
    device.connect()
    device.hear(retry(device.check_in.id, 300))
    device.disconnect()
    device.later(10)
    assert "check-in" not in leaves(device.connect())


def test_without_a_receipt_the_update_is_announced_again_and_again(working: Device) -> None:
    working.train()
    working.hear(retry(working.check_in.id, 1e6))
    again = leaves(working.later(600)).count("update")
    assert 600 / 60 <= again <= 600 / 25, "10 s and up to 50 more"
    assert all(message == working.update for leaf, message in working.told if leaf == "update")


def test_after_reconnection_unacknowledged_updates_go_one_at_a_time(working: Device) -> None:
    working.train("a1")
    first = working.update
    working.hear(assignment(working.check_in.id, "a2"))
    working.disconnect()
    working.train("a2", b"second")
    said = working.connect()
    assert [message.assignment for leaf, message in said if leaf == "update"] == ["a1"]
    said = working.hear(receipt(first, "stored"))
    assert [message.assignment for leaf, message in said if leaf == "update"] == ["a2"]


def test_an_update_nobody_answers_does_not_hold_up_the_next(working: Device) -> None:
    working.train("a1")
    working.hear(assignment(working.check_in.id, "a2"))
    working.train("a2", b"second")
    said = working.later(60)
    assert [message.assignment for leaf, message in said if leaf == "update"][:2] == ["a2", "a1"]


def test_a_finished_update_waits_while_another_is_on_its_way(working: Device) -> None:
    working.train("a1", BODY)
    working.hear(receipt(working.update, "missing", ((0, 74),)))
    working.hear(assignment(working.check_in.id, "a2"))
    assert leaves(working.train("a2", b"second")) == ["check-in"]
    assert [chunk.index for _, chunk in working.feel(c.Acknowledged(working.tags[-1]))] == [1, 2]


def test_check_ins_name_the_updates_without_a_receipt(working: Device) -> None:
    working.train()
    assert working.check_in.unsent == ("a1",)


def test_no_more_work_is_asked_for_while_many_updates_wait(working: Device) -> None:
    first = None
    for number in range(1, 5):
        working.train(f"a{number}", b"%d" % number)
        first = first or working.update
        if number < 4:
            working.hear(assignment(working.check_in.id, f"a{number + 1}"))
    count = leaves(working.told).count("check-in")
    assert count == 4
    assert first is not None
    assert "check-in" in leaves(working.hear(receipt(first, "stored")))


# Uploads in chunks.


def test_a_large_update_goes_in_chunks_beside_the_next_work(working: Device) -> None:
    said = working.train(body=BODY)
    assert leaves(said) == ["update", "check-in"]
    update = working.update
    assert update.chunk == 4 * 1024
    said = working.hear(receipt(update, "missing", ((0, 74),)))
    assert [chunk.index for _, chunk in said] == [0], "one to begin with"
    said = working.feel(c.Acknowledged(working.tags[-1]))
    assert [chunk.index for _, chunk in said] == [1, 2], "two after a quick answer"
    working.hear(assignment(working.check_in.id, "a2"))
    assert isinstance(working.did[-1], c.Fetch)
    working.hear(receipt(update, "stored"))
    assert working.settled == [("a1", False)]


def test_after_a_break_only_what_is_missing_travels(working: Device) -> None:
    working.train(body=BODY)
    working.hear(receipt(working.update, "missing", ((0, 74),)))
    working.disconnect()
    said = working.connect()
    assert leaves(said) == ["update", "check-in"]
    said = working.hear(receipt(working.update, "missing", ((73, 74),)))
    assert [chunk.index for _, chunk in said] == [73]
    assert [chunk.index for _, chunk in working.feel(c.Acknowledged(working.tags[-1]))] == [74]


def test_goodput_decides_the_next_chunks(working: Device) -> None:
    working.train(body=BODY)
    working.hear(receipt(working.update, "missing", ((0, 74),)))
    for tag in working.tags:  # more come meanwhile
        working.now += 1 / 128  # 512 KiB/s
        working.feel(c.Acknowledged(tag))
    working.hear(receipt(working.update, "stored"))
    working.hear(assignment(working.check_in.id, "a2"))
    working.train("a2", BODY)
    assert 18_000 < working.update.chunk < 24_000, "eight of them in 0.3 s"


def test_progress_keeps_a_slow_upload_from_being_announced_again(working: Device) -> None:
    working.train(body=BODY)
    working.hear(retry(working.check_in.id, 1e6))
    working.hear(receipt(working.update, "missing", ((0, 74),)))
    for number in range(75):
        assert "update" not in leaves(working.later(11))
        working.feel(c.Acknowledged(Tag("a1", 1, number)))
    assert "update" in leaves(working.later(20))


def test_what_the_broker_has_not_acknowledged_is_not_sent_again(working: Device) -> None:
    """It waits in the connection, however slow that is; one that is dead ends by its keepalive."""
    working.train(body=BODY)
    working.hear(retry(working.check_in.id, 1e6))
    working.hear(receipt(working.update, "missing", ((0, 74),)))
    assert {"update", "chunk"}.isdisjoint(leaves(working.later(110)))
    assert "update" in leaves(working.later(60)), "but not for ever"


@pytest.mark.parametrize("body", [BODY, b"x" * 9000], ids=["in chunks", "whole"])
def test_a_link_that_breaks_before_anything_got_through_gets_the_smallest_chunks(working: Device, body: bytes) -> None:
    working.session._outbox.goodput = 1e6
    working.train(body=body)
    assert working.update.chunk in (0, 37_500)
    sha256 = working.update.sha256
    for _ in range(2):
        working.disconnect()
        working.connect()
        assert (working.update.chunk, working.update.sha256) == (4096, sha256)


def test_chunks_stay_as_they_are_where_something_got_through(working: Device) -> None:
    working.session._outbox.goodput = 1e6
    working.train(body=BODY)
    working.feel(c.Acknowledged(working.tags[-1]))
    working.disconnect()
    working.connect()
    assert working.update.chunk == 37_500


def test_back_off_spreads_over_its_whole_range() -> None:
    """Ten seconds for an answer, and up to ten, twenty, forty, fifty more: full jitter."""
    waits: dict[int, list[float]] = {}
    for seed in range(60):
        device = Device(seed)
        device.connect()
        device.hear(assignment(device.check_in.id))
        device.train()
        device.hear(retry(device.check_in.id, 1e6))
        for attempt in range(4):
            before = device.now
            while "update" not in leaves(device.later(0.5)):
                pass
            waits.setdefault(attempt, []).append(device.now - before)
    for attempt, most in enumerate((10, 20, 40, 50)):
        assert min(waits[attempt]) < 10.5 + most / 4
        assert 10 + most * 3 / 4 < max(waits[attempt]) <= 11 + most


# Receipts.


@pytest.mark.parametrize("state", ["stale", "refused", "expired", "unknown"])
def test_what_was_not_used_goes_back_into_the_residual(working: Device, state: str) -> None:
    working.train()
    working.hear(receipt(working.update, state))
    assert working.settled == [("a1", True)]
    assert working.events == {}


def test_a_receipt_for_other_bytes_is_the_last_word(working: Device) -> None:
    working.train()
    working.hear(receipt(working.update, "stored", sha256="f" * 64))
    assert working.settled == [("a1", False)]
    assert [event.kind for event in working.events.values()] == ["update-replaced"]


def test_receipts_for_nothing_we_know_and_second_ones_are_ignored(working: Device) -> None:
    working.train()
    final = receipt(working.update, "stored")
    working.hear(final)
    working.hear(final)
    assert working.did == []
    assert working.settled == [("a1", False)]


def test_finished_work_is_not_trained_twice(working: Device) -> None:
    working.train()
    sent = working.update
    said = working.hear(assignment(working.check_in.id, "a1"))
    assert ("update", sent) in said
    assert working.held is None
    working.hear(receipt(sent, "stored"))
    working.later(10)
    working.hear(assignment(working.check_in.id, "a1"))
    assert working.held is None


# Restarts.


def test_after_a_restart_the_held_assignment_is_asked_for(working: Device) -> None:
    working.restart()
    working.connect()
    assert working.check_in.held == "a1"
    again = assignment(working.check_in.id)
    working.hear(again)
    assert working.did == [c.Hold(again), c.Fetch(again)]
    assert working.events == {}


def test_other_work_than_the_held_one_replaces_it_and_says_so(working: Device) -> None:
    working.restart()
    working.connect()
    said = working.hear(assignment(working.check_in.id, "a2"))
    assert leaves(said) == ["event"]
    assert working.held is not None
    assert working.held.id == "a2"
    (event,) = working.events.values()
    assert event.kind == "assignment-dropped"
    assert "a1" in event.text


def test_a_retry_leaves_the_held_assignment_where_it_is(working: Device) -> None:
    working.restart()
    working.connect()
    working.hear(retry(working.check_in.id, 5))
    working.later(6)
    assert working.check_in.held == "a1"


def test_after_a_restart_the_spooled_update_is_announced_unchanged(working: Device) -> None:
    working.train()
    sent = working.update
    working.restart()
    assert leaves(working.connect()) == ["update", "check-in"]
    assert working.update == sent


def test_finished_work_is_remembered_across_restarts(working: Device) -> None:
    working.train()
    working.hear(receipt(working.update, "stored"))
    working.restart()
    working.connect()
    working.hear(assignment(working.check_in.id, "a1"))
    assert working.held is None


# Failures, events, the coordinator's status, telemetry.


def test_a_failure_drops_the_assignment_tells_why_and_asks_for_other_work(working: Device) -> None:
    said = working.feel(c.Failed("a1", "download-failed", "blob 0000 is gone"))
    assert said == [("event", DeviceEvent(kind="download-failed", text="assignment a1: blob 0000 is gone"))]
    assert working.held is None
    assert leaves(working.later(10)).count("check-in") == 1


def test_repeated_failures_slow_the_device_down(device: Device) -> None:
    device.connect()
    waits = []
    for number in range(8):
        device.hear(assignment(device.check_in.id, f"a{number}"))
        device.feel(c.Failed(f"a{number}", "training-failed", "no"))
        start = device.now
        while "check-in" not in leaves(device.later(0.5)):
            pass
        waits.append(device.now - start)
    assert waits[0] < 10
    assert 200 < waits[-1] < 400


def test_numbers_the_protocol_cannot_carry_fail_the_assignment(working: Device) -> None:
    working.feel(c.Fetched("a1", 1, 1))
    working.feel(c.Trained("a1", evolve(RESULT, loss=1e31), 0, b"b", "", None))
    assert working.held is None
    assert working.updates == {}
    assert [event.kind for event in working.events.values()] == ["training-failed"]


def test_events_are_kept_until_the_broker_has_them(device: Device) -> None:
    device.feel(c.Noticed(DeviceEvent(kind="spool-damaged", text="it was")))
    device.restart()
    assert leaves(device.connect()) == ["event", "check-in"]
    device.feel(c.Acknowledged(device.tags[0]))
    assert device.events == {}
    device.disconnect()
    assert "event" not in leaves(device.connect())


def test_only_the_latest_events_are_kept(device: Device) -> None:
    for number in range(60):
        device.feel(c.Noticed(DeviceEvent(kind="note", text=str(number))))
    assert [event.text for event in device.events.values()] == [str(n) for n in range(10, 60)]


def test_an_offline_coordinator_is_left_alone_until_it_is_back(working: Device) -> None:
    working.train()
    working.hear(Status(state="offline"))
    assert {leaf for leaf in leaves(working.later(40)) if leaf} <= {"telemetry"}
    working.hear(Status(state="online"))
    assert leaves(working.later(2)) == ["update", "check-in"]


def test_an_offline_coordinator_is_tried_again_all_the_same(working: Device) -> None:
    working.train()
    working.hear(Status(state="offline"))
    assert {"update", "check-in"} <= set(leaves(working.later(80)))


def test_a_coordinator_that_comes_back_hears_again_what_it_may_have_missed(working: Device) -> None:
    working.train()
    working.hear(Status(state="online"))
    assert leaves(working.later(2)) == ["update", "check-in"]


def test_the_retained_online_changes_nothing(working: Device) -> None:
    working.train()
    working.hear(Status(state="online"), retained=True)
    assert leaves(working.later(2)) == []


def test_the_retained_offline_is_believed(device: Device) -> None:
    device.connect()
    device.hear(Status(state="offline"), retained=True)
    assert "check-in" not in leaves(device.later(30))


def test_progress_is_told_at_the_start_and_every_two_seconds(working: Device) -> None:
    working.feel(c.Fetched("a1", 1, 1))
    assert working.feel(c.Progressed("a1", 0, None)) == [
        ("progress", Progress(assignment="a1", step=0, loss=None))
    ]
    told = 0
    for step in range(1, 41):
        working.now += 0.25
        told += len(working.feel(c.Progressed("a1", step, 0.5)))
    assert told == 5


def test_beats_come_at_the_heartbeat_and_tell_the_state(working: Device) -> None:
    beats = []
    for _ in range(40):
        working.later(1)
        beats += [output for output in working.did if isinstance(output, c.Beat)]
    assert len({beat.since for beat in beats}) == 4
    assert beats[-1].state == "fetching"
    assert beats[-1].assignment == "a1"


# Whatever happens in whatever order.

EVENTS = st.sampled_from(
    (
        *("connect", "disconnect", "restart", "tick", "offline", "online"),
        *("assign", "same", "stale", "retry", "fetch", "train", "fail"),
        *("store", "refuse", "miss", "ack"),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60), st.integers(0, 1000))
def test_no_key_ever_carries_two_bodies_and_no_update_is_forgotten(events: list[str], seed: int) -> None:
    device = Device(seed)
    bodies: dict[tuple[str, int], str] = {}
    final: set[tuple[str, int]] = set()
    made: set[tuple[str, int]] = set()
    for number, event in enumerate(events):
        _play(device, event, number, final)
        for leaf, message in device.told:
            if leaf == "update":
                assert bodies.setdefault(message.key, message.sha256) == message.sha256
        made |= set(device.updates)
        assert made - final == set(device.updates), "exactly those without a final receipt are kept"
        assert device.session.waiting == len(device.updates)
    # A device with nothing to do always comes back to ask, and what is owed is announced.
    if not device.session.connected:
        device.connect()
    told = leaves(device.told + device.later(200))
    if device.session.state in ("idle", "held"):
        assert "check-in" in told or "update" in told
    if device.updates:
        assert "update" in told


def _play(device: Device, event: str, number: int, final: set[tuple[str, int]]) -> None:
    session = device.session
    asked = [message.id for leaf, message in device.told if leaf == "check-in"]
    sent = [message for leaf, message in device.told if leaf == "update"]
    name = session.assignment.id if session.assignment else "none"
    simple: dict[str, Any] = {
        "disconnect": c.Disconnected(),
        "fetch": c.Fetched(name, 1, 1),
        "train": c.Trained(name, RESULT, 0, b"%d" % number * (1 + number * 5000), "", None),
        "fail": c.Failed(name, "training-failed", "no"),
        "offline": c.Received(Status(state="offline")),
        "online": c.Received(Status(state="online")),
    }
    if event in simple:
        device.feel(simple[event])
    elif event == "connect" and not session.connected:
        device.connect()
    elif event == "restart":
        device.restart()
    elif event == "tick":
        device.later(20)
    elif event == "ack" and device.tags:
        device.feel(c.Acknowledged(device.tags[number % len(device.tags)]))
    elif asked and event in ("assign", "same", "stale", "retry"):
        answers = {
            "assign": assignment(asked[-1], f"a{number}"),
            "same": assignment(asked[-1], sent[0].assignment if sent else "a"),
            "stale": assignment(asked[0], f"s{number}"),
            "retry": retry(asked[-1], 30),
        }
        device.hear(answers[event])
    elif sent and event in ("store", "refuse", "miss"):
        update = sent[number % len(sent)]
        last = (update.size - 1) // update.chunk if update.chunk else 0
        states = {"store": ("stored", ()), "refuse": ("refused", ()), "miss": ("missing", ((0, last),))}
        state, missing = states[event]
        if state != "missing":
            final.add(update.key)
        device.hear(receipt(update, state, missing))


def test_without_an_offer_it_sends_what_it_has_and_asks_for_no_more(working: Device) -> None:
    working.session.offer = None
    assert leaves(working.train()) == ["update"]
    assert set(leaves(working.later(600))) == {"update"}


def test_once_there_is_an_offer_it_checks_in_at_once(device: Device) -> None:
    offer, device.session.offer = device.session.offer, None
    assert leaves(device.connect()) == []
    device.session.offer = offer
    assert leaves(device.feel(c.Tick())) == ["check-in"]
