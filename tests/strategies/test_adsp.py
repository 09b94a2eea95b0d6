"""ADSP: when devices commit, and the search for how often."""

from __future__ import annotations

import math

import pytest
from attrs import evolve

from coordinator.strategies import Adsp
from coordinator.strategies.adsp import FIT, Fleet, Pace
from coordinator.strategies.adsp_search import DOWN, REST, UP, Search, Trial
from coordinator.strategies.base import (
    Amend,
    Compute,
    Computed,
    Evaluate,
    Evaluated,
    Hold,
    Left,
    SendFresh,
    Tick,
    WakeAt,
)
from coordinator.training.state import freeze, thaw

from .scene import PLAN, context, device, model, report

MODEL = model(0, 0, 0, 0)


class Play:
    """A policy and its state. Γ is 60 seconds unless it is said otherwise; there is no search unless ``epoch`` is."""

    def __init__(self, *, control=False, **options) -> None:
        self.adsp = Adsp(**{"shortest": 0.1, "epoch": 0, **options})
        self.state = self.adsp.init(MODEL)
        self.control = control
        self.plans, self.said = {}, {}

    def context(self, now, version=0):
        return evolve(context(now=now, version=version), control=self.control)

    def joins(self, name, now=0.0):
        self.state, plan, said = self.adsp.shape(self.state, PLAN, device(name), MODEL, self.context(now))
        self.plans[name], self.said[name] = plan, said
        return plan

    def hears(self, event, now, version=0):
        self.state, effects = self.adsp.on(self.state, event, self.context(now, version))
        return effects

    def commits(self, name, now, *, trained=30.0, steps=60, commit=1, last=False, loss=1.0, timed=True):
        """It commits at ``now`` after so many seconds of training; what is wanted besides being woken."""
        plan = evolve(self.plans[name], **({} if timed else {"seconds": None, "commits": 1}))
        event = evolve(
            report(device(name), seconds=trained), plan=plan, steps=steps, commit=commit, last=last, loss=loss
        )
        return [effect for effect in self.hears(event, now) if not isinstance(effect, WakeAt)]

    def pace(self, name) -> Pace:
        return self.state.paces[name]


# -- when a device commits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("due", "overhead", "seconds"), [(1, 0, 60), (2, 3, 27), (4, 1, 14), (6, 2, 10), (12, 0, 10), (2.5, 0, 24)]
)
def test_the_interval_is_the_period_over_what_is_due_less_the_overhead(due, overhead, seconds):
    assert Adsp(period=60, shortest=10).interval(due, overhead) == seconds


def test_a_device_that_keeps_up_commits_c_times_a_period():
    play = Play(rate=2)
    assert play.joins("pi").seconds == 30
    for number in range(1, 5):
        play.commits("pi", 30.0 * number)
        assert (play.pace("pi").commits, play.pace("pi").due, play.pace("pi").seconds) == (number, 2, 30)


def test_who_has_fallen_behind_commits_more_often_and_who_is_ahead_less():
    play = Play(rate=2)
    play.joins("quick")
    play.joins("slow")
    for now in (30, 60):
        play.commits("quick", now)
    play.commits("slow", 60)  # one commit of two
    assert (play.pace("slow").due, play.pace("slow").seconds) == (3, 20)
    for now in (90, 120, 150, 180):
        play.commits("quick", now)
    play.commits("slow", 180)  # two of six: six would be due, but never more than 2C are
    assert (play.pace("slow").due, play.pace("slow").seconds) == (4, 15)
    for now in (181, 182, 183):
        play.commits("quick", now)  # 9 of 6.1: none would be due, but never less than one is
    assert play.pace("quick").due == 1


def test_the_target_grows_by_c_every_period_but_never_far_ahead_of_the_furthest():
    """A fleet that slept has nothing to catch up with."""
    play = Play(rate=2)
    play.joins("pi")
    play.commits("pi", 30)
    assert play.state.target == 1
    play.commits("pi", 45)
    assert play.state.target == 1.5
    play.commits("pi", 10_000)
    assert (play.state.target, play.pace("pi").due) == (3, 2)


def test_a_newcomer_starts_at_the_least():
    play = Play(rate=1)
    for name in ("a", "b"):
        play.joins(name)
    for now in range(10, 60, 10):
        play.commits("a", now)
    for now in range(20, 50, 10):
        play.commits("b", now)
    play.hears(Tick(), 70.0)
    play.joins("late", 71)
    assert (play.pace("a").commits, play.pace("b").commits, play.said["late"]["committed"]) == (5, 3, 3)


