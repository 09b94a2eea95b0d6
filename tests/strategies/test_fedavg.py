"""FedAvg: w ← w + Σ n·Δ / Σ n per coordinate, over the first ``goal`` updates of a round; and who trains in a round."""

from __future__ import annotations

import pytest

from coordinator.strategies import Cohort, FedAvg
from coordinator.strategies.base import (
    Contributor,
    Discarded,
    Expired,
    Left,
    Propose,
    Refused,
    Retry,
    Tick,
    WakeAt,
)

from .scene import PLAN, context, contribution, device, model, report

MODEL = model(0, 0, 0, 0)
SMALL, LARGE = device("small", samples=10), device("large", samples=30)


def absorbed(fedavg, *contributions, now=1000.0, state=None):
    """The state and what each contribution led to."""
    state, steps = state or fedavg.init(MODEL), []
    for one in contributions:
        state, step = fedavg.absorb(state, MODEL, one, context(now=now))
        steps.append(step)
    return state, steps


# -- the mean ----------------------------------------------------------------------------------------------------


def test_updates_are_weighed_by_their_devices_samples():
    # (10·4 + 30·8) / 40 = 7
    one, other = contribution(4, 4, 4, 4, view=SMALL, key="s/1"), contribution(8, 8, 8, 8, view=LARGE, key="l/1")
    _, (first, step) = absorbed(FedAvg(goal=2), one, other)
    assert first is None
    assert step.difference["w"].tolist() == [7, 7, 7, 7]
    assert step.contributors == (Contributor("s/1", 0.25), Contributor("l/1", 0.75))


def test_how_long_a_device_trained_does_not_matter():
    assert contribution(4, 4, 4, 4, view=SMALL).samples == contribution(4, 4, 4, 4, view=LARGE).samples == 40


def test_a_coordinate_is_averaged_over_the_updates_that_cover_it():
    # the first two: (10·4 + 30·8) / 40 and (10·2 + 30·6) / 40; then the small one is alone; nobody covers the last
    narrow = contribution(8, 6, width=0.5, view=LARGE)
    part = contribution(4, 2, width=0.5, view=SMALL)
    whole = contribution(4, 2, 5, -1, view=SMALL)
    _, (_, step) = absorbed(FedAvg(goal=2), whole, narrow)
    assert step.difference["w"].tolist() == [7, 5, 5, -1]
    assert step.coverage["w"].tolist() == [2, 2, 1, 1]
    _, (_, step) = absorbed(FedAvg(goal=2), part, narrow)
    assert step.difference["w"].tolist() == [7, 5, 0, 0]
    assert step.coverage["w"].tolist() == [2, 2, 0, 0]


def test_a_round_begins_empty_and_the_step_keeps_its_arrays():
    fedavg = FedAvg(goal=2)
    state, (_, step, again) = absorbed(fedavg, *[contribution(v, v, v, v) for v in (2, 4, 9)])
    assert step.difference["w"].tolist() == [3, 3, 3, 3]
    assert again is None
    assert state.total["w"].tolist() == [900] * 4
    assert [c.key for c in state.contributors] == ["a/1"]


def test_nothing_stale_is_ever_taken():
    assert FedAvg().max_staleness == 0
    with pytest.raises(ValueError, match="max_staleness is 1, expected a number from 0 to 0"):
        FedAvg(max_staleness=1)


# -- its time limit ----------------------------------------------------------------------------------------------


def test_the_first_update_of_a_round_starts_the_clock():
    fedavg = FedAvg(goal=3, timeout=30)
    state, effects = fedavg.on(fedavg.init(MODEL), report(), context(now=1000))
    assert effects == [WakeAt(1030)]
    state, _ = absorbed(fedavg, contribution(1, 1, 1, 1), now=1000, state=state)
    assert fedavg.on(state, report(), context(now=1010))[1] == []


def test_at_the_limit_the_round_goes_on_with_what_there_is():
    fedavg = FedAvg(goal=3, timeout=30)
    state, _ = absorbed(fedavg, contribution(1, 2, 3, 4), contribution(3, 4, 5, 6), now=1000)
    state, (proposal,) = fedavg.on(state, Tick(), context(now=1030))
    assert isinstance(proposal, Propose)
    assert proposal.step.difference["w"].tolist() == [2, 3, 4, 5]
    assert proposal.step.contributors == (Contributor("a/1", 0.5), Contributor("a/1", 0.5))
    assert (state.contributors, state.began, state.total["w"].tolist()) == ((), None, [0] * 4)
    assert fedavg.on(state, Tick(), context(now=1030))[1] == []


