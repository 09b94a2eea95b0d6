"""FedASMU, Equations 1 to 3: w ← (1 − α)w + αw_i, α = μξ/(1 + μξ), ξ = λ/(√t · τ^σ) + ι, τ = staleness + 1."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies import FedASMU
from coordinator.strategies.base import Contributor, Expired, Left
from coordinator.strategies.fedasmu import Controls, Fleet, Mixed
from coordinator.strategies.sketch import Bands
from protocol.subnetwork import WIDTHS, Region, nested

from .scene import LAYOUT, context, contribution, device, model, vector

BARE = FedASMU(lambda_=1, iota=0, mu=1)


def alpha(fedasmu, t, staleness):
    return fedasmu.alpha(Controls(fedasmu.lambda_, fedasmu.sigma, fedasmu.iota), t, staleness + 1)


def after(count, state=None):
    """The state after so many updates of every band."""
    return evolve(state or Fleet(), absorbed=dict.fromkeys(range(len(WIDTHS)), count))


@pytest.mark.parametrize(
    ("t", "expected"),
    # ξ = 1/√t: 1/(1+1), 1/(√10+1), 1/(10+1), 1/(√1000+1), 1/(100+1)
    [(1, 0.5), (10, 0.2403), (100, 0.0909), (1000, 0.0307), (10_000, 0.0099)],
)
def test_a_fresh_update_weighs_less_as_time_passes(t, expected):
    assert alpha(BARE, t, staleness=0) == pytest.approx(expected, abs=5e-5)


def test_sigma_does_not_matter_for_a_fresh_update():
    assert alpha(FedASMU(sigma=3, iota=0), 7, 0) == alpha(FedASMU(sigma=0, iota=0), 7, 0)


@pytest.mark.parametrize(
    ("fedasmu", "t", "staleness", "expected"),
    [
        (FedASMU(sigma=0.5, iota=0), 100, 19, 0.0219),  # ξ = 1/(10·√20) = .02236
        (FedASMU(sigma=1, iota=0), 4, 4, 1 / 11),  # ξ = 1/(2·5) = .1
        (FedASMU(sigma=1, iota=0, xi_root="joint"), 4, 3, 1 / 5),  # ξ = 1/√(4·4) = ¼
        (FedASMU(lambda_=3, sigma=2, iota=0), 1, 2, 0.25),  # ξ = 3/9
        (FedASMU(mu=2, iota=0), 1, 0, 2 / 3),  # μξ = 2
        (FedASMU(iota=0.1), 10**12, 0, 0.0909),  # only the floor is left: .1/1.1
        (FedASMU(lambda_=0, iota=0), 1, 0, 0.0),
    ],
)
def test_alpha_by_hand(fedasmu, t, staleness, expected):
    assert alpha(fedasmu, t, staleness) == pytest.approx(expected, abs=5e-5)


def test_the_model_moves_towards_the_devices_weights_where_it_has_some():
    # t = 1, τ = 1: α = ½. The device ended at 1 + 3 = 4 and 1 + 7 = 8; ½·(4 − 2) = 1, ½·(8 − 0) = 4
    given = contribution(3, 7, width=0.5, base=vector(1, 1, 1, 1))
    _, step = BARE.absorb(Fleet(), model(2, 0, 5, 6), given, context(absorbed=0))
    assert step.difference["w"].tolist() == [1, 4, 0, 0]
    assert step.coverage["w"].tolist() == [1, 1, 0, 0]
    assert step.contributors == (Contributor("a/1", 0.5),)


def test_time_counts_absorbed_updates_and_not_versions():
    given = contribution(11, 11, 11, 11, base=vector(0, 0, 0, 0))
    # the 100th update, whatever the version is: α = 1/11
    _, step = BARE.absorb(after(99), model(0, 0, 0, 0), given, context(absorbed=99, version=3))
    assert step.difference["w"] == pytest.approx([1, 1, 1, 1])


def test_time_counts_for_each_coverage_band():
    """Channels that only the wide devices train have seen fewer updates, and move further."""
    narrow = contribution(0, width=0.25, base=vector(0, 0, 0, 0))
    state, now = Fleet(), model(0, 0, 0, 0)
    for _ in range(8):
        state, _ = BARE.absorb(state, now, narrow, context())
    wide = contribution(8, 8, 8, 8, base=vector(0, 0, 0, 0))
    state, step = BARE.absorb(state, now, wide, context(absorbed=8))
    # the first channel is in the width 1/16 and sees its ninth update: α = 1/(3 + 1); the others their first: ½
    assert step.difference["w"].tolist() == [2, 4, 4, 4]
    assert step.contributors[0].weight == pytest.approx((0.25 + 3 * 0.5) / 4)


def test_progress_the_model_has_made_meanwhile_is_taken_back_in_part():
    # An update without any difference pulls towards its old base: that is what mixing weights means.
    given = contribution(0, 0, 0, 0, base=vector(0, 0, 0, 0))
    _, step = BARE.absorb(Fleet(), model(2, 2, 2, 2), given, context())
    assert step.difference["w"].tolist() == [-1, -1, -1, -1]


def test_it_needs_bases_and_says_so():
    assert FedASMU.needs_base
    with pytest.raises(ValueError, match="needs the base"):
        BARE.absorb(Fleet(), model(0, 0, 0, 0), contribution(1, 1, 1, 1), context())


# -- controls, Equation 3 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("xi_root", ["separate", "joint"])
@pytest.mark.parametrize("mu", [1.0, 2.5])
@pytest.mark.parametrize(("t", "age"), [(1, 1), (7, 3), (40, 12)])
def test_gradients_agree_with_numerical_differentiation(xi_root, mu, t, age):
    """Of F(w_{t−1} + α(λ, σ, ι)·v) for a loss whose gradient there is −d, so that only the chain rule is judged."""
    rng = np.random.default_rng(t)
    d, v = rng.normal(size=50), rng.normal(size=50) + 0.3
    fedasmu, controls = FedASMU(mu=mu, xi_root=xi_root), Controls(1.3, 0.7, 0.2)

    def loss(**changes):
        return float(-d @ v * fedasmu.alpha(evolve(controls, **changes), t, age))

    last = Mixed({}, {0: t}, age, 0)
    found = fedasmu.gradients(controls, last, {0: float(d @ v)})
    for name, slope in zip(("lambda_", "sigma", "iota"), found, strict=True):
        value, h = getattr(controls, name), 1e-6
        numerical = (loss(**{name: value + h}) - loss(**{name: value - h})) / (2 * h)
        assert slope == pytest.approx(numerical, rel=1e-6, abs=1e-12)


def test_the_next_trainings_difference_stands_for_the_gradient():
    """On a quadratic loss, F = ½|w − w*|²: L small steps of gradient descent from w make d ≈ −ηL·∇F(w)."""
    rng = np.random.default_rng(3)
    best, before = rng.normal(size=20), rng.normal(size=20)
    v = best - before + rng.normal(size=20)
    fedasmu, controls, rate, steps = FedASMU(), Controls(1.0, 0.5, 0.1), 1e-4, 5

    def mixed(iota):
        return before + fedasmu.alpha(evolve(controls, iota=iota), 4, 2) * v

    w = mixed(controls.iota)
    for _ in range(steps):
        w = w - rate * (w - best)
    d = w - mixed(controls.iota)
    slope = fedasmu.gradients(controls, Mixed({}, {0: 4}, 2, 0), {0: float(d @ v) / (rate * steps)})[2]
    f = [0.5 * np.sum((mixed(iota) - best) ** 2) for iota in (0.1 - 1e-6, 0.1 + 1e-6)]
    assert slope == pytest.approx((f[1] - f[0]) / 2e-6, rel=1e-2)


def test_gradients_by_hand():
    # μ = 1, λ = 2, σ = 1, ι = 0, t = 4, τ = 2: √t·τ^σ = 4, ξ = ½, 1/(1 + ξ)² = 4/9; ⟨d, v⟩ = .9 in all
    controls, last = Controls(2.0, 1.0, 0.0), Mixed({}, {0: 4, 1: 4}, 2, 0)
    found = FedASMU(mu=1).gradients(controls, last, {0: 0.6, 1: 0.3})
    assert found == pytest.approx((-0.1, 0.2 * np.log(2), -0.4))


def test_a_device_that_goes_on_as_it_was_mixed_in_gains_weight_and_one_that_turns_back_loses_it():
    now, base = model(0, 0, 0, 0), vector(0, 0, 0, 0)
    first = contribution(1, 2, 3, 4, staleness=1, base=base)
    start, _ = FedASMU().absorb(Fleet(), now, first, context())
    found = {}
    for sign in (1, -1):
        again = contribution(sign, 2 * sign, 3 * sign, 4 * sign, base=base, key="a/2")
        state, _ = FedASMU().absorb(evolve(start), now, again, context(absorbed=1, version=1))
        found[sign] = state.controls["pi"]
    assert found[1].lambda_ > 1.0 > found[-1].lambda_
    assert found[1].iota > 0.1 > found[-1].iota
    assert found[1].sigma < 0.5 < found[-1].sigma
    # cos = 1, t = 1, τ = 2: √t·τ^σ = √2, ξ = 1/√2 + .1; dλ = 1/(√2(1 + ξ)²), dι = .01/(1 + ξ)²
    share = 1 / (1.1 + 0.5**0.5) ** 2
    assert found[1].lambda_ == pytest.approx(1 + share * 0.5**0.5, rel=1e-5)
    assert found[1].iota == pytest.approx(0.1 + 0.01 * share, rel=1e-5)


def test_controls_stay_within_their_bounds():
    fedasmu = FedASMU(rate_lambda=1000, rate_sigma=1000, rate_iota=1000)
    now, base = model(0, 0, 0, 0), vector(0, 0, 0, 0)
    for signs, bounds in (((1, 1, 1, 1), (100.0, 0.0, 1.0)), ((1, -1, 1, -1), (0.0, 3.0, 0.0))):
        state = Fleet()
        for number, sign in enumerate(signs):
            given = contribution(sign, sign, sign, sign, staleness=3, base=base, key=f"a/{number}")
            state, step = fedasmu.absorb(state, now, given, context())
            assert 0 <= step.contributors[0].weight < 1
        controls = state.controls["pi"]
        assert (controls.lambda_, controls.sigma, controls.iota) == bounds


@pytest.mark.parametrize(("gate", "version", "moved"), [("relaxed", 5, True), ("exact", 5, False), ("exact", 1, True)])
def test_the_exact_gate_wants_training_from_the_version_the_last_update_made(gate, version, moved):
    fedasmu = FedASMU(control_gate=gate)
    given = contribution(1, 2, 3, 4, base=vector(0, 0, 0, 0))
    state, _ = fedasmu.absorb(Fleet(), model(0, 0, 0, 0), given, context(version=0))
    given = evolve(given, base_version=version)
    state, _ = fedasmu.absorb(state, model(0, 0, 0, 0), given, context(version=6))
    assert (state.controls["pi"].lambda_ != 1.0) == moved


def test_without_control_nothing_is_kept_but_the_constants():
    fedasmu = FedASMU(control=False)
    state, given = Fleet(), contribution(1, 2, 3, 4, base=vector(0, 0, 0, 0))
    for _ in range(3):
        state, _ = fedasmu.absorb(state, model(0, 0, 0, 0), given, context())
    assert state.controls == {"pi": Controls(1.0, 0.5, 0.1)}


def test_a_device_that_left_is_forgotten():
    state = Fleet(controls={"pi": Controls(2.0, 1.0, 0.0), "other": Controls(1.0, 1.0, 0.0)})
    assert list(BARE.on(state, Left("pi"), context())[0].controls) == ["other"]
    assert BARE.on(state, Expired(device(), 0), context()) == (state, [])


def test_of_another_shape_sketches_are_forgotten_and_controls_kept():
    sketch = Bands.of(Region(LAYOUT)).sketch(vector(1, 1, 1, 1))
    state = Fleet({"pi": Controls(2.0, 1.0, 0.0, Mixed(sketch, {0: 1}, 1, 1))}, {0: 5})
    kept = BARE.reshape(state, Region(LAYOUT, nested(LAYOUT, 0.5)))
    assert kept == Fleet({"pi": Controls(2.0, 1.0, 0.0)}, {0: 5})
