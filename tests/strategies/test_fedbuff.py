"""FedBuff: w ← w + η · Σ s(τ)Δ / count, per coordinate over the updates that cover it, with s(τ) = (1 + τ)^−a."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies import FedBuff
from coordinator.strategies.base import Contributor, Expired

from .scene import context, contribution, device, model

MODEL = model(0, 0, 0, 0)


def absorbed(fedbuff, *contributions):
    """The state and what each contribution led to."""
    state, steps = fedbuff.init(MODEL), []
    for number, one in enumerate(contributions):
        state, step = fedbuff.absorb(state, MODEL, one, context(number))
        steps.append(step)
    return state, steps


def test_a_coordinate_is_averaged_over_the_updates_that_cover_it():
    # sums 1 + 3, 2 + 5, 3, 4; counts 2, 2, 1, 1
    _, (first, step) = absorbed(FedBuff(goal=2), contribution(1, 2, 3, 4), contribution(3, 5, width=0.5))
    assert first is None
    assert step.difference["w"].tolist() == [2, 3.5, 3, 4]
    assert step.coverage["w"].tolist() == [2, 2, 1, 1]


def test_a_coordinate_nobody_covers_stays():
    _, (step,) = absorbed(FedBuff(goal=1), contribution(7, width=0.25))
    assert step.difference["w"].tolist() == [7, 0, 0, 0]
    assert step.coverage["w"].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("exponent", "staleness", "weight"),
    [(0.5, 0, 1.0), (0.5, 3, 0.5), (0.5, 8, 1 / 3), (1.0, 3, 0.25), (2.0, 1, 0.25), (0.0, 50, 1.0)],
)
def test_staleness_weight(exponent, staleness, weight):
    _, (step,) = absorbed(FedBuff(goal=1, exponent=exponent), contribution(6, 6, 6, 6, staleness=staleness))
    assert step.contributors == (Contributor("a/1", pytest.approx(weight)),)
    assert step.difference["w"] == pytest.approx([6 * weight] * 4)


def test_the_divisor_is_the_count_so_a_stale_buffer_takes_a_smaller_step():
    # two updates of 4 at staleness 3: (½·4 + ½·4) / 2 = 2, and not 4
    stale = contribution(4, 4, 4, 4, staleness=3)
    _, (_, step) = absorbed(FedBuff(goal=2), stale, stale)
    assert step.difference["w"].tolist() == [2, 2, 2, 2]


def test_fresh_and_stale_together():
    # (1·1 + ½·4) / 2 where both cover, 1·3 / 1 where the fresh one is alone
    fresh, stale = contribution(1, 2, 3, 4, key="f/1"), contribution(4, 8, width=0.5, staleness=3, key="s/1")
    _, (_, step) = absorbed(FedBuff(goal=2), fresh, stale)
    assert step.difference["w"].tolist() == [1.5, 3, 3, 4]
    assert step.contributors == (Contributor("f/1", 1.0), Contributor("s/1", 0.5))


def test_the_server_rate_scales_the_step():
    _, (step,) = absorbed(FedBuff(goal=1, server_rate=0.25), contribution(4, 8, 12, 16))
    assert step.difference["w"].tolist() == [1, 2, 3, 4]


def test_the_buffer_is_empty_after_a_step_and_the_step_keeps_its_arrays():
    state, (_, step, again) = absorbed(
        FedBuff(goal=2), contribution(2, 2, 2, 2), contribution(4, 4, 4, 4), contribution(9, 9, 9, 9)
    )
    assert step.difference["w"].tolist() == [3, 3, 3, 3]
    assert again is None
    assert (state.total["w"].tolist(), state.count["w"].tolist()) == ([9] * 4, [1] * 4)
    assert [c.key for c in state.contributors] == ["a/1"]


def test_the_contribution_itself_is_left_alone():
    given = contribution(1, 2, 3, 4)
    absorbed(FedBuff(goal=2, server_rate=2), given, given)
    assert given.difference["w"].tolist() == [1, 2, 3, 4]


def test_events_mean_nothing_to_it():
    fedbuff = FedBuff()
    state = fedbuff.init(MODEL)
    assert fedbuff.on(state, Expired(device()), context()) is state
    assert not np.any(state.total["w"])


@pytest.mark.parametrize(("field", "value"), [("goal", 0), ("server_rate", 101.0), ("exponent", -1.0)])
def test_hyper_parameters_have_ranges(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}, expected a number from"):
        FedBuff(**{field: value})