def test_who_was_silent_for_three_periods_is_gone_and_comes_back_as_a_newcomer():
    play = Play()
    for name in ("silent", "busy"):
        play.joins(name)
        play.commits(name, 1)
    for now in range(60, 301, 60):
        play.commits("busy", now)
        play.hears(Tick(), now + 2.0)
        assert ("silent" in play.state.paces) == (now < 180)
    play.joins("silent", 303)
    assert play.pace("silent").commits == play.pace("busy").commits == 6


def test_a_device_that_left_is_forgotten_at_once():
    play = Play()
    play.joins("pi")
    play.commits("pi", 1)
    play.hears(Left("pi"), 2.0)
    assert (play.state.paces, play.state.rates, play.state.burden) == ({}, {}, 0.0)


def test_the_overhead_is_what_a_commit_takes_from_training():
    play = Play(rate=2)
    play.joins("pi")
    play.commits("pi", 40, commit=1)  # the start of an assignment is no overhead
    assert play.pace("pi").overhead == 0
    play.commits("pi", 75, commit=2, trained=30)  # 35 seconds, of which 30 were spent training
    assert play.pace("pi").overhead == pytest.approx(0.3 * 5)
    play.commits("pi", 105, commit=3, trained=40)  # more than the clock says: none
    assert play.pace("pi").overhead == pytest.approx(0.7 * 1.5)
    assert play.joins("pi", 106).seconds == pytest.approx(60 / play.pace("pi").due - 1.05)


def test_the_first_commit_comes_after_the_plans_steps_and_then_time_counts():
    play = Play(rate=2)
    first = play.joins("pi")
    assert (first.steps, first.seconds, first.commits) == (PLAN.steps, 30, 20)
    amend, fresh = play.commits("pi", 5, trained=5.0, steps=10)
    assert fresh == SendFresh("pi", 1.0, 1.0)
    seconds = play.pace("pi").seconds  # it is ahead: 1/6 committed were enough, 1 is there
    assert seconds == pytest.approx(60 / (1 / 6 + 2 - 1))
    assert amend == Amend("pi", {"seconds": seconds, "steps": round(4 * 2 * seconds)})


def test_a_plan_is_amended_when_it_changes_enough_only():
    play = Play(rate=2)
    play.joins("pi")
    play.commits("pi", 30)
    assert play.commits("pi", 60, commit=2) == [SendFresh("pi", 1.0, 1.0)]
    assert play.commits("pi", 92, commit=3) == [SendFresh("pi", 1.0, 1.0)]  # it would be 29 seconds instead of 30
    assert play.pace("pi").seconds == 30
    amend, _ = play.commits("pi", 97, commit=4)
    assert isinstance(amend, Amend)


def test_after_the_last_commit_nothing_is_sent():
    play = Play(rate=2)
    play.joins("pi")
    assert play.commits("pi", 10, last=True) == []


def test_without_pull_no_fresh_model_is_sent():
    play = Play(rate=2, pull=False)
    play.joins("pi")
    play.commits("pi", 30)
    assert play.commits("pi", 60, commit=2) == []


def test_an_agent_that_cannot_commit_by_time_gets_the_steps_that_fit():
    play = Play(rate=2)
    play.joins("old")
    play.commits("old", 30, trained=20.0, steps=10, timed=False, last=True)  # half a step per second
    plan = play.joins("old", 31)
    assert (plan.steps, plan.commits) == (round(0.5 * plan.seconds), 1)


def test_an_assignment_lasts_some_periods():
    assert Play(rate=3, periods=4).joins("pi").commits == 12


@pytest.mark.parametrize(
    ("due", "momentum"), [(1, 0.459), (2, 0.298), (3, 0.221), (4, 0.175), (5, 0.145), (6, 0.124), (10, 0.078)]
)
def test_the_implicit_momentum_is_the_authors_table(due, momentum):
    """18 devices at 20 steps per period, scripts/motivation/vary_mu.py."""
    fleet = Fleet(Search(1, math.inf))
    for number in range(18):
        fleet.put(f"pi-{number}", Pace(0, 0.0, due, due, 60 / due, 1, speed=20 / 60), 60.0)
    assert fleet.momentum() == pytest.approx(momentum, abs=0.0006)


def test_one_device_alone_has_no_implicit_momentum():
    play = Play()
    play.joins("pi")
    play.commits("pi", 30)
    assert play.joins("pi", 31)
    assert play.said["pi"]["implicit_momentum"] == 0


def test_a_device_costs_little_memory():
    play = Play()
    for number in range(1000):
        play.joins(f"pi-{number}")
        play.commits(f"pi-{number}", 30 + number / 1000)
    assert len(freeze(play.state)) < 1000 * 1024