def test_woken_too_early_it_asks_again():
    """Somebody else's Tick, or that of a round that was complete in time."""
    fedavg = FedAvg(goal=3, timeout=30)
    state, _ = absorbed(fedavg, contribution(1, 1, 1, 1), now=1000)
    after, effects = fedavg.on(state, Tick(), context(now=1029.9))
    assert after is state
    assert effects == [WakeAt(1030)]


def test_without_a_limit_it_waits_for_ever():
    fedavg = FedAvg(goal=3)
    assert fedavg.on(fedavg.init(MODEL), report(), context())[1] == []
    state, _ = absorbed(fedavg, contribution(1, 1, 1, 1), now=0)
    assert fedavg.on(state, Tick(), context(now=1e9)) == (state, [])


# -- who trains in a round ---------------------------------------------------------------------------------------


def asked(cohort, state, name, version=0, now=1000.0):
    return cohort.shape(state, PLAN, device(name), MODEL, context(version=version, now=now))


def admitted(cohort, *names, version=0, now=1000.0, state=None):
    """The state after these have asked, and who was let in."""
    state, inside = state or cohort.init(MODEL), []
    for name in names:
        state, answer, _ = asked(cohort, state, name, version, now)
        inside += [name] if answer is PLAN else []
    return state, inside


@pytest.mark.parametrize(
    ("goal", "over_selection", "room"),
    [(10, 0.3, 13), (10, 0.0, 10), (8, 0.3, 11), (1, 0.0, 1), (1, 0.1, 2), (3, 10, 33), (100, 0.07, 107)],
)
def test_a_round_has_room_for_the_goal_and_some_more(goal, over_selection, room):
    # 8·1.3 = 10.4 is rounded up; 100·1.07 is 107.00000000000001 and is not
    assert Cohort(goal=goal, over_selection=over_selection).room == room


def test_those_who_ask_first_train():
    cohort = Cohort(goal=2, over_selection=0.5, pause=7)
    state, inside = admitted(cohort, "a", "b", "c", "d")
    assert inside == ["a", "b", "c"]
    assert asked(cohort, state, "e") == (
        state, Retry(7, "round 0 has its 3 devices"), {"round": 0, "admitted": 3, "room": 3}
    )  # fmt: skip


def test_a_device_trains_once_per_round():
    cohort = Cohort(goal=3, over_selection=0)
    state, _ = admitted(cohort, "a")
    assert asked(cohort, state, "a")[1] == Retry(2.0, "it has had its turn in round 0")
    assert asked(cohort, state, "b")[1] is PLAN


def test_the_next_version_is_the_next_round():
    cohort = Cohort(goal=1, over_selection=0)
    state, _ = admitted(cohort, "a")
    assert admitted(cohort, "b", "a", version=1, state=state)[1] == ["b"]


@pytest.mark.parametrize("event", [Expired(device("a"), 0), Refused(device("a"), 0), Left("a")])
def test_who_drops_out_makes_room(event):
    cohort = Cohort(goal=2, over_selection=0)
    state, _ = admitted(cohort, "a", "b")
    state, effects = cohort.on(state, event, context())
    assert effects == []
    assert admitted(cohort, "a", "b", "c", "a", state=state)[1] == ["c"]


@pytest.mark.parametrize("event", [Expired, Refused])
def test_who_drops_out_is_let_in_again_when_nobody_else_has_come(event):
    """Two pauses later: by then everybody who waits has asked."""
    cohort = Cohort(goal=1, over_selection=0, pause=5)
    state, _ = admitted(cohort, "a")
    state, _ = cohort.on(state, event(device("a"), 0), context(now=1000))
    assert asked(cohort, state, "a", now=1009)[1] == Retry(5, "it dropped out of round 0: others go first")
    assert admitted(cohort, "a", now=1010, state=state)[1] == ["a"]
    assert admitted(cohort, "a", version=1, now=1001, state=state)[1] == ["a"]


@pytest.mark.parametrize("event", [Expired, Refused])
def test_what_a_device_owes_to_an_earlier_round_does_not_let_it_in_twice(event):
    cohort = Cohort(goal=2, over_selection=0)
    state, _ = admitted(cohort, "a", "b", version=3)
    state, _ = cohort.on(state, event(device("a"), 2), context(version=3))
    assert admitted(cohort, "a", "c", version=3, state=state)[1] == []


def test_an_update_makes_no_room():
    cohort = Cohort(goal=1, over_selection=0)
    state, _ = admitted(cohort, "a")
    assert cohort.on(state, report(device("a")), context()) == (state, [])


def test_a_round_whose_step_was_discarded_is_trained_once_more():
    """The version does not move, so nobody would ever be let in again."""
    cohort = Cohort(goal=2, over_selection=0)
    state, _ = admitted(cohort, "a", "b", version=5)
    state, _ = cohort.on(state, Discarded(), context(version=5))
    assert admitted(cohort, "a", "b", "c", version=5, state=state)[1] == ["a", "b"]
