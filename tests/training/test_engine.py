"""The engine as a specification: what goes in at the only door, and what follows."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.strategies.base import Contributor, Retry, Stateless
from coordinator.training.inputs import (
    Changed,
    Closed,
    Deferred,
    Delivered,
    Departed,
    Evaluated,
    Offered,
    Operated,
    Rejected,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.recipe import parse
from protocol import tensors
from protocol.messages import Lineage, Plan
from protocol.weights import add, digest

from .scene import FEDASMU, FEDBUFF, HALF, INT8, MIXED, NOW, WHALE, check_in, engine, offer, start, trained

CLOSED = "the assignment was closed before the update came"


def handle(engine, given, now=NOW):
    return engine.handle(given, now)


def outcome(effects):
    """The one update that was settled: outcome, reason, staleness."""
    (settled,) = (effect for effect in effects if isinstance(effect, Settled))
    return settled.outcome, settled.reason, settled.staleness


# -- offers ------------------------------------------------------------------------------------------------------


def test_a_check_in_is_answered_with_an_offer():
    one = engine(HALF)
    assert handle(one, check_in("pi", number=7)) == [
        Offered(
            assignment="run-1.1",
            device="pi",
            check_in="pi.7",
            version=0,
            plan=Plan(width=0.5, batch=4, steps=5, learning_rate=0.1, coding="float32"),
            expires_at=NOW + 60,
            explanation={"fixed": {"width": 0.5}},
            again=False,
        )
    ]
    assert offer(one, "zero").assignment == "run-1.2"


def test_what_a_device_still_holds_is_offered_again_unchanged():
    one = engine()
    first = offer(one)
    again = offer(one, now=NOW + 30, held=first.assignment, number=1)
    assert again == evolve(first, check_in="pi.1", explanation={}, again=True)


def test_an_assignment_the_device_does_not_mention_never_reached_it():
    one = engine()
    first = offer(one)
    closed, new = handle(one, check_in(number=1), NOW + 5)
    assert closed == Closed(first.assignment, "pi", "cancelled", "the device does not hold it any more")
    assert new.assignment == "run-1.2"
    assert outcome(handle(one, trained(first))) == ("expired", CLOSED, None)


def test_an_update_that_is_on_its_way_stays_welcome():
    one = engine()
    first = offer(one)
    (second,) = handle(one, check_in(unsent=(first.assignment,), number=1))
    assert second.assignment == "run-1.2"
    assert outcome(handle(one, trained(first)))[0] == "stored"


def test_other_devices_work_is_neither_offered_nor_dropped():
    one = engine()
    first = offer(one)
    (second,) = handle(one, check_in("eve", held=first.assignment))
    assert (second.assignment, second.again) == ("run-1.2", False)
    assert outcome(handle(one, trained(first)))[0] == "stored"


def test_work_that_is_held_but_unknown_gives_way_to_new_work():
    assert offer(engine(), held="run-1.99").assignment == "run-1.1"


@pytest.mark.parametrize(
    ("features", "coding"), [(("train", "int8"), "int8"), (("train",), "float32"), ((), "float32")]
)
def test_an_agent_without_a_coding_gets_float32(features, coding):
    one = engine(INT8)
    first = offer(one, features=features)
    assert first.plan.coding == coding
    assert outcome(handle(one, trained(first)))[0] == "stored"


@pytest.mark.parametrize(
    ("features", "coding"),
    [(("train", "int8", "topk"), "topk-0.1"), (("train", "int8"), "int8"), (("train",), "float32")],
)
def test_an_agent_without_topk_gets_the_next_best(features, coding):
    one = engine(INT8.replace("int8", "topk-0.1"))
    first = offer(one, features=features)
    assert first.plan.coding == coding
    assert outcome(handle(one, trained(first)))[0] == "stored"


def test_every_policy_explains_itself():
    assert offer(engine(WHALE), group="x").explanation["whale_fl"]["width"] == 0.0625
    assert offer(engine(MIXED), group="b").explanation == {"heterofl": {"group": "b", "width": 0.5}}


def test_a_policy_may_put_a_device_off():
    """Pace steering: the first Retry ends the plan, later policies are not asked."""
    recipe = parse(HALF)
    impatient = evolve(recipe, policies=(Later(), *recipe.policies))
    one = engine(impatient)
    assert handle(one, check_in()) == [Deferred("pi", "pi.0", 12.0, "enough for now")]
    assert one.core.open == {}


class Later(Stateless):
    kind = "later"
    writes = frozenset()

    def shape(self, state, plan, device, model, ctx):
        return state, Retry(seconds=12.0, reason="enough for now"), {}


# -- updates -----------------------------------------------------------------------------------------------------


def test_an_update_is_stored_and_the_buffers_last_one_moves_the_model():
    one = engine()
    a, b = offer(one, "a"), offer(one, "b")
    (settled,) = handle(one, trained(a, 1.0))
    # 24 + 8 + 16 elements of 1
    assert (settled.outcome, settled.reason, settled.staleness) == ("stored", "", 0)
    assert settled.norm == pytest.approx(48**0.5)
    stored, version = handle(one, trained(b, 3.0))
    assert stored.outcome == "stored"
    expected = {name: value + 2 for name, value in start().items()}
    assert digest(one.core.weights) == digest(expected)
    assert version == Versioned(
        1, digest(expected), pytest.approx(2 * 48**0.5), (Contributor("run-1.1/1", 1.0), Contributor("run-1.2/1", 1.0))
    )
    assert one.core.version == 1


def test_a_narrow_update_moves_what_it_covers_only():
    one = engine(HALF.replace("goal = 2", "goal = 1"))
    handle(one, trained(offer(one), 1.0))
    moved = {name: one.core.weights[name] - value for name, value in start().items()}
    assert moved["hidden.bias"].tolist() == [1] * 4 + [0] * 4
    assert moved["hidden.weight"].tolist() == [[1] * 4 + [0] * 4] * 3
    assert moved["out.weight"].tolist() == [[1, 1]] * 4 + [[0, 0]] * 4


def test_a_clipped_step_has_the_norm_of_the_clip():
    one = engine(WHALE)
    a, b = offer(one, "a"), offer(one, "b")
    handle(one, trained(a))
    assert handle(one, trained(b))[-1].step_norm == pytest.approx(0.5)


def test_staleness_is_counted_in_versions_and_has_an_end():
    one = engine(FEDBUFF.replace("goal = 2", "goal = 1"))
    late, later = offer(one, "late"), offer(one, "later")
    handle(one, trained(offer(one)))
    assert outcome(handle(one, trained(late))) == ("stored", "", 1)
    before = digest(one.core.weights)
    assert outcome(handle(one, trained(later))) == ("stale", "2 versions old, at most 1 are taken", 2)
    assert digest(one.core.weights) == before
    assert one.core.absorbed == 2


def test_policies_learn_from_stale_updates_too():
    one = engine(WHALE.replace("goal = 2", "goal = 1").replace("max_staleness = 1", "max_staleness = 0"))
    late = offer(one, "late")
    handle(one, trained(offer(one)))
    assert outcome(handle(one, trained(late)))[0] == "stale"
    assert offer(one, "late", number=1).explanation["whale_fl"]["fisher"] is not None


def test_the_window_between_request_and_answer_is_the_uploads_link_time():
    """Download and upload seconds and bytes make the goodput that WHALE-FL predicts the link with."""
    one = engine(WHALE)
    given = trained(offer(one))
    timings = evolve(given.update.timings, download=2.0, upload=3.0)
    handle(one, evolve(given, update=evolve(given.update, timings=timings, bytes_down=5000 - given.update.size)))
    said = offer(one, number=1).explanation["whale_fl"]
    # trained at 1/16 (6 of 48 parameters) in 2 s: 8 times that for the whole; 5000 bytes in 5 s; 8 bytes a parameter
    assert said["seconds"] == pytest.approx(2 * 8 + 48 * 8 / 1000)


WRONG = {
    "the commit": ({"commit": 2}, "commit 2 came, the plan asks for one"),
    "the version": (
        {"lineage": Lineage(version=3, shape_epoch=0)},
        "the difference is against version 3, shape epoch 0; version 0, shape epoch 0 was assigned",
    ),
    "the layout": (
        {"lineage": Lineage(version=0, shape_epoch=2)},
        "the difference is against version 0, shape epoch 2; version 0, shape epoch 0 was assigned",
    ),
    "the coding": ({"coding": "int8"}, "the coding is int8, the plan asks for float32"),
    "too many steps": ({"steps": 6}, "6 steps and 20 samples are reported, the plan asks for 5 steps of 4 samples"),
    "no steps": ({"steps": 0}, "0 steps and 20 samples are reported, the plan asks for 5 steps of 4 samples"),
    "too many samples": ({"samples": 21}, "5 steps and 21 samples are reported, "),
    "no samples": ({"samples": 0}, "5 steps and 0 samples are reported, "),
    "bytes that are no tensors": ({"body": b"GET / HTTP/1.1"}, "a tensor header of "),
    "a missing tensor": (
        {"body": tensors.encode({"hidden.bias": np.zeros(8, np.float32)})},
        "the update's tensors are not the subnetwork's: 'hidden.weight', 'out.weight' stand on one side only",
    ),
    "a wrong shape": (
        {"tensor": {"hidden.bias": np.zeros(4, np.float32)}},
        "tensor 'hidden.bias' is float32 (4,), expected float32 (8,)",
    ),
    "a wrong type": (
        {"tensor": {"hidden.bias": np.zeros(8, np.int32)}},
        "tensor 'hidden.bias' is int32 (8,), expected float32 (8,)",
    ),
    "not a number": (
        {"tensor": {"hidden.bias": np.array([0, np.nan] * 4, np.float32)}},
        "the difference has elements that are not finite",
    ),
    "infinity": (
        {"tensor": {"hidden.bias": np.array([0, -np.inf] * 4, np.float32)}},
        "the difference has elements that are not finite",
    ),
    "an element that is too large": (
        {"tensor": {"hidden.bias": np.full(8, -2e6, np.float32)}},
        "the difference has an element of size 2e+06, at most 1e+06 is plausible",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_unsound_update_is_refused_and_closes_its_assignment(wrong):
    changes, reason = WRONG[wrong]
    one = engine()
    first = offer(one)
    before = digest(one.core.weights)
    (settled,) = handle(one, trained(first, **changes))
    assert (settled.outcome, settled.staleness, settled.norm) == ("refused", 0, None)
    assert settled.reason.startswith(reason)
    assert (digest(one.core.weights), one.core.absorbed, one.core.open) == (before, 0, {})
    assert outcome(handle(one, trained(first)))[0] == "expired"


def test_an_infinite_scale_of_int8_is_refused():
    one = engine(INT8)
    shapes = {name: value.shape for name, value in start().items()}
    body = {name: np.full(s, 127, np.int8 if len(s) > 1 else np.float32) for name, s in shapes.items()}
    body |= {f"{n}.scale": np.full(s[-1:], 3e38, np.float32) for n, s in shapes.items() if len(s) > 1}
    assert outcome(handle(one, trained(offer(one), body=tensors.encode(body))))[:2] == (
        "refused", "the difference has elements that are not finite"
    )


def test_an_update_nobody_waits_for_is_expired():
    assert outcome(handle(engine(), trained(offer(engine())))) == ("expired", CLOSED, None)


def test_an_update_of_somebody_elses_assignment_is_expired_for_them_alone():
    one = engine()
    first = offer(one)
    assert outcome(handle(one, trained(first, device="eve"))) == ("expired", CLOSED, None)
    assert outcome(handle(one, trained(first)))[0] == "stored"


def test_an_update_counts_once():
    one = engine()
    first = offer(one)
    handle(one, trained(first))
    assert outcome(handle(one, trained(first))) == ("expired", CLOSED, None)
    assert one.core.absorbed == 1


def test_an_update_that_could_not_be_received_is_refused():
    one = engine()
    given = trained(offer(one)).update
    assert handle(one, Rejected("eve", given, "too large")) == []
    assert outcome(handle(one, Rejected("pi", given, "too large"))) == ("refused", "too large", 0)
    assert handle(one, Rejected("pi", given, "too large")) == []


def test_a_step_that_is_not_finite_pauses_the_run_and_leaves_the_model():
    one = engine(evolve(parse(FEDBUFF.replace("goal = 2", "goal = 1")), transforms=(Explosion(),)))
    first, before = offer(one), digest(one.core.weights)
    settled, changed = handle(one, trained(first))
    assert settled.outcome == "stored"
    assert changed == Changed("paused", "version 1 would not be finite: the step was dropped")
    assert (one.core.version, digest(one.core.weights), one.core.state) == (0, before, "paused")


class Explosion(Stateless):
    kind = "explosion"

    def apply(self, state, step, model, ctx):
        return state, evolve(step, difference={n: np.full_like(v, np.inf) for n, v in step.difference.items()})


# -- bases -------------------------------------------------------------------------------------------------------


def versions_kept(one) -> list[int]:
    return [int(name.partition("/")[0]) for name in one.core.kept]


def test_the_base_of_many_devices_is_kept_once_for_each_width_and_no_larger_than_it():
    one = engine(MIXED)
    for number in range(9):
        offer(one, f"pi-{number}", group=("a", "b", "c")[number % 3])
    assert [[value.shape[-1] for value in kept.values()] for kept in one.core.kept.values()] == [
        [2, 2, 2],
        [4, 4, 2],
        [8, 8, 2],
    ]
    assert list(one.core.kept.values())[2] is one.core.weights


def test_bases_are_kept_as_long_as_somebody_trains_from_them():
    one = engine(FEDASMU)
    a, b = offer(one, "a"), offer(one, "b")
    assert versions_kept(one) == [0]
    handle(one, trained(a))
    c = offer(one, "c")
    assert versions_kept(one) == [0, 1]
    handle(one, trained(b))
    assert versions_kept(one) == [1]
    handle(one, trained(c, steps=99))  # refused
    assert one.core.kept == {}


@pytest.mark.parametrize("end", [Ticked(), Departed("pi"), Operated("stop", "ada")])
def test_bases_go_with_the_assignments_that_end_otherwise(end):
    one = engine(FEDASMU)
    offer(one)
    handle(one, end, NOW + 61)
    assert one.core.kept == {}
    offer_of_next = handle(one, check_in(number=1), NOW + 61)
    assert all(not isinstance(e, Offered) or e.version in versions_kept(one) for e in offer_of_next)


def test_the_base_of_a_rejected_update_is_forgotten():
    one = engine(FEDASMU)
    handle(one, Rejected("pi", trained(offer(one)).update, "too large"))
    assert one.core.kept == {}


def test_an_aggregator_that_needs_no_bases_gets_none():
    one = engine()
    offer(one)
    assert one.core.kept == {}


def test_fedasmu_mixes_with_the_base_of_the_assignment():
    # τ_max = 1 here. The first of two updates from version 0: α = (1 + .1)/(1 + 1.1) = 11/21 of the way to w_0 + 1.
    one = engine(FEDASMU)
    a, b = offer(one, "a"), offer(one, "b")
    handle(one, trained(a))
    moved = one.core.weights["hidden.bias"] - start()["hidden.bias"]
    assert moved == pytest.approx(np.full(8, 11 / 21))
    # The second is one version stale: ξ = 1/(√2·√2) + .1 = .6, α = .375; w = .625·w_1 + .375·(w_0 + 1).
    handle(one, trained(b))
    moved = one.core.weights["hidden.bias"] - start()["hidden.bias"]
    assert moved == pytest.approx(np.full(8, 0.625 * 11 / 21 + 0.375))


# -- leases, departures, operators -------------------------------------------------------------------------------


def test_a_lease_runs_out():
    one = engine()
    assert one.deadline is None
    first, second = offer(one, "a"), offer(one, "b", now=NOW + 10)
    assert one.deadline == NOW + 60
    assert handle(one, Ticked(), NOW + 59.9) == []
    assert handle(one, Ticked(), NOW + 60) == [Closed(first.assignment, "a", "expired", "the lease ran out")]
    assert one.deadline == NOW + 70
    assert outcome(handle(one, trained(first), NOW + 61))[0] == "expired"
    assert outcome(handle(one, trained(second), NOW + 61))[0] == "stored"


def test_what_comes_before_the_lease_was_looked_at_is_in_time():
    one = engine()
    first = offer(one)
    assert outcome(handle(one, trained(first), NOW + 1000))[0] == "stored"


def test_a_revoked_devices_work_is_cancelled_and_its_records_go():
    one = engine(WHALE)
    handle(one, trained(offer(one)))
    first, other = offer(one, number=1), offer(one, "other")
    assert handle(one, Departed("pi")) == [Closed(first.assignment, "pi", "cancelled", "the device was revoked")]
    assert outcome(handle(one, trained(other)))[0] == "stored"
    assert offer(one, number=2).explanation["whale_fl"]["warm_up"].startswith("report 0 of 1")


def test_a_paused_run_gives_no_work_but_takes_what_comes():
    one = engine()
    first = offer(one)
    assert handle(one, Operated("pause", "ada")) == [Changed("paused", "paused by ada")]
    assert handle(one, check_in("b")) == [Deferred("b", "b.0", None, "the run is paused")]
    assert handle(one, check_in(held=first.assignment, number=1)) == [
        Deferred("pi", "pi.1", None, "the run is paused")
    ]
    assert outcome(handle(one, trained(first)))[0] == "stored"
    assert handle(one, Operated("resume", "ada")) == [Changed("running", "resumed by ada")]
    assert offer(one, "b", number=1).version == 0


def test_a_stopped_run_cancels_everything_for_good():
    one = engine()
    first = offer(one)
    assert handle(one, Operated("stop", "ada")) == [
        Closed(first.assignment, "pi", "cancelled", "the run is stopped"),
        Changed("stopped", "stopped by ada"),
    ]
    assert handle(one, check_in(number=1)) == [Deferred("pi", "pi.1", None, "the run is stopped")]
    for action in ("stop", "pause", "resume"):
        assert handle(one, Operated(action, "ada")) == []
    assert one.core.state == "stopped"


@pytest.mark.parametrize("action", ["resume", "reboot"])
def test_a_command_that_does_not_apply_changes_nothing(action):
    one = engine()
    assert handle(one, Operated(action, "ada")) == []
    assert one.core.state == "running"


@pytest.mark.parametrize("paused", [False, True])
def test_a_run_that_reaches_its_target_is_finished(paused):
    one = engine(target=0.9)
    first = offer(one)
    if paused:
        handle(one, Operated("pause", "ada"))
    assert handle(one, Evaluated(3, 0.8999, 1.0)) == []
    assert handle(one, Evaluated(4, 0.9, 1.0)) == [
        Closed(first.assignment, "pi", "cancelled", "the run is finished"),
        Changed("finished", "version 4 reached 0.9000, the target is 0.9"),
    ]
    assert handle(one, Evaluated(5, 0.95, 1.0)) == []


def test_a_run_without_a_target_goes_on():
    one = engine()
    assert handle(one, Evaluated(3, 1.0, 0.0)) == []
    assert one.core.state == "running"


# -- what never moves --------------------------------------------------------------------------------------------


def test_handed_out_weights_never_change():
    """Evaluations and bases refer to old versions while the engine moves on."""
    one = engine(FEDASMU)
    kept = [(one.core.weights, digest(one.core.weights))]
    for number in range(5):
        handle(one, trained(offer(one, number=number)))
        kept.append((one.core.weights, digest(one.core.weights)))
    assert [digest(weights) for weights, _ in kept] == [sha256 for _, sha256 in kept]
    assert len({sha256 for _, sha256 in kept}) == 6


def test_two_versions_of_the_same_update_sum_up():
    one = engine(FEDBUFF.replace("goal = 2", "goal = 1"))
    for number in range(3):
        handle(one, trained(offer(one, number=number), 0.5))
    assert digest(one.core.weights) == digest(add(start(), {n: np.ones_like(v) for n, v in start().items()}, 1.5))


def test_every_input_counts():
    one = engine()
    for given in (check_in(), Ticked(), Departed("x"), Operated("pause", "ada"), Evaluated(0, 0.1, 2.0)):
        handle(one, given)
    handle(one, Delivered("pi", trained(offer(engine())).update, b""))
    assert one.core.inputs == 6
