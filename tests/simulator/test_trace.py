"""From live runs: the conditions they met with become a population."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from coordinator.errors import ShoalError
from coordinator.settings import sqlite_url
from coordinator.simulator import population, trace
from coordinator.store.database import Database
from protocol.messages import Timings
from tests.training.house import House

DOWN, UP = 0.5, 2.0


@pytest.fixture
def lived(tmp_path):
    """A live run: two devices, one of them twice as fast, eight updates each."""
    database = Database(sqlite_url(tmp_path / "shoal.db"))
    database.upgrade()
    database.close()
    house = House(tmp_path).open()
    fast, slow = house.enrol("fast", "slow", group="pi4")
    run = house.start_run()
    rng = np.random.default_rng(1)
    for number in range(8):
        for device, seconds in ((fast, 1.0), (slow, 2.0)):
            house.clock.now += 10
            work = device.check_in()
            upload = UP if number else None
            receipt = device.deliver(work, rng, timings=Timings(download=DOWN, train=seconds, upload=upload))
            assert receipt.state == "stored"
    yield house, run
    house.close()


def test_the_conditions_of_a_run_become_a_population(lived):
    house, run = lived
    with house.database.read() as session:
        found = trace.conditions(session, run)
    fast, slow = found
    assert (fast.device, slow.device, fast.label) == ("fast", "slow", "pi4")
    for width, ms in fast.ms_per_sample.items():
        assert slow.ms_per_sample[width] == pytest.approx(2 * ms)
    read = population.parse(trace.to_toml(run, found), Path())
    assert [group.name for group in read.groups] == ["fast", "slow"]
    assert read.devices == 2
    assert dict(read.groups[0].compute.ms_per_sample) == pytest.approx(fast.ms_per_sample)
    assert read.groups[0].links[0].up_kbps == pytest.approx(fast.up_kbps)
    assert read.groups[0].label == "pi4"


def test_a_run_without_updates_gives_no_population(lived):
    house, _ = lived
    other = house.start_run()
    with house.database.read() as session:
        with pytest.raises(ShoalError, match="no device with 3 updates"):
            trace.conditions(session, other)
        with pytest.raises(ShoalError, match="There is no run 'nowhere'"):
            trace.conditions(session, "nowhere")


def test_absences_are_carried_over(lived):
    house, run = lived
    with house.database.read() as session:
        first = evolve(trace.conditions(session, run)[0], away=20.0, on=60.0)
    read = population.parse(trace.to_toml(run, [first]), Path())
    assert (read.groups[0].availability.on, read.groups[0].availability.away) == (60.0, 20.0)
