from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies import HeteroFL, HeteroFLDynamic
from protocol.subnetwork import WIDTHS

from .scene import PLAN, context, device, model


@pytest.mark.parametrize(("group", "width"), [("zero2", 0.25), ("pi3", 0.5), ("", 0.125), ("pi5", 0.125)])
def test_the_width_belongs_to_the_devices_group(group, width):
    heterofl = HeteroFL(widths={"zero2": 0.25, "pi3": 0.5}, width=0.125)
    state, plan, explanation = heterofl.shape(None, PLAN, device(group=group), model(0, 0, 0, 0), context())
    assert state is None
    assert plan.width == width
    assert explanation == {"group": group, "width": width}


def test_by_default_everyone_trains_the_whole_model():
    _, plan, _ = HeteroFL().shape(None, PLAN, device(group="pi3"), model(0, 0, 0, 0), context())
    assert plan.width == 1.0


def test_every_width_is_checked():
    with pytest.raises(ValueError, match=r"widths is 2\.0, expected a number from"):
        HeteroFL(widths={"zero2": 0.25, "pi3": 2.0})


def drawn(policy, seed):
    ctx = evolve(context(), rng=np.random.default_rng(seed))
    return policy.shape(None, PLAN, device(), model(0, 0, 0, 0), ctx)[1:]


def test_in_dynamic_mode_a_width_is_drawn_with_its_probability():
    policy = HeteroFLDynamic(widths=(1.0, 0.5, 0.25), probabilities=(1, 2, 1))
    found = [drawn(policy, seed) for seed in range(800)]
    assert {plan.width: explanation for plan, explanation in found} == {
        1.0: {"width": 1.0, "probability": 0.25},
        0.5: {"width": 0.5, "probability": 0.5},
        0.25: {"width": 0.25, "probability": 0.25},
    }
    assert np.mean([plan.width == 0.5 for plan, _ in found]) == pytest.approx(0.5, abs=0.05)
    assert drawn(policy, 7) == drawn(policy, 7)


def test_without_probabilities_all_widths_are_alike():
    found = [drawn(HeteroFLDynamic(), seed)[0].width for seed in range(500)]
    assert {width: found.count(width) / 500 for width in WIDTHS} == pytest.approx(dict.fromkeys(WIDTHS, 0.2), abs=0.06)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"widths": ()}, "at least one width"),
        ({"widths": (1.0, 2.0)}, "expected a number from"),
        ({"probabilities": (0.5, 0.5)}, "2 probabilities for 5 widths"),
        ({"widths": (1.0, 0.5), "probabilities": (0.0, 0.0)}, "not all of them 0"),
        ({"widths": (1.0, 0.5), "probabilities": (1.0, -1.0)}, "numbers from 0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        HeteroFLDynamic(**options)