def test_a_rate_above_the_top_is_refused():
    with pytest.raises(ValueError, match="rate is 20, more than top, 16"):
        Adsp(rate=20)


# -- the search ------------------------------------------------------------------------------------------------------


def test_a_trial_alternates_in_segments_of_a_period_and_two_intervals_at_least():
    search = Search(2, 0.0, way=UP).trying(100.0, 60.0)
    assert [search.rate(now) for now in (100, 159, 160, 219, 220, 280, 339, 340)] == [2, 2, 3, 3, 2, 3, 3, 2]
    assert Search(1, 0.0, way=UP).trying(100.0, 60.0).trial.segment == 120
    assert Search(5, 0.0, way=DOWN).trying(100.0, 60.0).trial.low == 4


def test_what_is_spent_at_a_rate_is_the_share_of_the_fleet_over_time():
    trial = Trial(2, 100.0, 60.0, 100.0).until(120.0, 0.0).until(150.0, 0.5).until(160.0, 1.0)
    assert trial.spent == (35.0, 25.0)
    assert trial.until(1000.0, 0.0).spent == (35.0 + 180.0, 25.0)  # it ends at 340


def test_beats_do_not_drift():
    trial = Trial(2, 100.0, 60.0, 100.0)
    assert [trial.next(now) for now in (100.0, 114.9, 115.0, 115.3, 131.0)] == [115, 115, 130, 130, 145]


@pytest.mark.parametrize(
    ("settled", "way", "climbed", "better", "then"),
    [
        (1, UP, False, True, (2, UP, True)),
        (3, UP, True, True, (4, REST, True)),  # 4 is the top
        (1, UP, False, False, (1, REST, False)),  # there is nothing below
        (2, UP, False, False, (2, DOWN, False)),
        (3, UP, True, False, (3, REST, True)),  # it came from below
        (3, DOWN, False, True, (2, DOWN, False)),
        (2, DOWN, False, True, (1, REST, False)),
        (3, DOWN, False, False, (3, REST, False)),
    ],
)
def test_the_search_climbs_and_steps_back(settled, way, climbed, better, then):
    search = Search(settled, 0.0, way=way, climbed=climbed).decided(better, 4)
    assert (search.settled, search.way, search.climbed) == then


def test_a_search_that_begins_at_the_top_goes_down():
    assert [Search(rate, 0.0).start(4).way for rate in (1, 3, 4)] == [UP, UP, DOWN]
    assert Search(1, 0.0).start(1).way == REST


class Searching(Play):
    """A policy whose only device commits every 15 seconds; measured losses come a second after they were asked for."""

    def __init__(self, **options) -> None:
        super().__init__(**{"control": True, "rate": 2, "epoch": 1000, "warm_up": 1, **options})
        self.now, self.wanted, self.measured = 0.0, [], 0
        self.joins("pi")

    def goes_on(self, until, loss=lambda now: 1.0):
        """Until then, with everything that is wanted on the way, and when."""
        begin = len(self.wanted)
        while self.now < until:
            self.now += 1
            effects = self.commits("pi", self.now) if self.now % 15 == 0 else []
            if self.state.wake is not None and self.now >= self.state.wake:
                effects += self.hears(Tick(), self.now, version=int(self.now))
            self.wanted += [(self.now, e) for e in effects if not isinstance(e, Amend | SendFresh | WakeAt)]
            if self.wanted and self.wanted[-1] == (self.now - 1, Evaluate()):
                self.hears(Evaluated(int(self.now - 1), 0.5, loss(self.now - 1)), self.now)
        return self.wanted[begin:]

    def answers(self, **result):
        return self.hears(Computed("adsp", FIT, result), self.now)


def test_a_trial_measures_outside_the_first_quarters_and_has_all_of_it_fitted():
    play = Searching()
    wanted = play.goes_on(400, loss=lambda now: 1000 - now)
    # The first update comes at 15; a period later the search begins, and its trial lasts four periods.
    assert wanted[0] == (75, Hold(("width",)))
    assert [at for at, effect in wanted if effect == Evaluate()] == [75 + 15 * beat for beat in range(1, 17)]
    ((at, fit),) = [(at, effect) for at, effect in wanted if isinstance(effect, Compute)]
    assert (at, fit.computation) == (330, FIT)
    # The device takes up a segment's rate at its commits, here when the segment begins.
    assert fit.arguments["x"] == (15, 30, 45, 60, 60, 60, 60, 60, 75, 90, 105, 120, 120, 120, 120, 120)
    assert fit.arguments["y"] == (0, 0, 0, 0, 15, 30, 45, 60, 60, 60, 60, 60, 75, 90, 105, 120)
    assert fit.arguments["loss"] == tuple(1000 - 75 - 15 * beat for beat in range(1, 17))
    assert play.said["pi"].get("trial") is None
    play.joins("pi", 401)
    assert play.said["pi"]["rate"] == 2  # while the fit is waited for, what was settled counts


