"""The joint fit of two commit rates: known curves, with and without noise, and what it makes of nonsense."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies.adsp_fit import LEAST_SAMPLES, WIDEST, _slopes, ratio
from coordinator.training.computations import COMPUTATIONS


def trial(speed, *, noise=0.0, seed=0, off=0.5, a=0.003, c=0.3, period=60.0):
    """Samples of four segments, four in each, of a loss that falls ``speed`` times as fast at the second rate."""
    rng = np.random.default_rng(seed)
    spent = np.cumsum([(period / 4, 0) if beat // 4 % 2 == 0 else (0, period / 4) for beat in range(16)], axis=0)
    x, y = spent[:, 0], spent[:, 1]
    loss = 1 / (off + a * (x + speed * y)) + c + noise * rng.normal(size=16)
    return {"x": tuple(x), "y": tuple(y), "loss": tuple(loss)}


def accepted(speed, seeds):
    found = [ratio(trial(speed, noise=0.005, seed=seed)) for seed in range(seeds)]
    return np.mean([fit["ratio"] > 1.05 and fit["ratio"] - fit["error"] > 1 for fit in found])


@pytest.mark.parametrize("speed", [0.5, 0.8, 0.95, 1.0, 1.25, 2.0])
@pytest.mark.parametrize("c", [0.0, 0.3])
def test_a_known_curve_is_recovered(speed, c):
    fit = ratio(trial(speed, c=c))
    assert fit["ratio"] == pytest.approx(speed, rel=1e-3)
    assert fit["error"] < 1e-2
    assert fit["linear"] == 0


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(scale):
    given = trial(1.25)
    stretched = {"x": tuple(scale * x for x in given["x"]), "y": tuple(scale * y for y in given["y"])}
    for loss in (1, scale):
        fit = ratio({**stretched, "loss": tuple(loss * value for value in given["loss"])})
        assert fit["ratio"] == pytest.approx(1.25, rel=1e-3)


def test_a_faster_rate_is_taken_and_a_slower_one_is_not_in_spite_of_noise():
    assert accepted(0.8, 20) == 0
    assert accepted(1.0, 40) < 0.3
    assert accepted(1.25, 20) == 1


def test_the_error_grows_with_the_noise():
    quiet, loud = (np.median([ratio(trial(1.0, noise=n, seed=s))["error"] for s in range(10)]) for n in (0.001, 0.01))
    assert loud > 5 * quiet


def test_a_loss_that_is_down_tells_nothing():
    """Then no difference is a clear one."""
    flat = {**trial(1.0), "loss": tuple(1 + 0.001 * np.random.default_rng(1).normal(size=16))}
    fit = ratio(flat)
    assert abs(fit["ratio"] - 1) <= fit["error"]


@pytest.mark.parametrize("speed", [0.001, 100.0])
def test_a_difference_beyond_belief_tells_nothing(speed):
    assert ratio(trial(speed))["error"] == WIDEST


def test_a_rising_loss_is_answered_with_finite_numbers():
    given = trial(1.0)
    fit = ratio({**given, "loss": given["loss"][::-1]})
    assert all(np.isfinite(value) for value in fit.values())
    assert fit["ratio"] - fit["error"] <= 1


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_straight_slopes_are_compared_where_there_is_no_curve(speed):
    given = trial(1.0)
    x, y = np.array(given["x"]), np.array(given["y"])
    found, error = _slopes(x, y, 5 - 0.01 * (x + speed * y))
    assert found == pytest.approx(speed)
    assert error < 1e-6
    assert _slopes(x, y, 5 + 0.01 * (x + y)) == (1.0, WIDEST)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": (1.0, 2.0), "y": (1.0, 2.0), "loss": (2.0, 1.0)},
        {"loss": (1.0,) * (LEAST_SAMPLES - 1)},
        {"loss": (1.0,) * 16},
        {"y": (0.0,) * 16},
        {"loss": (float("nan"),) * 16},
    ],
)
def test_samples_that_say_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="a fit needs"):
        ratio({**trial(1.0), **wrong})


def test_it_is_the_computation_that_adsp_asks_for():
    assert COMPUTATIONS["adsp.fit"] is ratio
