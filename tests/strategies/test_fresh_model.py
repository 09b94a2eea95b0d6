"""FedASMU's merge of a fresh model: β = μφ/(1 + μφ), φ = γ/√g·(1 − υ/√(g − o + 1)); when to ask, what is learned."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies import FreshModel
from coordinator.strategies.base import Context, Expired, FreshAsked, Left, SendFresh
from coordinator.strategies.fresh_model import Asker, Sent
from protocol.messages import Merge

from .scene import PLAN, context, device, model, report

MODEL = model(0, 0, 0, 0)
LONG = evolve(PLAN, steps=110)


def asker(gamma=1.0, upsilon=0.5):
    return Asker(gamma, upsilon, np.zeros((10, 3), np.float32))


def shaped(policy, state, name="pi", seed=0):
    ctx = Context(1000.0, np.random.default_rng(seed), 0, 0)
    state, plan, explanation = policy.shape(state, LONG, device(name), MODEL, ctx)
    return state, plan.refresh, explanation


def asked(policy, state, version, base=0, name="pi"):
    return policy.on(state, FreshAsked(device(name), LONG, 10, base), context(version=version))


def merged(policy, state, before, after, name="pi", version=None):
    sent = state.devices[name].sent
    merge = Merge(
        step=10, version=version or sent.version, merge=sent.merge, keep=0.0, loss_before=before, loss_after=after
    )
    return policy.on(state, evolve(report(device(name)), merges=(merge,)), context())[0]


# -- how much of the fresh model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "gamma", "upsilon", "g", "o", "beta"),
    [
        (FreshModel(), 1.0, 0.0, 4, 3, 1 / 3),  # φ = ½
        (FreshModel(), 1.0, 0.5, 4, 1, 3 / 11),  # φ = ½·(1 − ½/2) = 3/8
        (FreshModel(), 2.0, 1.0, 16, 13, 1 / 5),  # φ = 2/4·(1 − 1/2) = ¼
        (FreshModel(mu=3.0), 1.0, 0.0, 9, 1, 1 / 2),  # μφ = 3·⅓
    ],
)
def test_beta_by_hand(policy, gamma, upsilon, g, o, beta):
    assert policy.beta(asker(gamma, upsilon), g, o) == pytest.approx(beta)


def test_a_device_that_asks_is_sent_the_newest_model_with_its_beta():
    policy = FreshModel(upsilon=0.5)
    state, effects = asked(policy, policy.init(MODEL), version=4, base=1)
    assert effects == [SendFresh("pi", pytest.approx(3 / 11), 0.0)]
    assert state.devices["pi"].sent == Sent(4, 1, effects[0].merge)


def test_a_device_that_builds_on_the_newest_model_is_sent_nothing():
    policy = FreshModel()
    assert asked(policy, policy.init(MODEL), version=3, base=3) == (policy.init(MODEL), [])


# -- what merges teach about γ and υ -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "g", "o"), [(1.0, 4, 3), (2.5, 9, 2), (0.3, 100, 50)])
def test_gradients_agree_with_numerical_differentiation(mu, g, o):
    """Of F(w + β(w_g − w)) where ⟨∇F, w_g − w⟩ is G = −.7."""
    policy, one = FreshModel(mu=mu), asker(1.3, 0.4)
    for name, slope in zip(("gamma", "upsilon"), policy.gradients(one, Sent(g, o, 0.5), -0.7), strict=True):
        value, h = getattr(one, name), 1e-6
        ends = [-0.7 * policy.beta(evolve(one, **{name: value + step}), g, o) for step in (h, -h)]
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_gradients_by_hand():
    # φ = ½·(1 − ½/2) = 3/8, 1/(1 + φ)² = 64/121; G = 1: ∂γ = 64/121·(3/4)/2, ∂υ = −64/121·1/(2·2)
    assert FreshModel().gradients(asker(), Sent(4, 1, 0.5), 1.0) == pytest.approx((24 / 121, -16 / 121))


def test_a_merge_that_helped_makes_the_next_larger_and_one_that_hurt_smaller():
    policy, found = FreshModel(rate_gamma=0.1, rate_upsilon=0.1), {}
    for after in (0.4, 0.6):
        state, _, _ = shaped(policy, policy.init(MODEL))
        state, _ = asked(policy, state, version=4, base=1)
        found[after] = merged(policy, state, 0.5, after).devices["pi"]
    # G = ∓.1 / (3/11) = ∓11/30
    assert found[0.4].gamma == pytest.approx(1 + 0.1 * 11 / 30 * 24 / 121)
    assert found[0.6].gamma == pytest.approx(1 - 0.1 * 11 / 30 * 24 / 121)
    assert found[0.4].upsilon == pytest.approx(0.5 - 0.1 * 11 / 30 * 16 / 121)
    assert found[0.4].sent is None


@pytest.mark.parametrize(("before", "after"), [(None, None), (0.5, None)])
def test_a_merge_that_nothing_was_measured_of_teaches_nothing(before, after):
    policy = FreshModel()
    state, _, _ = shaped(policy, policy.init(MODEL))
    state, _ = asked(policy, state, version=4)
    assert merged(policy, state, before, after) is state


def test_only_the_merge_that_was_sent_teaches():
    policy = FreshModel()
    state, _, _ = shaped(policy, policy.init(MODEL))
    state, _ = asked(policy, state, version=4)
    assert merged(policy, state, 1.0, 0.0, version=3) is state
    once = merged(policy, state, 1.0, 0.0)
    again = evolve(report(), merges=(Merge(step=1, version=4, merge=0.2, keep=0.0, loss_before=1.0, loss_after=0.0),))
    assert policy.on(once, again, context())[0] is once


def test_a_merge_of_the_same_version_that_another_policy_wanted_teaches_nothing():
    policy = FreshModel()
    state, _, _ = shaped(policy, policy.init(MODEL))
    state, _ = asked(policy, state, version=4)
    pulled = Merge(step=1, version=4, merge=1.0, keep=1.0, loss_before=1.0, loss_after=0.0)
    assert policy.on(state, evolve(report(), merges=(pulled,)), context())[0] is state


def test_absurd_losses_move_no_further_than_the_bounds():
    policy = FreshModel(rate_gamma=1000, rate_upsilon=1000)
    for before, after, gamma, upsilon in ((1e30, -1e30, 100.0, 0.0), (-1e30, 1e30, 0.01, 1.0)):
        state, _, _ = shaped(policy, policy.init(MODEL))
        state, _ = asked(policy, state, version=4)
        found = merged(policy, state, before, after).devices["pi"]
        assert (found.gamma, found.upsilon) == (gamma, upsilon)
        assert policy.beta(found, 4, 3) > 0


def test_without_control_gamma_and_upsilon_stay():
    policy = FreshModel(control=False)
    state, _, _ = shaped(policy, policy.init(MODEL))
    state, _ = asked(policy, state, version=4)
    found = merged(policy, state, 1.0, 0.0).devices["pi"]
    assert (found.gamma, found.upsilon) == (1.0, 0.5)


# -- when to ask ---------------------------------------------------------------------------------------------------


def test_a_fixed_slot_is_the_middle():
    # slot 6 of 10, of 110 steps: step 60
    policy = FreshModel(slot="fixed")
    state, refresh, explanation = shaped(policy, policy.init(MODEL))
    assert (refresh, explanation) == (60, {"refresh": 60, "slot": 6, "slots": 10, "by": "fixed"})
    assert not state.meta


def test_slots_lie_evenly_inside_the_training():
    policy, found = FreshModel(), set()
    for seed in range(200):
        _, refresh, explanation = shaped(policy, policy.init(MODEL), seed=seed)
        assert refresh == 10 * explanation["slot"]
        found.add(explanation["slot"])
    assert found == set(range(1, 11))


def test_the_meta_model_chooses_first_and_the_table_afterwards():
    policy = FreshModel(epsilon=0.0)
    state, _, first = shaped(policy, policy.init(MODEL))
    assert first["by"] == "meta model"
    state, _, second = shaped(policy, state, seed=1)
    assert (second["by"], second["action"], second["slot"]) == ("table", "the same", first["slot"])
    _, _, other = shaped(policy, state, "other", seed=1)
    assert other["by"] == "meta model"


def test_the_meta_model_learns_from_first_trainings_only():
    policy = FreshModel(rate_meta=1.0, epsilon=0.0)
    state, _, _ = shaped(policy, policy.init(MODEL))
    before = state.meta
    state, _ = asked(policy, state, version=4)
    state = merged(policy, state, 1.0, 0.2)
    assert any((state.meta[name] != value).any() for name, value in before.items())
    assert state.baseline == pytest.approx(0.08)
    assert not state.devices["pi"].table.any()
    state, _, _ = shaped(policy, state, seed=1)
    taught, (state, _) = state.meta, asked(policy, state, version=5)
    state = merged(policy, state, 1.0, 0.2)
    assert state.meta is taught
    # staying in its slot earned .8: .1·.8
    assert state.devices["pi"].table.max() == pytest.approx(0.08)


def test_a_device_moves_to_where_asking_was_worth_most():
    """It pays to ask in slot 8 and in no other."""
    policy, rng = FreshModel(epsilon=0.3), np.random.default_rng(4)
    state, version, found = policy.init(MODEL), 1, []
    for _ in range(600):
        state, _, explanation = shaped(policy, state, seed=int(rng.integers(1 << 30)))
        version += 1
        state, _ = asked(policy, state, version, version - 1)
        state = merged(policy, state, 1.0, 0.5 if explanation["slot"] == 8 else 1.0)
        found.append(explanation["slot"])
    assert np.mean([7 <= slot <= 9 for slot in found[-100:]]) > 0.7


def test_a_device_that_left_is_forgotten():
    policy = FreshModel()
    state, _, _ = shaped(policy, policy.init(MODEL))
    assert policy.on(state, Expired(device(), 0), context()) == (state, [])
    assert policy.on(state, Left("pi"), context())[0].devices == {}
