"""The meta model's chances and gradients, and the table of a device."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.strategies.slots import ACTIONS, chances, gradient, learned, meta_model, reinforced


def meta(slots=6, hidden=4, seed=0):
    """A meta model all of whose weights are drawn, so that every gradient has something to say."""
    rng = np.random.default_rng(seed)
    shapes = {name: value.shape for name, value in meta_model(hidden, slots, rng).items()}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def test_chances_by_hand():
    """With no weights but the softmax's bias, every slot is asked in with probability ¼, the last by who is left."""
    weights = {name: np.zeros_like(value) for name, value in meta().items()}
    weights["out_bias"][:] = np.log([3, 1])
    assert chances(weights, 4) == pytest.approx([1 / 4, 3 / 16, 9 / 64, 27 / 64])


@pytest.mark.parametrize("slots", [2, 5, 10, 100])
def test_a_new_meta_model_knows_all_slots_and_prefers_none_by_far(slots):
    odds = chances(meta_model(8, slots, np.random.default_rng(1)), slots)
    assert odds.sum() == pytest.approx(1)
    assert odds.min() > 0
    assert odds @ np.arange(1, slots + 1) == pytest.approx(slots / 2, rel=0.6)


@pytest.mark.parametrize("slot", range(6))
def test_gradients_agree_with_numerical_differentiation(slot):
    weights = {name: value.astype(np.float64) for name, value in meta().items()}
    slopes = gradient(weights, 6, slot)
    for name, value in weights.items():
        for index in np.ndindex(value.shape):
            found = []
            for sign in (1, -1):
                moved = weights | {name: value.copy()}
                moved[name][index] += sign * 1e-6
                found.append(np.log(chances(moved, 6)[slot]))
            assert slopes[name][index] == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_what_was_worth_it_becomes_more_likely_and_what_was_not_less():
    weights = meta()
    for slot in range(6):
        assert chances(reinforced(weights, 6, slot, 0.1), 6)[slot] > chances(weights, 6)[slot]
        assert chances(reinforced(weights, 6, slot, -0.1), 6)[slot] < chances(weights, 6)[slot]


def test_the_meta_model_finds_the_best_slot():
    """REINFORCE with a baseline, slot 4 of 6 earns most, and its neighbours more than the others."""
    rng, rewards = np.random.default_rng(5), (0.0, 0.2, 0.6, 1.0, 0.6, 0.2)
    weights, baseline = meta_model(8, 6, rng), 0.0
    for _ in range(400):
        slot = int(rng.choice(6, p=chances(weights, 6)))
        reward = rewards[slot]
        weights = reinforced(weights, 6, slot, 0.3 * (reward - baseline))
        baseline += 0.1 * (reward - baseline)
    assert chances(weights, 6).argmax() == 3
    assert chances(weights, 6)[3] > 0.8


def test_a_table_learns_by_hand():
    # .5 + .1·(1 + .9·2 − .5) = .73
    table = np.zeros((4, 3), np.float32)
    table[1, 2], table[2, 0] = 0.5, 2.0
    after = learned(table, 1, 2, 2, 1.0, rate=0.1, discount=0.9)
    assert after[1, 2] == pytest.approx(0.73)
    assert np.count_nonzero(after != table) == 1
    assert table[1, 2] == 0.5


def test_among_equals_a_device_stays_where_it_is():
    assert ACTIONS[int(np.zeros(3).argmax())] == ("the same", 0)
