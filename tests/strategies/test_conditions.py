"""What updates tell of a device's speed; smoothing and jumps are followed through WHALE-FL in test_whale_fl."""

from __future__ import annotations

import pytest

from coordinator.strategies.conditions import Conditions, followed

from .scene import PLAN, model, report

MODEL = model(0, 0, 0, 0)


def test_a_width_that_was_not_measured_is_predicted_from_the_nearest():
    # .2 s per sample at ½ and .1 at ⅛; ¼ is as near to both, and the first counts: .2 / 4 = .05; 1/16 from ⅛: .1 / 4
    known = Conditions().after(report(width=0.5, seconds=8.0)).after(report(width=0.125, seconds=4.0))
    assert known.time(0.25, PLAN, MODEL) == pytest.approx(0.05 * 40)
    assert known.time(0.0625, PLAN, MODEL) == pytest.approx(0.025 * 40)
    assert known.time(0.125, PLAN, MODEL) == pytest.approx(4.0)


def test_nothing_measured_is_nothing_known():
    assert Conditions().after(report(seconds=0.0)).time(1.0, PLAN, MODEL) is None


@pytest.mark.parametrize(
    ("old", "new", "after"), [(None, 4, 4), (4, 6, 4.6), (4, 6.1, 6.1), (6, 4, 5.4), (6, 3.9, 3.9)]
)
def test_a_measurement_is_smoothed_unless_it_is_off_by_more_than_half(old, new, after):
    assert followed(old, new) == pytest.approx(after)


def test_the_ratio_of_an_absurd_change_stays_within_what_a_device_may_claim():
    known = Conditions()
    for seconds in (1e-300, 1e300, 1e-300):
        known = known.after(report(width=0.5, seconds=seconds)).after(report(seconds=1.0))
        assert all(1e-9 <= value <= 1e6 for value in known.seconds.values())
