"""AdaComm: how many local steps there are between two barriers."""

from __future__ import annotations

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
    assert AdaComm(tau=40).next(tau, loss, 2.3) == then


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
