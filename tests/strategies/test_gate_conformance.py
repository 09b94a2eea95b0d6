"""What every gate keeps to, whatever it looks at; new entries of the registry are included."""

from __future__ import annotations

import json

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.strategies import GATES
from coordinator.strategies.base import Contribution, Left, Model
from coordinator.training.state import freeze, thaw
from protocol.messages import Plan
from protocol.subnetwork import CLASSES, Axis, Region, Subnetwork, nested, shrunk

from .scene import COSTS, context, device

LAYOUT = {
    "hidden.weight": (Axis(6), Axis(16, "hidden")),
    "hidden.bias": (Axis(16, "hidden"),),
    "out.weight": (Axis(16, "hidden"), Axis(5, CLASSES)),
    "out.bias": (Axis(5, CLASSES),),
}
DEVICES = 8
WIDTHS = (1.0, 0.5, 0.25)

gates = pytest.mark.parametrize("gate", [cls() for cls in GATES.values()], ids=list(GATES))
seeds = st.integers(0, 1 << 32)
QUICK = settings(max_examples=12, deadline=None, derandomize=True)


def weights(rng, layout=LAYOUT):
    return {n: rng.normal(size=shape).astype(np.float32) for n, shape in Region(layout).shapes.items()}


def model(rng, layout=LAYOUT):
    return Model(weights(rng, layout), layout, COSTS)


def honest(rng, count, layout=LAYOUT, agreement=0.7):
    """Updates of devices that go one way, each with a mind of its own: lengths within a factor of three, any width,
    staleness and number of steps."""
    way = weights(rng, layout)
    minds = [weights(rng, layout) for _ in range(DEVICES)]
    for number in range(count):
        who, width = int(rng.integers(DEVICES)), float(rng.choice(WIDTHS))
        region = Region(layout, nested(layout, width))
        noise = weights(rng, layout)
        length, steps = rng.uniform(0.5, 1.5), int(rng.integers(8, 16))
        difference = {
            n: (length * (agreement * way[n] + 0.3 * minds[who][n] + 0.3 * noise[n])).astype(np.float32) for n in way
        }
        yield Contribution(
            device=device(f"device-{who}"), key=f"a{number}/1", difference=region.cut(difference), region=region,
            base=None, base_version=0, staleness=int(rng.integers(5)), samples=160, steps=steps,
            loss=float(rng.uniform(0.1, 3)),
            plan=Plan(width=width, batch=16, steps=16, learning_rate=0.1, coding="int8"),
        )  # fmt: skip


def at(number):
    """A moment: every device speaks some times a minute."""
    return context(now=1e9 + 10.0 * number)


@gates
@QUICK
@given(seed=seeds, agreement=st.sampled_from([0.0, 0.1, 0.3, 0.7]))
def test_honest_devices_are_never_quarantined(gate, seed, agreement):
    """Whether they agree or not; and behind the warm-up hardly anything they send is turned away."""
    rng = np.random.default_rng(seed)
    now, refused = model(rng), []
    state = gate.init(now)
    for number, one in enumerate(honest(rng, 80, agreement=agreement)):
        state, verdict = gate.judge(state, one, now, at(number))
        assert not verdict.quarantine, verdict.refusal
        refused.append(bool(verdict.refusal))
    assert sum(refused[20:]) <= 1


@gates
@QUICK
@given(seed=seeds)
def test_a_gate_changes_nothing_but_its_state(gate, seed):
    rng = np.random.default_rng(seed)
    now, state = model(rng), gate.init(model(rng))
    for number, one in enumerate(honest(rng, 30)):
        before = [v.tobytes() for v in (*one.difference.values(), *now.weights.values())]
        state, _ = gate.judge(state, one, now, at(number))
        assert [v.tobytes() for v in (*one.difference.values(), *now.weights.values())] == before


@gates
@QUICK
@given(seed=seeds, pause=st.integers(0, 30))
def test_a_gates_state_survives_storage_and_judges_the_same(gate, seed, pause):
    rng = np.random.default_rng(seed)
    now, stored = model(rng), None
    state = gate.init(now)
    for number, one in enumerate(honest(rng, 40)):
        if number % 3 == 0:  # somebody whose differences are refused
            one = evolve(one, difference={n: -50 * v for n, v in one.difference.items()}, device=device("bad"))
        if number == pause:
            frozen = freeze(state)
            stored = thaw(type(state), frozen)
            assert freeze(stored) == frozen
        state, verdict = gate.judge(state, one, now, at(number))
        if stored is not None:
            stored, again = gate.judge(stored, one, now, at(number))
            assert again == verdict
    assert freeze(state) == freeze(stored)


@gates
@QUICK
@given(seed=seeds)
def test_scores_are_json_and_a_refusal_is_a_sentence_with_numbers(gate, seed):
    rng = np.random.default_rng(seed)
    now, state = model(rng), gate.init(model(rng))
    for one in honest(rng, 40):
        if one.device.id == "device-0":
            one = evolve(one, difference={n: 1e4 * v for n, v in one.difference.items()})
        state, verdict = gate.judge(state, one, now, at(0))
        assert json.loads(json.dumps(verdict.scores, allow_nan=False)) == verdict.scores
        assert not verdict.refusal or any(c.isdigit() for c in verdict.refusal)
        assert verdict.refusal or not verdict.quarantine


@gates
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e6])
def test_the_smallest_and_largest_admitted_differences_do_no_harm(gate, size):
    rng = np.random.default_rng(1)
    now, state = model(rng), gate.init(model(rng))
    for number, one in enumerate(honest(rng, 40)):
        one = evolve(one, difference={n: np.full_like(v, size) for n, v in one.difference.items()})
        with np.errstate(all="raise", under="ignore"):
            state, verdict = gate.judge(state, one, now, at(number))
        assert all(np.isfinite(v) for v in verdict.scores.values() if isinstance(v, float))


@gates
def test_the_model_may_be_cut_down_in_between(gate):
    rng = np.random.default_rng(2)
    now = model(rng)
    state = gate.init(now)
    for number, one in enumerate(honest(rng, 20)):
        state, _ = gate.judge(state, one, now, at(number))
    kept = Region(LAYOUT, Subnetwork({"hidden": (0, 3, 4, 9, 11, 15)}))
    state, layout = gate.reshape(state, kept), shrunk(LAYOUT, kept.subnetwork)
    for number, one in enumerate(honest(rng, 20, layout), 20):
        state, verdict = gate.judge(state, one, model(rng, layout), at(number))
        assert not verdict.quarantine
    assert freeze(state) == freeze(thaw(type(state), freeze(state)))


@gates
def test_a_gate_forgets_devices_that_left(gate):
    rng = np.random.default_rng(3)
    now = model(rng)
    state = gate.init(now)
    for one in honest(rng, 60):
        state, _ = gate.judge(state, one, now, at(0))
    assert b"device-" in freeze(state)
    for number in range(DEVICES):
        state, effects = gate.on(state, Left(f"device-{number}"), at(0))
        assert effects == []
    assert b"device-" not in freeze(state)


@gates
def test_its_state_is_bounded(gate):
    """No more than a model and some bytes a device, however long it runs."""
    rng = np.random.default_rng(4)
    now = model(rng)
    state, sizes = gate.init(now), []
    for number, one in enumerate(honest(rng, 300)):
        state, _ = gate.judge(state, one, now, at(number))
        sizes.append(len(freeze(state)) if number % 100 == 99 else 0)
    model_size = 4 * sum(v.size for v in now.weights.values())
    assert max(sizes) < model_size + 1000 + 200 * DEVICES
