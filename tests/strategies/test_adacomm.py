"""AdaComm: how many local steps there are between two barriers."""

from __future__ import annotations

import math

import pytest
from attrs import evolve

from coordinator.strategies import AdaComm
from coordinator.strategies.adacomm import Frequency
from coordinator.strategies.base import Evaluate, Evaluated, Tick, WakeAt
from coordinator.training.state import freeze, thaw

from .scene import PLAN, context, device, model, report

MODEL = model(0, 0, 0, 0)


class Play:
    def __init__(self, *, control=False, **options) -> None:
        self.policy = AdaComm(**{"tau": 40, "period": 60, **options})
        self.state, self.control = self.policy.init(MODEL), control

    def hears(self, event, now, version=0):
        ctx = evolve(context(now=now, version=version), control=self.control)
        self.state = thaw(Frequency, freeze(self.state))
        self.state, effects = self.policy.on(self.state, event, ctx)
        return effects

    def reports(self, loss, now, version=0):
        return self.hears(evolve(report(), loss=loss, version=version), now, version)

    @property
    def steps(self):
        _, plan, said = self.policy.shape(self.state, PLAN, device(), MODEL, context())
        assert said["steps"] == plan.steps
        return plan.steps


@pytest.mark.parametrize(
    ("tau", "loss", "then"),
    [
        (40, 2.3 / 2, 29),  # √½ · 40 = 28.3
        (29, 2.3 / 2, 29),  # 28.3 is less than 29
        (29, 2.3 / 4, 20),
        (20, 2.3 / 4, 10),  # 20 is no less than 20: half of it
        (5, 2.3 / 4, 3),
        (40, 2.3, 20),
        (40, 4.6, 20),  # the loss rose
        (40, 0.0, 1),
        (1, 2.3, 1),
    ],
)
def test_the_steps_follow_the_root_of_the_loss_and_halve_where_they_would_not_fall(tau, loss, then):
    assert AdaComm.next(tau, loss, 2.3, 40) == then


def test_fixed_steps_stay_whatever_happens():
    play = Play(adaptive=False, control=True)
    for now in range(0, 600, 30):
        assert play.reports(2.0 / (1 + now), now) == []
        assert play.hears(Tick(), now) == []
    assert play.steps == 40


def test_with_a_control_set_the_model_is_measured_at_the_start_and_every_period():
    play = Play(control=True)
    assert play.reports(9.0, 10.0) == [Evaluate(), WakeAt(70.0)]
    assert play.hears(Evaluated(0, 0.1, 2.3), 11.0) == []
    assert (play.state.first, play.steps) == (2.3, 40)
    assert play.reports(9.0, 50.0, version=3) == []
    assert play.hears(Tick(), 69.0, version=3) == [WakeAt(70.0)]
    assert play.hears(Tick(), 70.0, version=3) == [Evaluate(), WakeAt(130.0)]
    play.hears(Evaluated(2, 0.1, 0.1), 71.0)  # somebody else's
    assert play.steps == 40
    play.hears(Evaluated(3, 0.1, 1.15), 71.0)
    assert play.steps == 29


def test_without_one_the_updates_tell_the_loss():
    """L₀ is the mean over the updates of the first version, L that over all of a period."""
    play = Play()
    play.reports(2.0, 10.0, version=5)
    play.reports(4.0, 20.0, version=5)
    play.reports(1.0, 30.0, version=6)
    play.reports(2.0, 40.0, version=7)
    assert play.hears(Tick(), 70.0) == [WakeAt(130.0)]
    assert (play.state.first, play.state.loss) == (3.0, 2.25)
    assert play.steps == 35  # √¾ · 40 = 34.6
    play.reports(0.75, 100.0, version=9)
    play.hears(Tick(), 131.0)
    assert play.steps == 20


