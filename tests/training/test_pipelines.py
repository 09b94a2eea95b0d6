"""Whole recipes learn: least squares on a fleet of six devices of three speeds and groups, in virtual time.

Every device has its own sixteen samples y = X·w* + noise with orthogonal columns, so that the best subnetwork of any
width is a part of w*, and trains by gradient descent on the coordinates that its width keeps.
"""

from __future__ import annotations

import heapq
from itertools import pairwise, product

import numpy as np
import pytest

from coordinator.strategies import AGGREGATORS, POLICIES, TRANSFORMS
from coordinator.strategies.base import Cost
from coordinator.training.engine import Engine, Setting
from coordinator.training.inputs import Offered, Settled, Versioned
from coordinator.training.recipe import BasePlan, Recipe
from protocol.messages import Timings
from protocol.subnetwork import WIDTHS, Axis, Region, nested

from .scene import check_in, delivered

FEATURES, SAMPLES, NOISE = 16, 16, 0.1
LAYOUT = {"w": (Axis(FEATURES, "features"),)}
COSTS = {w: Cost(Region(LAYOUT, nested(LAYOUT, w)).parameters, round(6 * FEATURES * w)) for w in WIDTHS}
GROUPS = {"zero-1": "zero2", "zero-2": "zero2", "three-1": "pi3", "three-2": "pi3", "five-1": "pi5", "five-2": "pi5"}
SECONDS = {"zero2": 0.09, "pi3": 0.03, "pi5": 0.01}  # per sample and FLOP

TUNED = {
    "fedbuff": {"goal": 4},
    "heterofl": {"widths": {"zero2": 0.25, "pi3": 0.5}},
    "whale_fl": {"delay": 1, "half_window": 1},
    "clip": {"norm": 1.0},
}

# The loss begins near 16 and cannot fall below the noise, 0.01. Full-batch gradients vanish, and with them WHALE-FL's
# utility: towards the end all devices train the smallest width, and the last coordinates stay where they are.
LIMIT = {"whale_fl": 0.5}


def tuned(cls):
    return cls(**TUNED.get(cls.kind, {}))


class Fleet:
    """The devices' data, and the loss over all of it: mean (Xw − y)²."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.truth = rng.choice([-1.0, 1.0], FEATURES)
        self.data = {}
        for name in GROUPS:
            X = np.linalg.qr(rng.normal(size=(SAMPLES, FEATURES)))[0] * SAMPLES**0.5
            self.data[name] = X, X @ self.truth + NOISE * rng.normal(size=SAMPLES)

    def loss(self, w) -> float:
        return float(np.mean([np.mean((X @ w - y) ** 2) for X, y in self.data.values()]))

    def train(self, name, w, plan):
        """Difference over the first coordinates, and the largest squared gradient."""
        X, y = self.data[name]
        X, start, peak = X[:, : len(w)], w.copy(), 0.0
        for _ in range(plan.steps):
            gradient = X.T @ (X @ w - y) / SAMPLES
            peak = max(peak, float(gradient @ gradient))
            w = w - plan.learning_rate * gradient
        return (w - start).astype(np.float32), peak


def run(recipe: Recipe, updates: int):
    """Play so many updates: the engine, the fleet and every effect."""
    fleet, rng = Fleet(), np.random.default_rng(0)
    one = Engine(Setting("toy", recipe, LAYOUT, COSTS, 0, None), {"w": np.zeros(FEATURES, np.float32)})
    due = [(float(rng.uniform()), name, None) for name in GROUPS]
    effects = []
    for number in range(updates + len(GROUPS)):
        now, name, update = heapq.heappop(due)
        if update is not None:
            effects += one.handle(update, now)
        offer = one.handle(check_in(name, group=GROUPS[name], samples=SAMPLES, number=number), now)[-1]
        effects.append(offer)
        weights = one.region(offer.plan.width).cut(one.core.weights)["w"].astype(np.float64)
        difference, peak = fleet.train(name, weights, offer.plan)
        work = offer.plan.steps * offer.plan.batch * COSTS[offer.plan.width].flops
        seconds = work * SECONDS[GROUPS[name]] * rng.uniform(0.8, 1.2)
        update = delivered(
            offer, {"w": difference}, squared_gradient_peak={"w": peak},
            timings=Timings(download=0.1, train=seconds, upload=0.1),
        )  # fmt: skip
        heapq.heappush(due, (now + seconds, name, update))
    return one, fleet, effects


@pytest.mark.parametrize("transforms", [(), tuple(TRANSFORMS)], ids=["plain", "transformed"])
@pytest.mark.parametrize(("aggregator", "policy"), list(product(AGGREGATORS, POLICIES)))
def test_every_pipeline_converges(aggregator, policy, transforms):
    recipe = Recipe(
        name="toy",
        plan=BasePlan(batch=16, steps=5, learning_rate=0.1, coding="int8"),
        aggregator=tuned(AGGREGATORS[aggregator]),
        policies=(tuned(POLICIES[policy]),),
        transforms=tuple(tuned(TRANSFORMS[kind]) for kind in transforms),
    )
    one, fleet, effects = run(recipe, updates=300)
    assert fleet.loss(np.zeros(FEATURES)) > 15
    assert fleet.loss(one.core.weights["w"]) < LIMIT.get(policy, 0.02)
    assert one.core.absorbed == 300
    assert {e.outcome for e in effects if isinstance(e, Settled)} == {"stored"}
    assert all(np.isfinite(e.step_norm) for e in effects if isinstance(e, Versioned))


def test_whale_fl_ends_wide_where_the_devices_are_fast():
    recipe = Recipe(
        name="toy",
        plan=BasePlan(batch=16, steps=5, learning_rate=0.1),
        aggregator=tuned(AGGREGATORS["fedbuff"]),
        policies=(tuned(POLICIES["whale_fl"]),),
    )
    _, _, effects = run(recipe, updates=120)
    widths = {group: [e.plan.width for e in effects if isinstance(e, Offered) and GROUPS[e.device] == group]
              for group in SECONDS}  # fmt: skip
    assert {widths[group][0] for group in widths} == {0.0625}
    assert max(widths["pi5"]) > max(widths["zero2"])
    assert all(
        0.5 <= later / earlier <= 2
        for device in GROUPS
        for earlier, later in pairwise([e.plan.width for e in effects if isinstance(e, Offered) and e.device == device])
    )
