"""Members that act without being asked, and synchronous rounds, through the engine."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve, field, frozen

from coordinator.strategies.base import (
    Contributor,
    Discarded,
    Expired,
    Left,
    Propose,
    Refused,
    Reported,
    Stateless,
    Step,
    Tick,
    WakeAt,
)
from coordinator.training.inputs import (
    Changed,
    Deferred,
    Departed,
    Offered,
    Operated,
    Rejected,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.recipe import parse
from protocol.weights import digest

from .scene import BSP, FEDASMU, FEDAVG, FEDBUFF, NOW, check_in, engine, offer, start, trained


def handle(engine, given, now=NOW):
    return engine.handle(given, now)


def kinds(effects):
    """Effects in short: outcomes of updates, numbers of versions, names of the rest."""
    return [
        e.outcome if isinstance(e, Settled) else e.version if isinstance(e, Versioned) else type(e).__name__
        for e in effects
    ]


@frozen(eq=False)
class Witness(Stateless):
    """A policy that keeps what it is told, and answers events with effects."""

    kind = "witness"
    writes = frozenset()
    waiting = "none"
    answers: dict = field(factory=dict)
    told: list = field(factory=list)

    def shape(self, state, plan, device, model, ctx):
        return state, plan, {}

    def on(self, state, event, ctx):
        self.told.append((event, ctx.now, ctx.version))
        return state, self.answers.get(type(event), lambda _: [])(ctx)

    @property
    def events(self):
        return [event for event, _, _ in self.told if not isinstance(event, Reported)]


def watched(recipe=FEDBUFF, **answers):
    """An engine, and who sees what its members are told; answers by the name of an event."""
    events = {cls.__name__: cls for cls in (Reported, Expired, Refused, Left, Tick, Discarded)}
    witness = Witness({events[name]: answer for name, answer in answers.items()})
    recipe = parse(recipe)
    return engine(evolve(recipe, policies=(*recipe.policies, witness))), witness


def step(value):
    return Step(
        {n: np.full_like(v, value) for n, v in start().items()},
        {n: np.ones_like(v) for n, v in start().items()},
        (Contributor("run-1.1/1", 1.0),),
    )


# -- what members hear -------------------------------------------------------------------------------------------


def test_an_assignment_of_which_nothing_comes_is_told_with_its_version():
    one, witness = watched(FEDBUFF.replace("goal = 2", "goal = 1"))
    handle(one, trained(offer(one, "other")))
    handle(one, trained(offer(one), steps=99))
    handle(one, Rejected("pi", trained(offer(one, number=1)).update, "too large"))
    offer(one, number=2)
    handle(one, Ticked(), NOW + 60)
    pi = check_in("pi").device
    assert witness.events == [Refused(pi, 1), Refused(pi, 1), Expired(pi, 1)]


def test_work_that_a_device_has_lost_is_told():
    one, witness = watched()
    work = offer(one)
    handle(one, check_in(number=1))
    assert witness.events == [Expired(check_in().device, work.version)]


def test_a_step_that_is_discarded_is_told_and_the_run_can_go_on():
    recipe = parse(FEDBUFF.replace("goal = 2", "goal = 1"))
    witness = Witness()
    one = engine(evolve(recipe, policies=(witness,), transforms=(Explosion(),)))
    assert handle(one, trained(offer(one)))[-1] == Changed(
        "paused", "version 1 would not be finite: the step was dropped"
    )
    assert witness.events == [Discarded()]


class Explosion(Stateless):
    kind = "explosion"

    def apply(self, state, step, model, ctx):
        return state, evolve(step, difference={n: np.full_like(v, np.inf) for n, v in step.difference.items()})


# -- waking ------------------------------------------------------------------------------------------------------


def test_who_wants_to_be_woken_is_woken_once_and_not_before():
    one, witness = watched(Left=lambda ctx: [WakeAt(ctx.now + 5)])
    assert one.deadline is None
    handle(one, Departed("x"))
    assert one.deadline == NOW + 5
    handle(one, Ticked(), NOW + 4.9)
    assert witness.events == [Left("x")]
    handle(one, Ticked(), NOW + 5.1)
    assert witness.told[-1] == (Tick(), NOW + 5.1, 0)
    assert one.deadline is None
    handle(one, Ticked(), NOW + 6)
    assert witness.events == [Left("x"), Tick()]


def test_the_earliest_of_leases_and_wishes_is_the_deadline():
    one, _ = watched(Left=lambda ctx: [WakeAt(NOW + 70), WakeAt(NOW + 50), WakeAt(NOW + 80)])
    offer(one)
    assert one.deadline == NOW + 60
    handle(one, Departed("x"))
    assert one.deadline == NOW + 50
    handle(one, Ticked(), NOW + 50)
    assert one.deadline == NOW + 60


def test_a_time_at_the_beginning_of_the_epoch_is_a_time():
    one, _ = watched(Left=lambda ctx: [WakeAt(0.0), WakeAt(9.0)])
    handle(one, Departed("x"), -1.0)
    assert one.deadline == 0.0


def test_a_tick_may_ask_for_the_next():
    one, witness = watched(Left=lambda ctx: [WakeAt(ctx.now + 5)], Tick=lambda ctx: [WakeAt(ctx.now + 5)])
    handle(one, Departed("x"))
    for now in (5, 10, 15):
        assert one.deadline == NOW + now
        handle(one, Ticked(), NOW + now)
    assert witness.events == [Left("x"), Tick(), Tick(), Tick()]


def test_a_wish_survives_a_snapshot():
    one, _ = watched(Left=lambda ctx: [WakeAt(ctx.now + 5)])
    handle(one, Departed("x"))
    other, witness = watched()
    other.restore(one.snapshot())
    assert other.deadline == NOW + 5
    handle(other, Ticked(), NOW + 5)
    assert witness.events == [Tick()]


# -- moving without a contribution -------------------------------------------------------------------------------


def test_a_proposal_moves_the_model_by_way_of_the_transforms():
    text = FEDBUFF + '[[transform]]\nkind = "clip"\nnorm = 0.5\n'
    one, _ = watched(text, Left=lambda ctx: [Propose(step(1.0))])
    (moved,) = handle(one, Departed("x"))
    assert moved == Versioned(1, digest(one.core.weights), pytest.approx(0.5), (Contributor("run-1.1/1", 1.0),))
    assert one.core.version == 1


def test_two_proposals_are_two_versions():
    one, _ = watched(Left=lambda ctx: [Propose(step(1.0)), Propose(step(2.0))])
    assert kinds(handle(one, Departed("x"))) == [1, 2]
    assert digest(one.core.weights) == digest({n: v + 3 for n, v in start().items()})


def test_an_update_is_as_stale_as_the_model_is_when_it_is_taken():
    """A member moves the model at the very news of it."""
    one, _ = watched(FEDASMU, Reported=lambda ctx: [Propose(step(1.0))])
    effects = handle(one, trained(offer(one)))
    assert kinds(effects) == [1, "stored", 2]
    assert effects[1].staleness == 1


@pytest.mark.parametrize("given", [Departed("x"), Ticked()])
def test_after_the_end_nothing_moves(given):
    one, witness = watched(
        Left=lambda ctx: [WakeAt(ctx.now + 5), Propose(step(1.0))], Tick=lambda ctx: [Propose(step(1.0))]
    )
    assert kinds(handle(one, Departed("x"))) == [1]
    handle(one, Operated("stop", "ada"))
    assert one.deadline is None
    assert handle(one, given, NOW + 10) == []
    assert (one.core.version, witness.events) == (1, [Left("x")])


# -- rounds ------------------------------------------------------------------------------------------------------


def test_a_round_ends_with_its_goal_and_late_ones_are_stale():
    # room for ceil(2·1.5) = 3 devices; the first two make the version
    one = engine(FEDAVG)
    a, b, late = (offer(one, name) for name in "abc")
    assert handle(one, check_in("d")) == [Deferred("d", "d.0", 2.0, "round 0 has its 3 devices")]
    assert kinds(handle(one, trained(a, 1.0))) == ["stored"]
    assert handle(one, check_in("a", number=1)) == [Deferred("a", "a.1", 2.0, "it has had its turn in round 0")]
    version = handle(one, trained(b, 3.0))[-1]
    assert version.contributors == (Contributor("run-1.1/1", 0.5), Contributor("run-1.2/1", 0.5))
    assert digest(one.core.weights) == digest({n: v + 2 for n, v in start().items()})
    (stale,) = handle(one, trained(late))
    assert (stale.outcome, stale.reason) == ("stale", "1 versions old, at most 0 are taken")
    assert {offer(one, name, number=2).version for name in "adb"} == {1}


def test_devices_count_by_their_samples():
    # (10·1 + 30·5) / 40 = 4
    one = engine(FEDAVG)
    a, b = offer(one, "a", samples=10), offer(one, "b", samples=30)
    handle(one, trained(a, 1.0))
    handle(one, trained(b, 5.0))
    assert digest(one.core.weights) == digest({n: v + 4 for n, v in start().items()})


def test_a_round_that_is_not_complete_goes_on_when_its_time_is_up():
    one = engine(FEDAVG)
    a, b = offer(one, "a"), offer(one, "b")
    handle(one, trained(a, 3.0), NOW + 10)
    assert one.deadline == NOW + 40
    assert handle(one, Ticked(), NOW + 39) == []
    (version,) = handle(one, Ticked(), NOW + 40)
    assert (version.version, version.contributors) == (1, (Contributor("run-1.1/1", 1.0),))
    assert digest(one.core.weights) == digest({n: v + 3 for n, v in start().items()})
    assert one.deadline == NOW + 60  # b's lease
    assert kinds(handle(one, trained(b), NOW + 41)) == ["stale"]
    assert offer(one, "a", number=1).version == 1


def test_a_round_that_was_complete_in_time_does_not_end_the_next_one_early():
    one = engine(FEDAVG)
    a, b = offer(one, "a"), offer(one, "b")
    handle(one, trained(a), NOW + 10)
    handle(one, trained(b), NOW + 30)
    handle(one, trained(offer(one, "a", number=1, now=NOW + 31)), NOW + 35)
    assert one.deadline == NOW + 40  # of the first round: its Tick sets the right one
    assert handle(one, Ticked(), NOW + 40) == []
    assert one.deadline == NOW + 65
    assert kinds(handle(one, Ticked(), NOW + 65)) == [2]


def test_a_stale_update_begins_no_round():
    one = engine(FEDAVG)
    a, b, late = (offer(one, name) for name in "abc")
    handle(one, trained(a))
    handle(one, trained(b))
    handle(one, Ticked(), NOW + 30)
    assert kinds(handle(one, trained(late), NOW + 31)) == ["stale"]
    assert handle(one, Ticked(), NOW + 100) == []
    assert (one.core.version, one.deadline) == (1, None)


def lost_leases(one, works):
    handle(one, Ticked(), NOW + 60)


def unsound(one, works):
    for work in works:
        handle(one, trained(work, steps=99))


def too_large(one, works):
    for work in works:
        handle(one, Rejected(work.device, trained(work).update, "too large"))


def forgotten(one, works):
    for work in works:
        handle(one, check_in(work.device, number=1))


def revoked(one, works):
    for work in works:
        handle(one, Departed(work.device))


@pytest.mark.parametrize("accident", [lost_leases, unsound, too_large, revoked])
def test_who_drops_out_of_a_round_makes_room_for_others(accident):
    one = engine(FEDAVG)
    accident(one, [offer(one, name) for name in "abc"])
    works = [offer(one, name, number=2) for name in "def"]
    assert kinds([e for work in works for e in handle(one, trained(work))]) == ["stored", "stored", 1, "stale"]


@pytest.mark.parametrize("accident", [lost_leases, unsound, too_large, forgotten])
def test_a_fleet_of_just_the_goal_gets_over_any_accident(accident):
    one = engine(FEDAVG.replace("over_selection = 0.5", "over_selection = 0"))
    accident(one, [offer(one, name) for name in "ab"])
    works = [offer(one, name, number=2, now=NOW + 64) for name in "ab"]
    assert kinds([e for work in works for e in handle(one, trained(work))]) == ["stored", "stored", 1]


def test_one_that_sends_nothing_but_nonsense_does_not_stop_the_rounds():
    """It is always the first to ask, and there is room for two: every second time it is the others' turn."""
    one, nonsense = engine(FEDAVG.replace("over_selection = 0.5", "over_selection = 0")), None
    for second in range(0, 20, 2):
        if isinstance(nonsense, Offered):
            handle(one, trained(nonsense, steps=99), NOW + second)
        nonsense = handle(one, check_in("broken", number=second), NOW + second)[-1]
        for name in "ab":
            answer = handle(one, check_in(name, number=second), NOW + second)[-1]
            if isinstance(answer, Offered):
                handle(one, trained(answer), NOW + second)
    assert one.core.version == 5