def test_a_fleet_that_fell_silent_is_not_waited_for():
    play = Play()
    play.reports(2.0, 10.0)
    play.hears(Tick(), 70.0)
    assert play.hears(Tick(), 130.0) == []
    assert play.hears(Tick(), 190.0) == []
    assert play.reports(2.0, 500.0) == [WakeAt(560.0)]


# -- the search for the first number of steps -------------------------------------------------------------------------


def searching(falls, **options):
    """Plays a search in which a period with τ steps divides the loss by ``falls[τ]``; the τ of each period."""
    play = Play(control=True, candidates=(5, 10, 40), **options)
    loss, now, taken = 64.0, 10.0, []
    play.reports(9.0, now)
    play.hears(Evaluated(0, 0.1, loss), now)
    for _ in range(6):
        taken.append(play.steps)
        loss, now = loss / falls[taken[-1]], now + 60
        play.reports(9.0, now - 1)
        play.hears(Tick(), now)
        play.hears(Evaluated(0, 0.1, loss), now)
    return play, taken, loss


def test_candidates_are_tried_forth_and_back_and_the_one_whose_loss_fell_most_is_taken():
    play, taken, loss = searching({5: 1.1, 10: 2.0, 40: 1.5})
    assert taken == [5, 10, 40, 40, 10, 5]
    assert (play.steps, play.state.start, play.state.first) == (10, 10, loss)
    assert play.state.gains["10"] == pytest.approx(2 * math.log(2))
    play.reports(9.0, 371.0)
    play.hears(Tick(), 430.0)
    play.hears(Evaluated(0, 0.1, loss / 4), 430.0)
    assert play.steps == 5  # √¼ · 10


def test_whoever_comes_later_is_judged_no_worse():
    """The loss falls ever more slowly, by whatever steps: each candidate earns the same, and the first is taken."""
    play, earned = Play(control=True, candidates=(5, 10, 40)), [6, 5, 4, 3, 2, 1]
    loss, now = 1e9, 10.0
    play.reports(9.0, now)
    play.hears(Evaluated(0, 0.1, loss), now)
    for logs in earned:
        loss, now = loss * math.exp(-logs), now + 60
        play.reports(9.0, now - 1)
        play.hears(Tick(), now)
        play.hears(Evaluated(0, 0.1, loss), now)
    assert play.state.gains == {steps: pytest.approx(7) for steps in ("5", "10", "40")}


def test_the_steps_that_were_found_may_stay():
    play, *_ = searching({5: 1.1, 10: 1.2, 40: 1.5}, adaptive=False)
    assert play.steps == 40
    assert play.reports(9.0, 400.0) == []
    assert play.hears(Tick(), 460.0) == []
    assert play.steps == 40


def test_the_search_works_without_a_control_set_and_says_where_it_is():
    play = Play(candidates=(5, 10))
    assert play.policy.shape(play.state, PLAN, device(), MODEL, context())[2]["trial"] == "1 of 4"
    for number, loss in enumerate((8.0, 2.0, 1.0, 0.9)):
        play.reports(loss, 60.0 * number + 1, version=number)
        play.hears(Tick(), 60.0 * number + 61)
    # the first period begins and ends with the same updates
    assert play.state.gains == {"5": pytest.approx(math.log(1 / 0.9)), "10": pytest.approx(math.log(8))}
    assert play.steps == 10
    assert "trial" not in play.policy.shape(play.state, PLAN, device(), MODEL, context())[2]


def test_a_search_waits_for_a_fleet_that_fell_silent():
    play = Play(candidates=(5, 10))
    play.reports(8.0, 1.0)
    play.hears(Tick(), 61.0)
    assert play.hears(Tick(), 121.0) == []
    assert (play.state.tried, play.steps) == (1, 10)


@pytest.mark.parametrize("candidates", [(5,), (5, 5), (0, 5), tuple(range(1, 18))])
def test_candidates_that_make_no_sense_are_refused(candidates):
    with pytest.raises(ValueError, match="candidates are"):
        AdaComm(candidates=candidates)
