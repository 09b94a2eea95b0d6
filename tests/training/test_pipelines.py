"""Whole recipes learn: least squares on a fleet of six devices of three speeds and groups, in virtual time.

Every device has its own sixteen samples y = X·w* + noise with orthogonal columns, so that the best subnetwork of any
width is a part of w*, and trains by gradient descent on the coordinates that its width keeps.
"""

from __future__ import annotations

import heapq
from itertools import pairwise, product

import numpy as np
import pytest

from coordinator.errors import ShoalError
from coordinator.strategies import AGGREGATORS, POLICIES, TRANSFORMS
from coordinator.strategies.base import Cost
from coordinator.training.engine import Engine, Setting
from coordinator.training.inputs import Deferred, Offered, Settled, Ticked, Versioned
from coordinator.training.recipe import BasePlan, Recipe, parse
from protocol.messages import Timings
from protocol.subnetwork import Axis, Region, nested

from .scene import check_in, delivered

FEATURES, SAMPLES, NOISE = 16, 16, 0.1
LAYOUT = {"w": (Axis(FEATURES, "features"),)}
GROUPS = {"zero-1": "zero2", "zero-2": "zero2", "three-1": "pi3", "three-2": "pi3", "five-1": "pi5", "five-2": "pi5"}
SECONDS = {"zero2": 0.09, "pi3": 0.03, "pi5": 0.01}  # per sample and FLOP

TUNED = {
    "fedavg": {"goal": 4},
    "fedbuff": {"goal": 4},
    "heterofl": {"widths": {"zero2": 0.25, "pi3": 0.5}},
    "whale_fl": {"delay": 1, "half_window": 1},
    "cohort": {"goal": 4, "over_selection": 0.25, "pause": 30.0},
    "ssp": {"bound": 2, "pause": 30.0},
    "clip": {"norm": 1.0},
}

# The loss begins near 16 and cannot fall below the noise, 0.01. Full-batch gradients vanish, and with them WHALE-FL's
# utility: towards the end all devices train the smallest width, and the last coordinates stay where they are.
LIMIT = {"whale_fl": 0.5}


UNFIT = {
    (aggregator, "cohort"): f"cohort lets devices wait for a round to end, but {aggregator} closes none: use fedavg"
    for aggregator in ("fedasync", "fedbuff", "fedasmu")
}


def tuned(cls, **options):
    return cls(**TUNED.get(cls.kind, {}) | options)


def recipe_of(aggregator, policy, transforms=()) -> Recipe:
    """The recipe of a pair: a synchronous aggregator gets the barrier that it needs, if the policy is none."""
    decides, shapes = AGGREGATORS[aggregator], tuned(POLICIES[policy])
    policies = (shapes,)
    if decides.synchronous:
        policies = (tuned(POLICIES["ssp"], bound=0),) if policy == "ssp" else policies
        policies = (tuned(POLICIES["cohort"]), shapes) if shapes.waiting == "none" else policies
    return Recipe(
        name="toy",
        plan=BasePlan(batch=16, steps=5, learning_rate=0.1, coding="int8"),
        aggregator=tuned(decides),
        policies=policies,
        transforms=tuple(tuned(TRANSFORMS[kind]) for kind in transforms),
    )


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


def cost(part) -> Cost:
    kept = Region(LAYOUT, part).parameters
    return Cost(kept, 6 * kept)