def test_a_discarded_round_is_trained_again_when_the_run_is_resumed():
    recipe = parse(FEDAVG)
    one = engine(evolve(recipe, transforms=(Explosion(),)))
    for work in [offer(one, name) for name in "ab"]:
        effects = handle(one, trained(work))
    assert kinds(effects) == ["stored", "Changed"]
    handle(one, Operated("resume", "ada"))
    assert [offer(one, name, number=1).version for name in "ab"] == [0, 0]


def test_with_ssp_at_bound_zero_devices_go_in_lockstep():
    one = engine(BSP)
    a, b = offer(one, "a"), offer(one, "b")
    handle(one, trained(a))
    reason = "1 updates ahead of the slowest, at most 0"
    assert handle(one, check_in("a", number=1)) == [Deferred("a", "a.1", 2.0, reason)]
    assert kinds(handle(one, trained(b))) == ["stored", 1]
    assert {offer(one, name, number=2).version for name in "ab"} == {1}


def test_who_is_put_off_has_no_assignment():
    one = engine(FEDAVG)
    for name in "abc":
        offer(one, name)
    for number in range(2):
        assert kinds(handle(one, check_in("d", number=number))) == ["Deferred"]
    assert {work.device.id for work in one.core.open.values()} == {"a", "b", "c"}


# -- survival ----------------------------------------------------------------------------------------------------


def test_an_open_round_survives_a_restart_with_its_time_limit():
    one, other = engine(FEDAVG), engine(FEDAVG)
    works = [offer(one, name) for name in "ab"]
    handle(one, trained(works[0], 3.0), NOW + 10)
    other.restore(one.snapshot())
    assert other.core.wake_at == NOW + 40
    for each in (one, other):
        assert handle(each, check_in("a", number=1), NOW + 20)[0].reason == "it has had its turn in round 0"
        assert kinds(handle(each, Ticked(), NOW + 40)) == [1]
        assert digest(each.core.weights) == digest({n: v + 3 for n, v in start().items()})
    assert one.snapshot() == other.snapshot()