def test_a_rate_that_wins_is_taken_and_the_next_one_is_tried():
    play = Searching()
    play.goes_on(340)
    assert play.answers(ratio=1.2, error=0.1)[0] == Hold(())
    assert play.state.search.settled == 3
    assert (400, Hold(("width",))) in play.goes_on(420)
    assert play.state.search.trial.low == 3
    play.joins("pi", 421)
    assert play.said["pi"]["trial"] == "3 against 4 commits per period, segment 1"


@pytest.mark.parametrize(
    "result",
    [{"ratio": 1.04, "error": 0.01}, {"ratio": 1.2, "error": 0.25}, {"failed": 1.0}, {"ratio": 0.5, "error": 0.1}],
)
def test_a_rate_that_does_not_win_clearly_is_not_taken_and_one_less_is_tried(result):
    play = Searching()
    play.goes_on(340)
    play.answers(**result)
    assert (play.state.search.settled, play.state.search.way) == (2, DOWN)
    play.goes_on(420)
    assert play.state.search.trial.low == 1


@pytest.mark.parametrize(("ratio", "error", "settled"), [(0.8, 0.1, 1), (0.97, 0.01, 2), (0.8, 0.3, 2), (1.5, 0.1, 2)])
def test_one_less_is_taken_where_one_more_than_it_is_clearly_worse(ratio, error, settled):
    play = Searching()
    play.goes_on(340)
    play.answers(failed=1.0)
    play.goes_on(1000)
    play.answers(ratio=ratio, error=error)
    assert (play.state.search.settled, play.state.search.way) == (settled, REST)


def test_another_search_begins_an_epoch_after_the_last():
    play = Searching(rate=1, epoch=500)
    wanted = play.goes_on(700)
    assert [at for at, effect in wanted if effect == Hold(("width",))] == [75]
    play.answers(failed=1.0)
    wanted = play.goes_on(1400)
    assert [at for at, effect in wanted if effect == Hold(("width",))] == [1240]  # the first beat after 1200


@pytest.mark.parametrize(("rise", "again"), [(1.29, False), (1.31, True)])
def test_a_search_begins_when_the_loss_has_risen_by_a_third(rise, again):
    play = Searching(rate=1, warm_up=100)
    wanted = play.goes_on(500, loss=lambda now: 1.0 if now < 250 else rise)
    assert bool([at for at, effect in wanted if isinstance(effect, Hold)]) == again


def test_without_a_control_set_the_devices_losses_count_the_newer_the_more():
    play = Play(epoch=1000)
    for name in ("a", "b"):
        play.joins(name)
    play.commits("a", 0, loss=4.0)
    play.commits("b", 60, loss=1.0)
    assert play.state.loss(60.0, 60.0) == pytest.approx((0.5 * 4 + 1) / 1.5)
    searching = Searching(control=False)
    fit = next(effect for _, effect in searching.goes_on(400) if isinstance(effect, Compute))
    assert fit.arguments["loss"] == (1.0,) * 16


def test_a_fleet_that_fell_silent_ends_the_trial_and_is_not_waited_for():
    play = Searching()
    play.goes_on(90)
    effects = []
    for now in range(100, 600, 15):
        effects += play.hears(Tick(), float(now))
    assert effects[-1] == Hold(())
    assert (play.state.wake, play.state.search.trial) == (None, None)
    play.joins("pi", 700)
    play.hears(evolve(report(device("pi")), plan=play.plans["pi"]), 710.0)
    assert play.state.wake == 770


def test_epoch_zero_keeps_the_rate_and_measures_nothing():
    play = Searching(epoch=0)
    assert play.goes_on(500) == []


def test_somebody_elses_answers_are_not_heeded():
    play = Searching()
    play.goes_on(340)
    play.hears(Computed("other", FIT, {"ratio": 2.0, "error": 0.0}), 341.0)
    play.hears(Computed("adsp", "evaluate", {"failed": 1.0}), 341.0)
    assert play.state.search.trial.fitting
    play.answers(ratio=2.0, error=0.0)
    play.answers(ratio=2.0, error=0.0)
    assert play.state.search.settled == 3


def test_a_search_survives_storage():
    play, again = Searching(), Searching()
    for searching in (play, again):
        searching.goes_on(200)
    again.state = thaw(Fleet, freeze(again.state))
    assert play.goes_on(400) == again.goes_on(400)
    assert freeze(play.state) == freeze(again.state)
