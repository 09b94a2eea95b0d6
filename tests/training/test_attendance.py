"""A run whose devices are all gone says so once, and since when."""

from __future__ import annotations

import math

import pytest

from coordinator.store import models, registry
from protocol.messages import Retry

from .house import FEDAVG, HEARTBEAT, RECIPE

PATIENCE = (registry.LATE_AFTER + 2) * HEARTBEAT


def reason(house, run) -> str:
    return house.row(models.Run, id=run).reason


def looks(house) -> None:
    """The steward looks around now, and not when it next would."""

    def look(turn) -> None:
        house.steward._looked = -math.inf
        house.steward._look(turn)

    house.steward._ask(look)


def passes(house, seconds: float) -> None:
    """Time goes by, heartbeat for heartbeat, and the steward looks around after each."""
    for _ in range(math.ceil(seconds / HEARTBEAT)):
        house.clock.now += HEARTBEAT
        looks(house)


def test_a_run_that_nobody_comes_for_waits_since_its_beginning(house):
    run = house.start_run()
    passes(house, PATIENCE)
    assert reason(house, run) == "waiting for devices since 2023-11-14 22:13:20 UTC"
    passes(house, 20 * HEARTBEAT)
    (event,) = house.events("run-waiting")
    assert event == f"{run} waits for devices: none was heard since 2023-11-14 22:13:20 UTC"
    assert house.rows(models.Input) == []


@pytest.mark.parametrize("recipe", [RECIPE, FEDAVG])
def test_when_all_are_silent_the_run_waits_since_the_last_was_heard_and_goes_on_when_one_is_back(house, recipe):
    one, other = house.enrol("one", "other")
    run = house.start_run(recipe)
    one.check_in()
    house.clock.now += 5
    other.check_in()
    passes(house, PATIENCE)
    assert reason(house, run) == "waiting for devices since 2023-11-14 22:13:25 UTC"
    passes(house, 20 * HEARTBEAT)  # leases run out
    inputs = len(house.rows(models.Input))
    passes(house, 20 * HEARTBEAT)
    assert len(house.rows(models.Input)) == inputs
    one.work()
    passes(house, HEARTBEAT)
    assert reason(house, run) == ""
    assert house.events("run-attended") == [f"{run} goes on: one is here"]
    assert len(house.events("run-waiting")) == 1


def test_who_is_put_off_by_a_barrier_is_there(house):
    *working, late = house.enrol("one", "two", "three", "four")
    run = house.start_run(FEDAVG)
    for device in working:
        device.check_in()
    for _ in range(5):  # leases last for six heartbeats
        assert isinstance(late.check_in(), Retry)
        passes(house, HEARTBEAT)
    assert house.row(models.Device, id="one").status == "late"
    assert reason(house, run) == ""
    assert house.events("run-waiting") == []


def test_devices_that_no_run_has_work_for_do_not_count_nor_do_those_that_were_paused(house):
    one, other = house.enrol("one", "other")
    run = house.start_run()
    one.check_in()
    house.steward.write(lambda session: registry.pause(session, "one", house.clock.now, HEARTBEAT, by="ada"))
    for _ in range(5):
        one.check_in()
        other.check_in(input=(5,))
        passes(house, HEARTBEAT)
    assert [device.status for device in house.rows(models.Device)] == ["paused", "idle"]
    assert reason(house, run).startswith("waiting for devices since ")


def test_a_run_that_waits_still_waits_after_a_restart_and_says_it_no_second_time(house):
    run = house.start_run()
    passes(house, PATIENCE)
    house.reopened()
    passes(house, 2 * PATIENCE)
    assert reason(house, run).startswith("waiting for devices since ")
    assert len(house.events("run-waiting")) == 1


def test_after_a_restart_devices_are_given_time_to_come(house):
    (one,) = house.enrol("one")
    run = house.start_run()
    one.check_in()
    house.close()
    house.clock.now += 1000
    house.open()
    passes(house, HEARTBEAT)
    one.work()
    passes(house, 2 * HEARTBEAT)
    assert house.events("run-waiting") == []
    assert reason(house, run) == ""


def test_a_paused_run_waits_for_nobody(house):
    run = house.start_run()
    house.steward.operate(run, "pause", "ada")
    passes(house, PATIENCE)
    assert reason(house, run) == "paused by ada"
    house.steward.operate(run, "resume", "ada")
    passes(house, PATIENCE)
    assert reason(house, run) == "waiting for devices since 2023-11-14 22:13:20 UTC"
