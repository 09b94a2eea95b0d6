"""Stale synchronous parallel: who may start, by the numbers of updates of those at work."""

from __future__ import annotations

import pytest

from coordinator.strategies import Ssp
from coordinator.strategies.base import Expired, Left, Refused, Retry

from .scene import PLAN, context, device, model, report

MODEL = model(0, 0, 0, 0)


class Play:
    """A policy and its state; devices ``ask`` for work, and what they got ends with an event."""

    def __init__(self, **options) -> None:
        self.ssp = Ssp(**options)
        self.state = self.ssp.init(MODEL)
        self.said = None

    def asks(self, name, now=0.0) -> bool:
        self.state, answer, self.said = self.ssp.shape(self.state, PLAN, device(name), MODEL, context(now=now))
        if answer is not PLAN:
            assert answer == Retry(
                self.ssp.pause, f"{self.said['ahead']} updates ahead of the slowest, at most {self.ssp.bound}"
            )
        return answer is PLAN

    def hears(self, event, now=0.0):
        self.state, effects = self.ssp.on(self.state, event, context(now=now))
        assert effects == []

    def delivers(self, name, now=0.0):
        self.hears(report(device(name)), now)

    def trains(self, name, now=0.0) -> bool:
        """Ask and deliver at once, if it may."""
        if may := self.asks(name, now):
            self.delivers(name, now)
        return may


def schedule(play, seconds, until):
    """When each of some devices starts, if it takes so many whole seconds and asks every second otherwise."""
    free, starts = dict.fromkeys(seconds, 0), {name: [] for name in seconds}
    for now in range(until):
        for name in seconds:
            if starts[name] and free[name] == now:
                play.delivers(name, now)
        for name in seconds:
            if free[name] <= now and play.asks(name, now):
                starts[name].append(now)
                free[name] = now + seconds[name]
    return starts


def test_with_bound_zero_three_devices_of_different_speed_go_in_lockstep():
    starts = schedule(Play(bound=0), {"quick": 1, "middling": 2, "slow": 5}, until=16)
    assert starts == {name: [0, 5, 10, 15] for name in ("quick", "middling", "slow")}


def test_with_a_bound_the_quick_run_ahead_by_it_and_one_more():
    # At 3 the quick one has made 3 updates and the slow one none: 3 > 2. Every fifth second it may make one more.
    starts = schedule(Play(bound=2), {"quick": 1, "slow": 5}, until=16)
    assert starts == {"quick": [0, 1, 2, 5, 10, 15], "slow": [0, 5, 10, 15]}


def test_with_a_large_bound_nobody_waits():
    starts = schedule(Play(bound=100), {"quick": 1, "slow": 5}, until=10)
    assert starts == {"quick": list(range(10)), "slow": [0, 5]}


@pytest.mark.parametrize(("bound", "waiting"), [(0, "rounds"), (1, "bound")])
def test_bound_zero_makes_rounds(bound, waiting):
    assert Ssp(bound=bound).waiting == waiting


def test_it_says_how_far_ahead_a_device_is():
    play = Play(bound=1)
    assert play.asks("slow")
    assert [play.trains("quick") for _ in range(3)] == [True, True, False]
    assert play.said == {"ahead": 2, "bound": 1}


def test_a_newcomer_starts_at_the_least_and_holds_nobody_back():
    play = Play(bound=0)
    for _ in range(7):
        assert play.trains("a")
        assert play.trains("b")
    assert play.trains("c")  # it begins at 7
    assert play.asks("a")
    assert not play.asks("c")


def test_an_update_that_was_refused_counts():
    """One that sends nothing but nonsense must not hold up the rest."""
    play = Play(bound=0)
    for _ in range(3):
        assert play.asks("broken")
        assert play.trains("sound")
        play.hears(Refused(device("broken"), 0))


@pytest.mark.parametrize("event", [Expired(device("slow"), 0), Left("slow")])
def test_who_is_known_to_be_gone_holds_nobody_back(event):
    play = Play(bound=0)
    assert play.asks("slow")
    assert play.trains("quick")
    assert not play.asks("quick")
    play.hears(event)
    assert play.asks("quick")


def test_patience_with_a_silent_device_has_an_end():
    play = Play(bound=0, patience=100)
    assert play.asks("silent", now=0)
    assert play.trains("quick", now=50)
    assert not play.asks("quick", now=100)
    assert play.asks("quick", now=101)


def test_one_that_comes_back_starts_at_the_least():
    """Otherwise the whole fleet would wait until it has caught up."""
    play = Play(bound=0, patience=100)
    assert play.trains("a", now=0)
    for now in range(0, 1000, 50):
        assert play.trains("b", now=now) == (now == 0 or now > 100)
    assert play.trains("a", now=1000)
    assert play.asks("b", now=1000)


def test_who_waits_is_not_gone():
    """Waiting longer than others' patience does not make a newcomer of a device, which might start at once."""
    play = Play(bound=0, patience=100)
    assert play.asks("slow", now=0)
    assert play.trains("quick", now=0)
    for now in range(50, 300, 50):
        assert play.asks("slow", now=now)  # it loses its work, and begins anew
        assert not play.asks("quick", now=now)
    play.delivers("slow", now=310)
    assert play.asks("quick", now=310)


def test_a_fleet_that_slept_goes_on():
    """When everybody was silent for long, e.g. while the run was paused, nobody is ahead of anybody."""
    play = Play(bound=0, patience=100)
    for _ in range(5):
        assert play.trains("a", now=0)
        assert play.trains("b", now=0)
    assert play.trains("a", now=0)
    assert play.trains("a", now=1000)
    assert play.trains("b", now=1000)
    assert play.trains("a", now=1000)
