"""The engine and training that does not wait: several commits, merges, amendments, and what members may want."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from attrs import evolve, frozen

from coordinator.strategies import events
from coordinator.strategies.base import Stateless, Verdict
from coordinator.training.engine import Engine
from coordinator.training.inputs import (
    Amended,
    Answered,
    Asked,
    Changed,
    Closed,
    Deferred,
    Departed,
    Evaluated,
    Offered,
    Operated,
    Quarantined,
    Refreshed,
    Requested,
    Reshaped,
    Settled,
    Ticked,
)
from coordinator.training.recipe import parse
from protocol.messages import Ask, Holdout, Lineage, Merge
from protocol.subnetwork import Region

from .scene import FEDASYNC, FEDBUFF, LAYOUT, NOW, check_in, engine, offer, start, trained

ABLE = ("train", "int8", "commits", "refresh", "optimiser")
MANY = FEDBUFF.replace("steps = 5", "steps = 5\ncommits = 3").replace("goal = 2\nmax_staleness = 1", "goal = 1")
MIXING = FEDASYNC.replace("steps = 5", "steps = 5\ncommits = 3").replace("max_staleness = 1", "max_staleness = 9")
MIXING = MIXING.replace('"fedasync"', '"fedasync"\nalpha = 0.5\nstaleness = "constant"')


@frozen
class Wisher(Stateless):
    """Wants things done: ``wishes`` (event class, its effects) says when and what."""

    wishes: tuple
    heard: list
    kind: ClassVar[str] = "wisher"
    writes: ClassVar[frozenset] = frozenset()
    waiting: ClassVar[str] = "none"

    def on(self, state, event, ctx):
        self.heard.append(event)
        return None, [wish for kind, wishes in self.wishes if isinstance(event, kind) for wish in wishes]

    def shape(self, state, plan, device, model, ctx):
        return None, plan, {}


def wishing(*wishes, recipe=MANY):
    """An engine with a policy that has these wishes, and the list of what that policy hears."""
    recipe = parse(recipe)
    wisher = Wisher(wishes, [])
    return engine(evolve(recipe, policies=(wisher, *recipe.policies))), wisher.heard


def able(one, device="pi", now=NOW, **said):
    return offer(one, device, now, features=ABLE, **said)


def commit(offered, number, value=1.0, version=0, merges=(), last=False, **changes):
    lineage = Lineage(version=version, shape_epoch=0, merges=merges)
    return trained(offered, value, commit=number, lineage=lineage, last=last, **changes)


def of(kind, effects):
    return [effect for effect in effects if isinstance(effect, kind)]


# -- commits -----------------------------------------------------------------------------------------------------


def test_commits_come_one_after_the_other_and_each_counts():
    one = engine(MANY)
    first = able(one)
    assert first.plan.commits == 3
    for number in (1, 2, 3):
        settled, versioned = one.handle(commit(first, number, last=number == 3), NOW + number)
        assert (settled.outcome, settled.staleness, settled.ends) == ("stored", number - 1, number == 3)
        assert (versioned.version, [c.key for c in versioned.contributors]) == (number, [f"run-1.1/{number}"])
    assert one.core.open == {}


def test_a_commit_begins_the_lease_anew():
    one = engine(MANY)
    first = able(one)
    one.handle(commit(first, 1), NOW + 50)
    assert one.handle(Ticked(), NOW + 100) == []
    (closed,) = of(Closed, one.handle(Ticked(), NOW + 111))
    assert (closed.state, closed.tell) == ("expired", True)


@pytest.mark.parametrize("number", [2, 3])
def test_a_commit_out_of_turn_ends_the_assignment(number):
    one = engine(MANY)
    first = able(one)
    (settled,) = one.handle(commit(first, number), NOW)
    assert settled.outcome == "refused"
    assert settled.reason == f"commit {number} came, the plan asks for 3, of which 0 have come"
    assert one.core.open == {}


def test_a_device_that_was_held_up_may_bring_several_commits_in_one():
    one = engine(MANY)
    first = able(one)
    (settled, _) = one.handle(commit(first, 1, steps=15, samples=60), NOW)
    assert settled.outcome == "stored"
    one = engine(MANY)
    (settled,) = one.handle(commit(able(one), 1, steps=16, samples=60), NOW)
    assert settled.reason == "16 steps and 60 samples are reported, the plan asks for 15 steps of 4 samples"


def test_an_agent_that_cannot_gets_one_commit_by_steps():
    recipe = MANY.replace("commits = 3", "commits = 3\nseconds = 2.0\nrefresh = 3\nmomentum = 0.9")
    plan = offer(engine(recipe), features=("train",)).plan
    assert (plan.commits, plan.seconds, plan.refresh, plan.momentum) == (1, None, None, 0.0)
    plan = able(engine(recipe)).plan
    assert (plan.commits, plan.seconds, plan.refresh, plan.momentum) == (3, 2.0, 3, 0.9)


# -- merges ------------------------------------------------------------------------------------------------------


def other_device_moves(one, value=2.0):
    """Somebody else delivers: the model moves by one version."""
    one.handle(trained(offer(one, "other"), value), NOW)


def test_a_device_that_asks_is_sent_the_newest_model_once():
    one, heard = wishing((events.FreshAsked, [events.SendFresh("pi", 0.25, 0.0)]))
    first = able(one)
    asked = Asked("pi", Ask(assignment=first.assignment, commit=1, step=3, version=0))
    assert one.handle(asked, NOW) == []  # there is nothing newer
    assert heard[-1] == events.FreshAsked(one.core.open[first.assignment].device, first.plan, 3, 0)
    other_device_moves(one)
    assert one.handle(asked, NOW) == [Refreshed(first.assignment, "pi", 1, first.plan, 0.25, 0.0)]
    assert one.handle(asked, NOW) == []


def test_a_device_that_has_merged_what_was_sent_builds_on_that():
    one, heard = wishing((events.Reported, []), (events.FreshAsked, [events.SendFresh("pi", 0.25, 0.0)]))
    first = able(one)
    other_device_moves(one)
    one.handle(Asked("pi", Ask(assignment=first.assignment, commit=1, step=3, version=0)), NOW)
    for said, known in ((1, 1), (7, 0)):  # version 7 was never sent
        one.handle(Asked("pi", Ask(assignment=first.assignment, commit=1, step=4, version=said)), NOW)
        assert heard[-1].version == known


def test_only_fresh_models_that_were_sent_may_have_been_merged():
    one, _ = wishing((events.FreshAsked, [events.SendFresh("pi", 0.25, 0.0)]))
    first = able(one)
    other_device_moves(one)
    one.handle(Asked("pi", Ask(assignment=first.assignment, commit=1, step=3, version=0)), NOW)
    wrong = Merge(step=3, version=1, merge=0.5, keep=0.0)
    settled = one.handle(commit(first, 1, merges=(wrong,)), NOW)[0]
    assert settled.outcome == "refused"
    assert settled.reason == "version 1 merged with 0.5 and 0 is no fresh model that was sent for version 0"


def test_staleness_counts_from_the_newest_version_that_was_merged():
    one, _ = wishing((events.FreshAsked, [events.SendFresh("pi", 0.25, 0.0)]))
    first = able(one)
    other_device_moves(one)
    one.handle(Asked("pi", Ask(assignment=first.assignment, commit=1, step=3, version=0)), NOW)
    other_device_moves(one)
    settled = one.handle(commit(first, 1, merges=(Merge(step=3, version=1, merge=0.25, keep=0.0),)), NOW)[0]
    assert settled.staleness == 1


def test_the_base_follows_merges_and_commits():
    """FedAsync at alpha 1/2 mixes (base + difference): both can be followed by hand."""
    one, _ = wishing((events.FreshAsked, [events.SendFresh("pi", 0.25, 0.0)]), recipe=MIXING)
    begin = start()["hidden.bias"]
    first = able(one)
    other_device_moves(one, 2.0)  # the model is begin + 1: half way to begin + 2
    one.handle(Asked("pi", Ask(assignment=first.assignment, commit=1, step=3, version=0)), NOW)
    one.handle(commit(first, 1, 4.0, merges=(Merge(step=3, version=1, merge=0.25, keep=0.0),)), NOW)
    # base = 3/4 begin + 1/4 (begin + 1); its end is begin + 4.25, the model half way there from begin + 1
    assert np.array_equal(one.core.weights["hidden.bias"], begin + np.float32(2.625))
    one.handle(commit(first, 2, 1.0, version=1, last=True), NOW)
    assert np.array_equal(one.core.weights["hidden.bias"], begin + np.float32((2.625 + 5.25) / 2))
    assert one.core.kept == {}


# -- amendments --------------------------------------------------------------------------------------------------


def test_a_plan_is_amended_and_the_new_limits_count():
    one, _ = wishing((events.Tick, [events.Amend("pi", {"steps": 9, "commits": 5})]), (events.Expired, []))
    first = able(one)
    one.core.wake_at = NOW
    assert one.handle(Ticked(), NOW) == [
        Amended(first.assignment, "pi", 1, evolve(first.plan, steps=9, commits=5))
    ]
    assert one.handle(commit(first, 1, steps=9, samples=36), NOW)[0].outcome == "stored"
    one.core.wake_at = NOW
    assert one.handle(Ticked(), NOW) == []  # it is so already
    assert able(one, held=first.assignment, number=1).plan.steps == 9


def test_what_a_device_is_built_for_cannot_be_amended():
    one, _ = wishing((events.Tick, [events.Amend("pi", {"width": 0.5})]))
    one.core.wake_at = NOW
    with pytest.raises(ValueError, match=r"\['width'\] of a plan cannot be amended"):
        one.handle(Ticked(), NOW)


# -- questions ---------------------------------------------------------------------------------------------------


def test_members_have_things_measured_and_computed():
    wishes = [events.Evaluate(), events.Compute("fit", {"at": (1.0, 2.0), "goal": 3.0})]
    one, heard = wishing((events.Tick, wishes))
    one.core.wake_at = NOW
    assert one.handle(Ticked(), NOW) == [
        Requested(1, "evaluate", {}),
        Requested(2, "fit", {"at": (1.0, 2.0), "goal": (3.0,)}),
    ]
    restored = engine(one.setting.recipe)
    restored.restore(one.snapshot())
    assert restored.core.questions == one.core.questions
    one.handle(Answered(2, {"slope": 0.5}), NOW)
    assert heard[-1] == events.Computed("wisher", "fit", {"slope": 0.5})
    one.handle(Answered(1, {"version": 0.0, "accuracy": 0.5, "loss": 1.5}), NOW)
    assert heard[-1] == events.Evaluated(0, 0.5, 1.5)
    count = len(heard)
    one.handle(Answered(1, {"version": 0.0, "accuracy": 0.5, "loss": 1.5}), NOW)
    assert len(heard) == count  # an answer counts once


# -- holding and standing still ----------------------------------------------------------------------------------


@frozen
class Narrowing(Stateless):
    """A width policy that halves the width with every version."""

    kind: ClassVar[str] = "narrowing"
    writes: ClassVar[frozenset] = frozenset({"width"})
    waiting: ClassVar[str] = "none"

    def shape(self, state, plan, device, model, ctx):
        return None, evolve(plan, width=0.5**ctx.version), {}


def test_a_field_that_is_held_stays_as_it_was_for_each_device():
    recipe = parse(FEDBUFF.replace("goal = 2", "goal = 1"))
    hold = Wisher(((events.Tick, [events.Hold(("width",))]), (events.Left, [events.Hold(())])), [])
    one = engine(evolve(recipe, policies=(Narrowing(), hold)))
    first = offer(one)
    one.core.wake_at = NOW
    one.handle(Ticked(), NOW)
    one.handle(trained(first), NOW)
    again = offer(one, number=1)
    assert (again.plan.width, again.explanation["held"]) == (1.0, {"width": 1.0})
    assert offer(one, "new").plan.width == 0.5
    one.handle(trained(again), NOW)
    assert offer(one, "new", number=1).plan.width == 0.5
    one.handle(Departed("gone"), NOW)
    assert offer(one, number=2).plan.width == 0.25


def test_behind_a_barrier_nobody_starts_and_when_all_are_done_it_is_quiet():
    one, heard = wishing((events.Tick, [events.Barrier("the model is pruned")]), (events.Quiet, [events.Release()]))
    first = able(one)
    one.core.wake_at = NOW
    one.handle(Ticked(), NOW)
    assert one.handle(check_in("late"), NOW) == [Deferred("late", "late.0", None, "the model is pruned")]
    assert not of(events.Quiet, heard)
    one.handle(commit(first, 1, last=True), NOW)
    assert of(events.Quiet, heard) == [events.Quiet()]
    assert offer(one, "late", number=1)


def test_a_model_is_adopted():
    weights = {name: value + 1 for name, value in start().items()}
    one, _ = wishing((events.Tick, [events.Adopt(weights, "trained on shared data")]))
    one.core.wake_at = NOW
    (versioned,) = one.handle(Ticked(), NOW)
    assert (versioned.version, versioned.contributors, versioned.reason) == (1, (), "trained on shared data")
    assert one.core.weights is weights


def test_the_model_changes_its_shape_and_work_of_the_old_one_ends():
    one, _ = wishing((events.Tick, [events.Reshape({"hidden": (1, 3, 6)}, "pruned")]))
    first = able(one)
    one.core.wake_at = NOW
    closed, versioned, reshaped = one.handle(Ticked(), NOW)
    assert (closed.state, closed.reason) == ("cancelled", "the model changed its shape: pruned")
    assert (versioned.version, reshaped) == (1, Reshaped(1, 1, {"hidden": 3}, "pruned"))
    assert np.array_equal(one.core.weights["hidden.bias"], start()["hidden.bias"][[1, 3, 6]])
    assert of(Settled, one.handle(commit(first, 1), NOW))[0].outcome == "expired"
    new = able(one, number=1)
    region = one.region(new.plan)
    assert region.shapes["out.weight"] == (3, 2)
    assert Region(one.core.layout).parameters == 9 + 3 + 6 < Region(LAYOUT).parameters
    restored = engine(one.setting.recipe)
    restored.restore(one.snapshot())
    assert restored.region(new.plan).shapes == region.shapes


def test_after_the_end_nothing_is_wanted_any_more():
    one, heard = wishing((events.Tick, [events.Evaluate()]))
    one.core.wake_at = NOW
    one.handle(Ticked(), NOW)
    one.handle(Operated("stop", "olga"), NOW)
    assert one.core.questions == {}
    assert one.handle(Evaluated(0, 1.0, 0.1), NOW) == []
    assert isinstance(heard[0], events.Tick)
    assert of(Offered, one.handle(check_in(), NOW)) == []


# -- gates -------------------------------------------------------------------------------------------------------


@frozen
class Doorman(Stateless):
    """Refuses differences longer than one, and quarantines who brings such."""

    kind: ClassVar[str] = "doorman"

    def judge(self, state, contribution, model, ctx):
        longest = max(float(abs(value).max()) for value in contribution.difference.values())
        return None, Verdict({"longest": longest}, "it is too long" if longest > 1 else "", quarantine=longest > 1)


def test_a_gate_judges_before_anybody_else_hears_of_it():
    recipe = parse(MANY)
    wisher = Wisher((), [])
    one = engine(evolve(recipe, policies=(wisher,), gates=(Doorman(),)))
    first, other = able(one), able(one, "other")
    settled = one.handle(commit(first, 1, 0.5), NOW)[0]
    assert (settled.outcome, settled.scores) == ("stored", {"doorman": {"longest": 0.5}})
    effects = one.handle(commit(other, 1, 2.0), NOW)
    (settled,) = of(Settled, effects)
    assert (settled.outcome, settled.reason, settled.scores) == (
        "refused", "it is too long", {"doorman": {"longest": 2.0}},
    )  # fmt: skip
    assert of(Quarantined, effects) == [Quarantined("other", "it is too long")]
    assert [type(event) for event in wisher.heard] == [events.Reported, events.Refused]
    assert set(one.core.open) == {first.assignment}


def test_a_recipe_turns_a_device_away_that_sends_too_much_too_often():
    """With its strikes counted across a snapshot, and what the gates looked at beside the outcome."""
    gates = '[[admission]]\nkind = "rate"\n[[admission]]\nkind = "outlier"\nwarm_up = 3\nstrikes = 2\n'
    one = engine(FEDBUFF.replace("goal = 2\nmax_staleness = 1", "goal = 1") + gates)
    for number in range(6):
        settled = one.handle(trained(offer(one, f"d{number % 3}", number=number), 0.5), NOW)[0]
        assert settled.outcome == ("refused" if number < 3 else "stored")
    assert settled.scores["outlier"]["norm"] == 1.0
    assert settled.scores["outlier"]["cosine"] == pytest.approx(1.0)
    one.handle(trained(offer(one, "bad"), 50.0), NOW)
    restored = engine(one.setting.recipe)
    restored.restore(one.snapshot())
    settled, quarantined = restored.handle(trained(offer(restored, "bad", number=1), 50.0), NOW)
    reason = "its difference is 100 times as long as is usual, 6 times is the limit (strike 2 of 2)"
    assert (settled.outcome, settled.reason) == ("refused", reason)
    assert settled.scores["rate"].keys() == {"share_of_minute", "share_of_hour"}
    assert quarantined == Quarantined("bad", reason)
    assert restored.core.version == 3


# -- stop rules --------------------------------------------------------------------------------------------------


def state_after(effects):
    return [(effect.state, effect.reason) for effect in of(Changed, effects)]


def test_a_run_without_progress_loses_patience():
    one = engine(MANY + "[stop]\npatience = 2\n")
    assert not state_after(one.handle(Evaluated(0, 0.5, 1.0), NOW))
    assert not state_after(one.handle(Evaluated(1, 0.4, 1.0), NOW))
    assert state_after(one.handle(Evaluated(2, 0.5, 1.0), NOW)) == [
        ("finished", "2 measured versions were no better than 0.5000")
    ]


def test_the_control_set_decides_where_there_is_one():
    one = engine(MANY + "[stop]\ntarget = 0.8\n")
    assert not state_after(one.handle(Evaluated(0, 0.9, 1.0, 0.7, 1.0), NOW))
    assert state_after(one.handle(Evaluated(1, 0.1, 1.0, 0.8, 1.0), NOW))[0][0] == "finished"


def test_time_and_bytes_may_run_out():
    one = engine(MANY + "[stop]\ndeadline = 100\nbytes = 5000\n")
    first = able(one)
    assert one.deadline == NOW + 60  # the lease
    one.handle(commit(first, 1, bytes_down=1000), NOW + 50)
    assert one.deadline == NOW + 100
    assert state_after(one.handle(Ticked(), NOW + 100)) == [("stopped", "its 100 s are over")]
    one = engine(MANY + "[stop]\ndeadline = 100\nbytes = 5000\n")
    (end,) = state_after(one.handle(commit(able(one), 1, bytes_down=4900), NOW))
    assert end[0] == "stopped"
    assert end[1].endswith("the budget is 5000")


def test_without_any_server_data_the_devices_hold_outs_decide():
    one = engine(MANY + "[stop]\ntarget = 0.75\n")
    devices = [able(one, name) for name in ("a", "b", "c")]
    said = [Holdout(samples=100, loss=1.0, accuracy=0.5), Holdout(samples=300, loss=1.0, accuracy=0.9)]
    assert not state_after(one.handle(commit(devices[0], 1, holdout=said[0]), NOW))
    assert state_after(one.handle(commit(devices[1], 1, holdout=said[1]), NOW)) == [
        ("finished", "2 devices' hold-outs say 0.8000, the target is 0.75")
    ]


def test_what_a_model_would_be_without_a_device():
    """Its differences count as zero; everything else is as it was."""
    setting = engine(MANY).setting
    one = Engine(evolve(setting, without=frozenset({"pi"})), start())
    one.handle(commit(able(one), 1, 5.0), NOW)
    assert one.core.version == 1
    assert np.array_equal(one.core.weights["hidden.bias"], start()["hidden.bias"])
