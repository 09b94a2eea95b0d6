"""What every member of a recipe keeps to, whatever paper it comes from; new entries of the registries are included."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
from attrs import asdict, define, evolve, fields, fields_dict
from hypothesis import given
from hypothesis import strategies as st

from coordinator.strategies import AGGREGATORS, GATES, POLICIES, TRANSFORMS
from coordinator.strategies.base import (
    AMENDABLE,
    Amend,
    Computed,
    Contribution,
    Contributor,
    Discarded,
    Evaluated,
    Expired,
    FreshAsked,
    Left,
    MemberEffect,
    Model,
    Propose,
    Quiet,
    Refused,
    Retry,
    SendFresh,
    Step,
    Tick,
    WakeAt,
)
from coordinator.training.state import freeze, thaw
from protocol.messages import Merge, Plan
from protocol.subnetwork import WIDTHS, Axis, Region, Subnetwork, groups, nested, shrunk
from protocol.weights import Weights, copy, finite
from tests.protocol.samples import QUICK, layouts

from .scene import COSTS, LAYOUT, PLAN, context, contribution, device, model, report, vector

AVERAGING = {"fedavg", "fedbuff", "median", "trimmed_mean", "multi_krum"}
"""Rules whose step is a mean of updates; the others mix weights."""

UNDAMPED = {"adsp_sum"}
"""Rules by which an update counts in full however stale it is."""

aggregators = pytest.mark.parametrize("aggregator", [cls() for cls in AGGREGATORS.values()], ids=list(AGGREGATORS))
policies = pytest.mark.parametrize("policy", [cls() for cls in POLICIES.values()], ids=list(POLICIES))
transforms = pytest.mark.parametrize("transform", [cls() for cls in TRANSFORMS.values()], ids=list(TRANSFORMS))
members = pytest.mark.parametrize(
    "member", [cls() for cls in (AGGREGATORS | POLICIES | TRANSFORMS | GATES).values()], ids=lambda member: member.kind
)


def first_step(aggregator, model, contributions) -> Step:
    """Absorb the contributions, over and over, until they make a step."""
    state = aggregator.init(model)
    for count in range(1000):
        state, step = aggregator.absorb(state, model, contributions[count % len(contributions)], context(count))
        if step is not None:
            return step
    raise AssertionError("a thousand updates made no step")


@st.composite
def scenes(draw, low=-10.0, high=10.0):
    """A random model, and up to four updates over random parts of it: nested widths, counts or lists of channels."""
    layout = draw(layouts())
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))

    def drawn(shapes) -> Weights:
        return {name: rng.uniform(low, high, shape).astype(np.float32) for name, shape in shapes.items()}

    def region() -> Region:
        if draw(st.booleans()):
            return Region(layout, nested(layout, draw(st.sampled_from(WIDTHS))))
        channels = {
            group: draw(st.integers(1, full)) if draw(st.booleans()) else tuple(draw(st.permutations(range(full)))[:2])
            for group, full in groups(layout).items()
        }
        return Region(layout, Subnetwork(channels))

    whole = Region(layout).shapes
    regions = [region() for _ in range(draw(st.integers(1, 4)))]
    contributions = [
        Contribution(
            *(device(samples=draw(st.integers(1, 1000))), f"a{n}/1", drawn(part.shapes), part, drawn(part.shapes), 0),
            *(draw(st.integers(0, 5)), 40, 10, 1.0, PLAN),
        )
        for n, part in enumerate(regions)
    ]
    return Model(drawn(whole), layout, COSTS), contributions


# -- aggregators -------------------------------------------------------------------------------------------------


@aggregators
def test_a_fresh_update_of_zero_changes_nothing(aggregator):
    now = model(1, -2, 3, -4)
    step = first_step(aggregator, now, [contribution(0, 0, 0, 0, base=now.weights)])
    assert step.difference["w"].tolist() == [0, 0, 0, 0]


@aggregators
@QUICK
@given(scenes())
def test_a_coordinate_nobody_covers_never_moves(aggregator, scene):
    now, contributions = scene
    step = first_step(aggregator, now, contributions)
    covered = {c.key.partition("/")[0] for c in step.contributors if c.weight}
    masks = [c.region.coverage() for c in contributions if c.key.partition("/")[0] in covered]
    for name, difference in step.difference.items():
        inside = np.any([mask[name] for mask in masks], axis=0)
        assert not difference[~inside].any()
        assert ((step.coverage[name] > 0) == inside).all()
        assert difference.shape == now.weights[name].shape
        assert difference.dtype == np.float32


@aggregators
@QUICK
@given(scenes())
def test_a_step_is_finite_and_leaves_what_it_was_made_of_alone(aggregator, scene):
    now, contributions = scene
    before = copy(now.weights), [copy(c.difference) for c in contributions], [copy(c.base) for c in contributions]
    step = first_step(aggregator, now, contributions)
    after = now.weights, [c.difference for c in contributions], [c.base for c in contributions]
    assert finite(step.difference)
    assert freeze_all(before) == freeze_all(after)


@aggregators
@pytest.mark.parametrize("staleness", [0, 1, "max"])
@pytest.mark.parametrize("size", [1e6, -1e6, 1e-45])
def test_the_largest_and_smallest_admitted_updates_stay_finite(aggregator, size, staleness):
    staleness = aggregator.max_staleness if staleness == "max" else staleness
    given = contribution(size, size, size, size, staleness=staleness, base=vector(size, 0, -size, 1))
    step = first_step(aggregator, model(1e6, -1e6, 0, 1), [given])
    assert finite(step.difference)
    assert all(0 <= c.weight <= 1 for c in step.contributors)


@pytest.mark.parametrize("kind", sorted({k for k, cls in AGGREGATORS.items() if not cls().synchronous} - UNDAMPED))
def test_weight_falls_with_staleness(kind):
    """Where there is any: within a round nothing is stale."""
    aggregator, now = AGGREGATORS[kind](), model(0, 0, 0, 0)
    weights = []
    for staleness in (0, 1, 2, 5, 20, 90):
        given = contribution(1, 1, 1, 1, staleness=staleness, base=now.weights)
        weights.append(first_step(aggregator, now, [given]).contributors[0].weight)
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) == len(weights)


@aggregators
def test_equal_fresh_updates_give_that_update(aggregator):
    """The whole of it where the rule averages, the same direction where it mixes."""
    now = model(5, 6, 7, 8)
    step = first_step(aggregator, now, [contribution(1, -2, 4, -8, base=now.weights)])
    share = 1.0 if aggregator.kind in AVERAGING else step.contributors[0].weight
    assert step.difference["w"] == pytest.approx(np.array([1, -2, 4, -8]) * share)


@pytest.mark.parametrize("kind", sorted(AVERAGING))
@QUICK
@given(scene=scenes(), order=st.randoms(use_true_random=False))
def test_the_order_of_a_buffer_does_not_matter(kind, scene, order):
    now, contributions = scene
    shuffled = order.sample(contributions, len(contributions))
    aggregator = AGGREGATORS[kind](goal=len(contributions))
    one, other = (first_step(aggregator, now, those) for those in (contributions, shuffled))
    for name, difference in one.difference.items():
        np.testing.assert_allclose(difference, other.difference[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one.coverage[name], other.coverage[name])


@aggregators
@QUICK
@given(scene=scenes(), pause=st.integers(0, 20))
def test_an_aggregators_state_survives_storage_bit_for_bit(aggregator, scene, pause):
    now, contributions = scene
    state, steps, stored = aggregator.init(now), [], None
    for count in range(pause + 12):
        if count == pause:
            frozen = freeze(state)
            stored = thaw(type(state), frozen)
            assert freeze(stored) == frozen
        given = contributions[count % len(contributions)]
        state, step = aggregator.absorb(state, now, given, context(count))
        if count >= pause:
            stored, again = aggregator.absorb(stored, now, given, context(count))
            steps.append((step, again))
    assert any(step is not None for step, _ in steps)
    for step, again in steps:
        assert (step is None) == (again is None)
        assert step is None or freeze(step) == freeze(again)
    assert freeze(state) == freeze(stored)


# -- policies ----------------------------------------------------------------------------------------------------


def history(policy):
    """The states of a policy through an eventful life of two devices, each with what shape said then."""
    now, state = model(0, 0, 0, 0), policy.init(model(0, 0, 0, 0))
    for count in range(40):
        view = device(f"pi-{count % 2}", group="pi3", samples=100 + count)
        before = freeze(state)
        state, plan, explanation = policy.shape(state, PLAN, view, now, context(count, version=count // 10))
        yield before, view, plan, explanation, count // 10
        event = report(view, width=getattr(plan, "width", 1.0), peak=1.0 + count, link=0.5, sent=99)
        if count % 7 == 5:
            event = (Expired, Refused)[count % 2](view, count // 10)
        if isinstance(plan, Plan):
            state, _ = policy.on(state, event, context(count, version=count // 10))
        if count == 30:
            state, _ = policy.on(state, Left("pi-0"), context(count))


@policies
def test_a_policy_writes_only_the_fields_it_declares(policy):
    assert policy.writes <= fields_dict(Plan).keys()
    plans = [plan for _, _, plan, _, _ in history(policy) if isinstance(plan, Plan)]
    assert plans
    for plan in plans:
        assert {a.name for a in fields(Plan) if getattr(plan, a.name) != getattr(PLAN, a.name)} <= policy.writes


@policies
def test_a_policy_explains_itself_in_json(policy):
    for _, _, plan, explanation, _ in history(policy):
        assert json.loads(json.dumps(explanation, allow_nan=False)) == explanation
        assert explanation.keys()
        for name in policy.writes:
            assert explanation[name] == getattr(plan, name)


@policies
def test_a_policys_state_survives_storage_and_decides_the_same(policy):
    kind, now = type(policy.init(model(0, 0, 0, 0))), model(0, 0, 0, 0)
    for frozen, view, plan, explanation, version in history(policy):
        stored = thaw(kind, frozen)
        assert freeze(stored) == frozen
        assert policy.shape(stored, PLAN, view, now, context(version=version))[1:] == (plan, explanation)


@policies
def test_only_a_policy_with_a_barrier_puts_devices_off(policy):
    """And for a while only: in seconds, and with a reason."""
    put_off = [plan for _, _, plan, _, _ in history(policy) if not isinstance(plan, Plan)]
    assert bool(put_off) == (policy.waiting == "rounds")
    assert all(isinstance(plan, Retry) and plan.seconds > 0 and plan.reason for plan in put_off)


# -- transforms --------------------------------------------------------------------------------------------------


@transforms
def test_a_transform_keeps_a_step_of_zero_what_is_not_covered_and_who_contributed(transform):
    contributors = (Contributor("a/1", 0.5),)
    for size in (0.0, 1.0, 1e30):
        step = Step(vector(size, -size, 0, 0), vector(1, 2, 0, 0), contributors)
        state = transform.init(model(0, 0, 0, 0))
        _, after = transform.apply(state, step, model(0, 0, 0, 0), context())
        assert finite(after.difference)
        assert after.difference["w"][2:].tolist() == [0, 0]
        assert after.coverage["w"].tolist() == [1, 2, 0, 0]
        assert after.contributors == contributors
        assert size or not after.difference["w"].any()


@transforms
def test_a_transforms_state_survives_storage(transform):
    state = transform.init(model(0, 0, 0, 0))
    for size in (1.0, 1e6):
        step = Step(vector(size, 0, 0, size), vector(1, 0, 0, 1), ())
        stored = thaw(type(state), freeze(state))
        state, after = transform.apply(state, step, model(0, 0, 0, 0), context())
        step = Step(vector(size, 0, 0, size), vector(1, 0, 0, 1), ())
        _, again = transform.apply(stored, step, model(0, 0, 0, 0), context())
        assert freeze(after) == freeze(again)


# -- everyone ----------------------------------------------------------------------------------------------------


@members
def test_a_member_is_a_value_named_by_its_kind(member):
    assert type(member)(**asdict(member)) == member
    assert member.kind in {**AGGREGATORS, **POLICIES, **TRANSFORMS, **GATES}


EVENTS = (
    Left("nobody"),
    Expired(device(), 0),
    Refused(device(), 3),
    Tick(),
    Discarded(),
    Quiet(),
    FreshAsked(device(), PLAN, 5, 0),
    FreshAsked(device(), PLAN, 5, 7),
    evolve(report(), merges=(Merge(step=5, version=7, merge=0.2, keep=0.0, loss_before=1e30, loss_after=-1e30),)),
    Evaluated(0, 0.5, 1.0),
    Computed("nobody", "nothing", {"failed": 1.0}),
    report(),
    report(seconds=0.0, peak=0.0),
    Tick(),
    Left("pi"),
    Discarded(),
    report(),
    Tick(),
)


@members
def test_events_never_hurt(member):
    """Nor do they make a step of nothing, ask to be woken in the past, or want what does not exist."""
    now, state = Model(vector(0, 0, 0, 0), LAYOUT, COSTS), member.init(model(0, 0, 0, 0))
    for event in EVENTS:
        state, effects = member.on(state, event, context(version=7))
        for effect in effects:
            assert isinstance(effect, get_args(MemberEffect))
            assert not isinstance(effect, Propose)
            assert not isinstance(effect, WakeAt) or effect.at > context().now
            assert not isinstance(effect, Amend) or effect.changes.keys() <= AMENDABLE
            assert not isinstance(effect, SendFresh) or (0 <= effect.merge <= 1 and 0 <= effect.keep <= 1)
    assert freeze(state) == freeze(thaw(type(member.init(now)), freeze(state)))


# -- shape and size ----------------------------------------------------------------------------------------------

WIDE = {"w": (Axis(48, "hidden"),)}
CUT = Region(WIDE, Subnetwork({"hidden": (0, 3, 4, 7, 9, 12, 13, 14, 20, 21, 30)}))


def zeros(layout) -> Model:
    return Model({"w": np.zeros(layout["w"][0].size, np.float32)}, layout, COSTS)


def lived(member, state, layout, names, count, version=0):
    """The member's state after so many trainings of every device, each with a merge of a fresh model."""
    now, rng = zeros(layout), np.random.default_rng(9)
    for turn in range(version, version + count):
        ctx = context(turn, now=1000.0 + turn, version=turn + 1)
        for name in names:
            view, plan = device(name), PLAN
            if member.kind in POLICIES:
                state, plan, _ = member.shape(state, PLAN, view, now, ctx)
            if isinstance(plan, Retry):
                continue
            state, effects = member.on(state, FreshAsked(view, plan, 5, turn), ctx)
            sent = [effect.merge for effect in effects if isinstance(effect, SendFresh)]
            losses = {"loss_before": 1.0, "loss_after": float(rng.uniform(0.5, 1.5))}
            merges = tuple(Merge(step=5, version=turn + 1, merge=m, keep=0.0, **losses) for m in sent)
            event = report(view, width=plan.width, peak=float(rng.uniform(1, 2)), link=0.5, sent=99)
            state, _ = member.on(state, evolve(event, merges=merges), ctx)
            part = Region(layout)
            drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in part.shapes.items()}
            if member.kind in AGGREGATORS:
                given = Contribution(view, f"{name}.{turn}/1", drawn, part, now.weights, turn, 0, 40, 10, 1.0, plan)
                state, _ = member.absorb(state, now, given, ctx)
            if member.kind in TRANSFORMS:
                step = Step(drawn, {"w": np.ones_like(drawn["w"])}, ())
                state, _ = member.apply(state, step, now, ctx)
    return state


