"""What a device meets with: training times, transfers, comings and goings."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.errors import ShoalError
from coordinator.simulator.conditions import Presence, Speed, Wire, generator
from coordinator.simulator.population import Availability, Compute, Link
from coordinator.strategies.base import Cost

COSTS = {1.0: Cost(100, 4_000_000), 0.5: Cost(25, 1_000_000)}
MIDNIGHT = 946_684_800.0


def rng(number=0):
    return generator(7, "test", number)


def test_flops_over_sustained_flops():
    speed = Speed(Compute(mflops=8.0, ms_per_step=100), COSTS, 0, rng())
    assert speed.step(1.0, 10, 0) == pytest.approx(10 * 0.5 + 0.1)
    assert speed.step(0.5, 10, 0) == pytest.approx(10 * 0.125 + 0.1)


def test_a_table_counts_where_it_has_an_entry_and_flops_from_the_nearest_elsewhere():
    speed = Speed(Compute(ms_per_sample={1.0: 8.0}), COSTS, 0, rng())
    assert speed.sample(1.0) == pytest.approx(0.008)
    assert speed.sample(0.5) == pytest.approx(0.002)
    known = Speed(Compute(ms_per_sample={1.0: 8.0, 0.5: 5.0}), COSTS, 0, rng())
    assert known.sample(0.5) == pytest.approx(0.005)


def test_speed_changes_when_the_plan_says():
    speed = Speed(Compute(mflops=4.0, changes=((60.0, 0.5), (120.0, 2.0))), COSTS, 1000, rng())
    assert [speed.step(1.0, 1, 1000 + at) for at in (0, 59, 60, 119, 120)] == pytest.approx([1, 1, 2, 2, 0.5])


def test_factors_that_are_drawn_are_the_same_whoever_asks_when():
    compute = Compute(mflops=4.0, change_every=10, change_low=0.2, change_high=1.0)
    moments = [3.0, 40.0, 12.0, 90.0, 41.0]
    one, other = Speed(compute, COSTS, 0, rng()), Speed(compute, COSTS, 0, rng())
    first = {at: one.step(1.0, 1, at) for at in moments}
    assert first == {at: other.step(1.0, 1, at) for at in sorted(moments)}
    assert len(set(first.values())) > 2


def test_bytes_over_a_link():
    wire = Wire(Link(down_kbps=8000, up_kbps=800, latency=0.5), rng())
    assert wire.down(1_000_000, 0) == pytest.approx(0.5 + 1.0)
    assert wire.up(1_000_000, 0) == pytest.approx(0.5 + 10.0)
    assert wire.message(100) == pytest.approx(0.501)


def test_outages_take_the_share_of_the_time_they_are_said_to():
    wire = Wire(Link(down_kbps=8000, up_kbps=8000, outage=0.2, outage_length=2.0), rng())
    times = [wire.down(100_000_000, 0) for _ in range(400)]  # 100 s each without outages
    assert np.mean(times) == pytest.approx(100 / 0.8, rel=0.03)


def test_a_trace_is_played_over_and_over(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("# seconds, down, up\n0,8,80\n1,0,80\n2,8,80\n3,0,80\n")
    wire = Wire(Link(trace=str(file)), rng())
    # 1,000 bytes are 8 kbit: one second of each two carries them.
    assert wire.down(10_000, 0) == pytest.approx(20, abs=1.01)
    assert wire.up(10_000, 0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text", ["0,1,2\n", "0,1\n1,2\n", "1,1,1\n0,1,1\n", "0,-1,1\n1,1,1\n", "0,0,1\n1,0,1\n", "a\n"]
)
def test_a_trace_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ShoalError, match="trace"):
        Wire(Link(trace=str(file)), rng())


def test_windows_of_the_day_go_past_midnight():
    presence = Presence(Availability(windows=((22 * 3600.0, 30 * 3600.0),)), MIDNIGHT, rng())
    hours = [hour for hour in range(24) if presence.there(MIDNIGHT + 3600 * hour)]
    assert hours == [0, 1, 2, 3, 4, 5, 22, 23]
    assert presence.next(MIDNIGHT + 7 * 3600) == MIDNIGHT + 22 * 3600
    assert presence.next(MIDNIGHT + 23 * 3600) == MIDNIGHT + 30 * 3600


def test_comings_and_goings_have_the_means_they_are_said_to():
    presence = Presence(Availability(on=30, away=10), 0, rng())
    there = [presence.there(at) for at in np.arange(0, 200_000, 1.0)]
    assert np.mean(there) == pytest.approx(0.75, abs=0.03)


def test_streams_of_chance_are_independent_of_each_other():
    draws = {generator(seed, purpose, number).random() for seed in (0, 1) for purpose in "ab" for number in (0, 1)}
    assert len(draws) == 8
