"""The same inputs give the same run, bit for bit: live, replayed, and restored from a snapshot in the middle."""

from __future__ import annotations

import json

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.training.core import base_of
from coordinator.training.engine import Engine
from coordinator.training.inputs import (
    Asked,
    Closed,
    Departed,
    Evaluated,
    Offered,
    Operated,
    Refreshed,
    Rejected,
    Settled,
    Ticked,
    Versioned,
)
from protocol.messages import FEATURES, Ask, Lineage, Merge
from protocol.weights import digest

from .scene import (
    BSP,
    DRAWN,
    FEDASMU,
    FEDAVG,
    FEDBUFF,
    FRESH,
    GUARDED,
    KRUM,
    MIXED,
    NOW,
    SSP,
    WHALE,
    check_in,
    engine,
    trained,
)

RECIPES = {
    "fedbuff": FEDBUFF, "fedasmu": FEDASMU, "mixed": MIXED, "whale": WHALE,
    "fedavg": FEDAVG, "bsp": BSP, "ssp": SSP, "fresh": FRESH, "drawn": DRAWN, "guarded": GUARDED, "krum": KRUM,
}
recipes = pytest.mark.parametrize("recipe", list(RECIPES.values()), ids=list(RECIPES))
QUICK = settings(max_examples=30, deadline=None, derandomize=True)

ACTS = (
    *("check-in", "check-in", "check-in", "deliver", "deliver", "deliver", "ask"),
    *("forge", "reject", "wait", "depart", "operate", "evaluate"),
)
acts = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 3), st.integers(0, 1 << 16)), min_size=5, max_size=40)


def live(recipe, acts):
    """Play the acts against an engine: the inputs that came of them, with their times, and the effects of each."""
    one, now, inputs, effects = engine(recipe), NOW, [], []
    held: dict[str, Offered] = {}
    sent: dict[str, Refreshed] = {}
    for number, (act, who, seed) in enumerate(acts):
        device, offered = f"d{who}", held.get(f"d{who}")
        now += 1
        match act:
            case "check-in":
                keeps = offered.assignment if offered and seed % 3 == 0 else None
                unsent = (offered.assignment,) if offered and seed % 3 == 1 else ()
                group = ("a", "b", "c", "")[who]
                said = {"features": FEATURES, "held": keeps, "unsent": unsent, "samples": who + 1}
                given = check_in(device, group=group, number=number, **said)
            case "deliver" if offered:
                given = trained(offered, np.random.default_rng(seed), lineage=lineage(offered, sent.pop(device, None)))
            case "ask" if offered:
                ask = Ask(assignment=offered.assignment, commit=1, step=seed % 5, version=offered.version)
                given = Asked(device, ask)
            case "forge" if offered:
                given = trained(offered, device=device if seed % 2 else "eve", steps=seed % 9)
            case "reject" if offered:
                given = Rejected(device, trained(offered).update, "too large")
            case "depart" if seed % 4 == 0:
                given = Departed(device)
            case "operate":
                given = Operated(("pause", "resume", "resume")[seed % 3], "ada")
            case "evaluate":
                given = Evaluated(one.core.version, (seed % 100) / 100, 1.0)
            case _:
                now += seed % 40
                given = Ticked()
        inputs.append((given, now))
        effects.append(one.handle(given, now))
        held |= {e.device: e for e in effects[-1] if isinstance(e, Offered)}
        sent |= {e.device: e for e in effects[-1] if isinstance(e, Refreshed)}
    return one, inputs, effects


def lineage(offered: Offered, fresh: Refreshed | None) -> Lineage:
    """With the merge of a fresh model, if one was sent for this assignment."""
    merges = ()
    if fresh is not None and fresh.assignment == offered.assignment:
        how = {"merge": fresh.merge, "keep": fresh.keep, "loss_before": 0.75, "loss_after": 0.5}
        merges = (Merge(step=3, version=fresh.version, **how),)
    return Lineage(version=offered.version, shape_epoch=0, merges=merges)


def replayed(one: Engine, inputs):
    return [one.handle(given, now) for given, now in inputs]


@recipes
@QUICK
@given(acts=acts)
def test_the_same_inputs_give_the_same_run(recipe, acts):
    first, inputs, effects = live(recipe, acts)
    second = engine(recipe)
    assert replayed(second, inputs) == effects
    assert second.snapshot() == first.snapshot()


@recipes
@QUICK
@given(acts=acts, cut=st.floats(0, 1))
def test_a_run_restored_in_the_middle_goes_on_as_if_nothing_had_happened(recipe, acts, cut):
    uninterrupted, inputs, effects = live(recipe, acts)
    at = int(cut * len(inputs))
    before = engine(recipe)
    replayed(before, inputs[:at])
    stored = before.snapshot()
    after = engine(recipe)
    after.restore(stored)
    assert after.snapshot() == stored
    assert replayed(after, inputs[at:]) == effects[at:]
    assert digest(after.core.weights) == digest(uninterrupted.core.weights)
    assert after.snapshot() == uninterrupted.snapshot()


@recipes
@QUICK
@given(acts=acts)
def test_nothing_depends_on_what_time_it_is(recipe, acts):
    """Only leases are a day later when everything is."""
    here, inputs, effects = live(recipe, acts)
    there = engine(recipe)
    later = replayed(there, [(given, now + 86400) for given, now in inputs])
    assert digest(there.core.weights) == digest(here.core.weights)
    for one, other in zip(effects, later, strict=True):
        back = [evolve(e, expires_at=e.expires_at - 86400) if isinstance(e, Offered) else e for e in other]
        assert back == one


@recipes
@QUICK
@given(acts=acts)
def test_effects_of_all_inputs_are_sound(recipe, acts):
    """No assignment is both open and closed, versions go up by one, explanations are JSON, weights stay finite."""
    one, _, effects = live(recipe, acts)
    ended, version = set(), 0
    for effect in (effect for some in effects for effect in some):
        match effect:
            case Offered():
                assert effect.assignment not in ended
                assert json.loads(json.dumps(effect.explanation, allow_nan=False)) == effect.explanation
            case Versioned():
                version += 1
                assert effect.version == version
            case Closed():
                assert effect.assignment not in ended
                ended.add(effect.assignment)
            case Settled() if effect.outcome != "expired":
                assert effect.update.assignment not in ended
                ended.add(effect.update.assignment)
    assert not ended & one.core.open.keys()
    assert one.core.version == version
    named = {base_of(version, work.plan) for work in one.core.open.values() for version in work.versions}
    assert set(one.core.kept) <= set(one.core.users) == named
    assert all(np.isfinite(value).all() for value in one.core.weights.values())