@members
def test_before_anything_happened_a_reshaped_state_is_that_of_the_smaller_model(member):
    small = shrunk(WIDE, CUT.subnetwork)
    assert freeze_state(member.reshape(member.init(zeros(WIDE)), CUT)) == freeze_state(member.init(zeros(small)))


@members
def test_a_member_goes_on_when_the_model_is_cut_down(member):
    small = shrunk(WIDE, CUT.subnetwork)
    state = member.reshape(lived(member, member.init(zeros(WIDE)), WIDE, ("a", "b"), 7), CUT)
    assert (48,) not in shapes_in(state)
    after = lived(member, state, small, ("a", "c"), 7, version=7)
    assert (48,) not in shapes_in(after)
    assert freeze_state(thaw(type(member.init(zeros(small))), freeze(after))) == freeze_state(after)


@members
def test_of_one_device_no_more_is_kept_than_32_kib(member):
    """However often it reports."""
    sizes = [
        len(freeze_state(lived(member, member.init(zeros(WIDE)), WIDE, names, 200)))
        for names in (("a",), ("a", "b"))
    ]
    assert sizes[1] - sizes[0] <= 32 * 1024


def freeze_state(state) -> bytes:
    return freeze(Kept(state))


@define
class Kept:
    """A state of any kind, None too."""

    state: Any


def shapes_in(value) -> set[tuple[int, ...]]:
    """Shapes of all arrays in a state."""
    if isinstance(value, np.ndarray):
        return {value.shape}
    if hasattr(type(value), "__attrs_attrs__"):
        value = {a.name: getattr(value, a.name) for a in fields(type(value))}
    if isinstance(value, dict):
        value = tuple(value.values())
    return set().union(*map(shapes_in, value)) if isinstance(value, tuple | list) else set()


def freeze_all(value):
    """Arrays in nested tuples, lists and dicts as comparable bytes."""
    if isinstance(value, dict):
        return {name: freeze_all(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [freeze_all(item) for item in value]
    return value.tobytes()