def run(recipe: Recipe, updates: int, patience: float = 1e6):
    """Play so many updates, or seconds: the engine, the fleet and every effect. Who is put off asks again."""
    fleet, rng = Fleet(), np.random.default_rng(0)
    one = Engine(Setting("toy", recipe, LAYOUT, cost, 0, None), {"w": np.zeros(FEATURES, np.float32)})
    due = [(float(rng.uniform()), name, None) for name in GROUPS]
    effects, now = [], 0.0
    while updates and now < patience:
        now, name, update = heapq.heappop(due)
        if one.deadline is not None and one.deadline <= now:
            effects += one.handle(Ticked(), now)
        if update is not None:
            effects += one.handle(update, now)
            updates -= 1
        offer = one.handle(check_in(name, group=GROUPS[name], samples=SAMPLES, number=len(effects)), now)[-1]
        effects.append(offer)
        if isinstance(offer, Deferred):
            heapq.heappush(due, (now + offer.seconds, name, None))
            continue
        weights = one.region(offer.plan).cut(one.core.weights)["w"].astype(np.float64)
        difference, peak = fleet.train(name, weights, offer.plan)
        work = offer.plan.steps * offer.plan.batch * cost(nested(LAYOUT, offer.plan.width)).flops
        seconds = work * SECONDS[GROUPS[name]] * rng.uniform(0.8, 1.2)
        update = delivered(
            offer, {"w": difference}, squared_gradient_peak={"w": peak},
            timings=Timings(download=0.1, train=seconds, upload=0.1),
        )  # fmt: skip
        heapq.heappush(due, (now + seconds, name, update))
    return one, fleet, effects


PAIRS = list(product(AGGREGATORS, POLICIES))


@pytest.mark.parametrize("transforms", [(), tuple(TRANSFORMS)], ids=["plain", "transformed"])
@pytest.mark.parametrize(("aggregator", "policy"), [pair for pair in PAIRS if pair not in UNFIT])
def test_every_pipeline_converges(aggregator, policy, transforms):
    recipe = recipe_of(aggregator, policy, transforms)
    assert parse(recipe.to_toml()) == recipe
    one, fleet, effects = run(recipe, updates=300)
    outcomes = [effect.outcome for effect in effects if isinstance(effect, Settled)]
    assert fleet.loss(np.zeros(FEATURES)) > 15
    assert fleet.loss(one.core.weights["w"]) < LIMIT.get(policy, 0.02)
    assert one.core.absorbed == outcomes.count("stored")
    # Of an asynchronous rule every update is used, of a round those that are in time.
    assert (set(outcomes), len(outcomes)) == ({"stored", "stale"} if recipe.aggregator.synchronous else {"stored"}, 300)
    assert all(np.isfinite(e.step_norm) for e in effects if isinstance(e, Versioned))


@pytest.mark.parametrize(("aggregator", "policy"), UNFIT)
def test_a_pair_that_cannot_work_is_refused_with_the_reason(aggregator, policy):
    with pytest.raises(ShoalError) as refused:
        parse(recipe_of(aggregator, policy).to_toml())
    assert refused.value.detail == UNFIT[aggregator, policy]


@pytest.mark.parametrize(("timeout", "ends"), [(0.0, False), (1000.0, True)])
def test_a_round_larger_than_the_fleet_ends_by_its_time_limit_only(timeout, ends):
    """No recipe can know how many devices there are."""
    large = Recipe(
        name="toy",
        plan=BasePlan(batch=16, steps=5, learning_rate=0.1),
        aggregator=tuned(AGGREGATORS["fedavg"], goal=7, timeout=timeout),
        policies=(tuned(POLICIES["cohort"], goal=7),),
    )
    one, _, effects = run(large, updates=30, patience=10_000)
    assert sum(isinstance(effect, Settled) for effect in effects) == (30 if ends else 6)
    assert (one.core.version > 0) == ends


def test_a_barrier_makes_the_fast_wait_for_the_slow():
    """In lockstep everybody trains as often as the slowest; without, as often as it can."""
    counts = {}
    for aggregator, policy in (("fedavg", "ssp"), ("fedbuff", "fixed")):
        _, _, effects = run(recipe_of(aggregator, policy), updates=120)
        by = [GROUPS[effect.device] for effect in effects if isinstance(effect, Settled)]
        counts[policy] = by.count("zero2"), by.count("pi5")
    assert abs(counts["ssp"][0] - counts["ssp"][1]) <= 2
    assert counts["fixed"][1] > 5 * counts["fixed"][0]


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
