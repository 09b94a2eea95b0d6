"""Devices that learn wrong labels: softmax regression on two classes, with labels in order and reversed."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies import LabelFlip
from coordinator.strategies.base import Contribution, Model
from protocol.messages import Plan
from protocol.subnetwork import CLASSES, Axis, Region

from .scene import COSTS, context, device

LAYOUT = {"out.weight": (Axis(6), Axis(2, CLASSES)), "out.bias": (Axis(2, CLASSES),)}
WHOLE = Region(LAYOUT)
PLAN = Plan(width=1.0, batch=16, steps=5, learning_rate=0.1, coding="float32")


def weights():
    return {name: np.zeros(shape, np.float32) for name, shape in WHOLE.shapes.items()}


MODEL = Model(weights(), LAYOUT, COSTS)


def trained(rng, name, labels=(0, 1), sign=1.0):
    """One step from the model of zeros; ``labels`` say what each class is called, the loss is that after the step."""
    y = rng.integers(0, 2, 64)
    x = 0.5 * rng.normal(size=(64, 6)) + np.eye(6)[y]
    called = np.asarray(labels)[y]
    slope = (np.full((64, 2), 1 / 2) - np.eye(2)[called]) / 64
    difference = {"out.weight": -x.T @ slope, "out.bias": -slope.sum(0)}
    # what a device says it is: near the fleet's for right labels, high for wrong ones, since the model knows better
    loss = 0.2 + 2.0 * float(np.mean(called != y)) + 0.1 * rng.uniform()
    return Contribution(
        device=device(name), key=f"{name}/1", difference={n: np.float32(sign * v) for n, v in difference.items()},
        region=WHOLE, base=None, base_version=0, staleness=0, samples=64, steps=1, loss=loss, plan=PLAN,
    )  # fmt: skip


def flags(gate, rounds=8, **bad):
    """What a fleet of seven right devices and one named bad is flagged with, by device, and the last verdict."""
    rng, state = np.random.default_rng(5), gate.init(MODEL)
    found = {}
    for _ in range(rounds):
        for number in range(7):
            state, verdict = gate.judge(state, trained(rng, f"d{number}"), MODEL, context())
            assert verdict.refusal == ""
            found |= {f"d{number}": verdict.scores["flag"]} if verdict.scores.get("flag") else {}
        state, verdict = gate.judge(state, trained(rng, "bad", **bad), MODEL, context())
        found |= {"bad": verdict.scores["flag"]} if verdict.scores.get("flag") else {}
    return found, verdict


def test_reversed_labels_are_reported_with_numbers_and_not_refused():
    found, verdict = flags(LabelFlip(), labels=(1, 0))
    assert set(found) == {"bad"}
    assert found["bad"].startswith("it seems to learn wrong labels: cosine -")
    assert found["bad"].endswith("most against it go the classes 0 and 1")
    assert (verdict.refusal, verdict.quarantine) == ("", False)


def test_right_labels_are_not_reported():
    assert flags(LabelFlip())[0] == {}


def test_a_wrong_sign_with_an_honest_loss_is_no_label_flip():
    rng = np.random.default_rng(5)
    gate = LabelFlip()
    state = gate.init(MODEL)
    for _ in range(8):
        for number in range(7):
            state, _ = gate.judge(state, trained(rng, f"d{number}"), MODEL, context())
        flipped = evolve(trained(rng, "bad", sign=-1.0), loss=0.15)
        state, verdict = gate.judge(state, flipped, MODEL, context())
    assert verdict.scores["agreement"] < -0.5
    assert verdict.scores["flag"] == ""


@pytest.mark.parametrize(("action", "quarantine"), [("refuse", False), ("quarantine", True)])
def test_what_happens_to_a_flagged_device_is_an_option(action, quarantine):
    _, verdict = flags(LabelFlip(action=action), labels=(1, 0))
    assert verdict.refusal == verdict.scores["flag"]
    assert verdict.quarantine == quarantine


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action is 'shout', expected one of report, refuse, quarantine"):
        LabelFlip(action="shout")


def test_nothing_is_said_of_a_model_without_classes():
    layout = {"w": (Axis(4, "hidden"),)}
    now = Model({"w": np.zeros(4, np.float32)}, layout, COSTS)
    gate = LabelFlip(warm_up=0)
    given = Contribution(
        device=device(), key="a/1", difference={"w": np.ones(4, np.float32)}, region=Region(layout), base=None,
        base_version=0, staleness=0, samples=1, steps=1, loss=1.0, plan=PLAN,
    )  # fmt: skip
    _, verdict = gate.judge(gate.init(now), given, now, context())
    assert verdict.scores == {}
