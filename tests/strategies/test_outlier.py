"""Differences that are too long or point away from the fleet's: scores by hand, strikes, quarantine."""

from __future__ import annotations

from math import sqrt

import pytest
from attrs import evolve

from coordinator.strategies import Outlier
from coordinator.strategies.base import Left
from coordinator.strategies.peers import PEERS, Usual, remember, usual
from protocol.subnetwork import Axis, Region, Subnetwork

from .scene import context, contribution, device, model

MODEL = model(0, 0, 0, 0)
HONEST = ([1, 0.2, 0, 0], [1, -0.2, 0, 0], [1, 0, 0.2, 0], [1, 0, -0.2, 0], [1, 0, 0, 0.2], [1, 0, 0, -0.2])
"""Six devices that go one way, each a little beside it: cosine 1/√1.04 with the mean."""


def judge(gate, state, values, name, **more):
    return gate.judge(state, contribution(*values, view=device(name), **more), MODEL, context())


def taught(gate, rounds=3):
    """A gate that has seen six honest devices some times each."""
    state = gate.init(MODEL)
    for _ in range(rounds):
        for number, values in enumerate(HONEST):
            state, verdict = judge(gate, state, values, f"h{number}")
            assert not verdict.quarantine
    return state


def test_the_first_updates_teach_and_are_not_used():
    gate = Outlier(warm_up=2)
    state = gate.init(MODEL)
    for number in (1, 2):
        state, verdict = judge(gate, state, [1, 0, 0, 0], "a")
        sentence = f"update {number} of the 2 by which admission learns what is usual; it is not used"
        assert (verdict.refusal, verdict.quarantine) == (sentence, False)
    state, verdict = judge(gate, state, [1, 0, 0, 0], "a")
    assert verdict.refusal == ""
    assert state.strikes == {}


def test_scores_by_hand():
    gate = Outlier(warm_up=6, memory=6)
    _, verdict = judge(gate, taught(gate, rounds=2), [0, 3.06, 0, 0], "new")
    # the others are √1.04 long, this one three times that
    assert verdict.scores["norm"] == pytest.approx(3.06 / sqrt(1.04))
    assert verdict.scores["cosine"] == pytest.approx(0, abs=0.05)
    assert verdict.scores["usual_cosine"] == pytest.approx(1 / sqrt(1.04), abs=0.01)
    assert verdict.scores["spread"] == 0.1
    assert verdict.refusal == ""


def test_lengths_are_compared_per_root_step():
    """Four times the steps may go twice as far."""
    gate = Outlier(norm_limit=1.5)
    state = taught(gate)
    given = evolve(contribution(2, 0, 0, 0, view=device("new")), steps=40)
    _, verdict = gate.judge(state, given, MODEL, context())
    assert verdict.scores["norm"] == pytest.approx(1 / sqrt(1.04))
    assert verdict.refusal == ""


def test_a_hundredfold_is_too_long_and_three_of_them_are_quarantine():
    gate = Outlier()
    state = taught(gate)
    for strike in (1, 2, 3):
        state, verdict = judge(gate, state, [100, 0, 0, 0], "bad")
        long = "its difference is 98.1 times as long as is usual, 6 times is the limit"
        assert verdict.refusal == f"{long} (strike {strike} of 3)"
        assert verdict.quarantine == (strike == 3)


def test_a_flipped_sign_points_away():
    gate = Outlier()
    _, verdict = judge(gate, taught(gate), [-1, 0, 0, 0], "bad")
    assert verdict.refusal == (
        "its difference points away from the fleet's: its cosine is -1.00, smoothed -1.00; "
        "the other devices' 0.98 ± 0.10, -0.49 is the limit (strike 1 of 3)"
    )


def test_a_device_that_points_away_once_is_not_turned_away():
    gate = Outlier()
    state = taught(gate, rounds=4)
    state, verdict = judge(gate, state, [-1, 0.5, 0, 0], "h0")
    assert verdict.scores["cosine"] < -0.8
    assert verdict.refusal == ""


def test_a_device_that_points_away_a_little_all_the_time_is_turned_away():
    """Its cosine is about −.36, the limit for a single one −.49; the mean of four counts, and limits at −.25."""
    gate = Outlier()
    state, refusals = taught(gate, rounds=4), []
    for _ in range(6):
        state, verdict = judge(gate, state, [-0.36, 0.66, 0.66, 0], "bad")
        assert -0.48 < verdict.scores["cosine"] < -0.25
        refusals.append(verdict.refusal)
        for number, values in enumerate(HONEST):
            state, other = judge(gate, state, values, f"h{number}")
            assert other.refusal == ""
    assert refusals[:3] == [""] * 3
    sentence = "its differences keep pointing away from the fleet's: the mean of its last 4 cosines is -0."
    assert refusals[3].startswith(sentence)
    assert refusals[5].endswith("(strike 3 of 3)")
    assert verdict.quarantine


def test_a_device_of_its_own_that_does_not_go_against_the_fleet_is_let_in():
    gate = Outlier()
    state = taught(gate, rounds=4)
    for _ in range(8):
        state, verdict = judge(gate, state, [-0.1, 0.7, 0.7, 0], "other")
        assert verdict.refusal == ""


def test_where_the_fleet_does_not_agree_nobody_is_judged_by_direction():
    gate = Outlier(agreement=0.99)
    assert judge(gate, taught(gate), [-1, 0, 0, 0], "other")[1].refusal == ""


def test_good_behaviour_takes_strikes_back():
    gate = Outlier(forgiveness=0.5)
    state = taught(gate)
    state, _ = judge(gate, state, [100, 0, 0, 0], "h0")
    counts = []
    for _ in range(3):
        state, verdict = judge(gate, state, HONEST[0], "h0")
        counts.append(verdict.scores["strikes"])
    assert counts == [0.5, 0.0, 0.0]
    assert state.strikes == {}


def test_what_is_turned_away_does_not_turn_the_fleets_direction():
    gate = Outlier()
    state = taught(gate)
    before = state.direction["w"].copy()
    state, _ = judge(gate, state, [-900, 0, 0, 0], "bad")
    assert (state.direction["w"] == before).all()


def test_a_released_device_begins_anew():
    gate = Outlier(strikes=1)
    state, verdict = judge(gate, taught(gate), [100, 0, 0, 0], "bad")
    assert verdict.quarantine
    assert "bad" not in state.seen
    state, verdict = judge(gate, state, HONEST[0], "bad")
    assert (verdict.refusal, verdict.scores["strikes"]) == ("", 0.0)


def test_when_everybodys_updates_grow_it_follows():
    """Half of the fleet is refused once or twice; then the new length is the usual one."""
    gate = Outlier()
    state, quarantined = taught(gate), 0
    for _ in range(4):
        for number, values in enumerate(HONEST):
            state, verdict = judge(gate, state, [10 * value for value in values], f"h{number}")
            quarantined += verdict.quarantine
    assert (quarantined, verdict.refusal) == (0, "")


def test_two_devices_are_too_few_to_tell_who_is_wrong():
    gate = Outlier(warm_up=0)
    state = gate.init(MODEL)
    for name, size in (("a", 1), ("b", 1000)) * 5:
        state, verdict = judge(gate, state, [size, 0, 0, 0], name)
        assert verdict.refusal == ""


def test_narrow_widths_are_compared_over_what_they_cover():
    gate = Outlier()
    _, verdict = judge(gate, taught(gate), [1, 0], "narrow", width=0.5)
    assert verdict.scores["cosine"] == pytest.approx(1, abs=0.05)


def test_the_direction_is_cut_down_with_the_model():
    gate = Outlier()
    state = taught(gate)
    kept = Region({"w": (Axis(4, "hidden"),)}, Subnetwork({"hidden": (0, 3)}))
    expected = state.direction["w"][[0, 3]].tolist()
    assert gate.reshape(state, kept).direction["w"].tolist() == expected


def test_who_left_is_forgotten():
    gate = Outlier()
    state, _ = judge(gate, taught(gate), [100, 0, 0, 0], "h0")
    state, _ = gate.on(state, Left("h0"), context())
    assert "h0" not in state.seen
    assert state.strikes == {}


# -- peers -------------------------------------------------------------------------------------------------------


def test_the_spread_is_that_of_the_half_above_the_median():
    # deviations above 0.5: 0, 0.2, 0.4
    assert usual([-0.9, -0.8, 0.5, 0.7, 0.9]) == Usual(0.5, pytest.approx(1.4826 * 0.2))
    assert usual([0.3]) == Usual(0.3, 0.1)


@pytest.mark.parametrize(
    ("middle", "spread", "limit"), [(0.4, 0.1, -0.2), (0.4, 0.3, -0.5), (0.1, 0.1, None), (0.2, 0.1, -0.1)]
)
def test_what_counts_as_the_opposite(middle, spread, limit):
    found = Usual(middle, spread).opposite(agreement=0.2, spreads=3.0)
    assert found == (None if limit is None else pytest.approx(limit))


def test_the_longest_silent_devices_are_forgotten():
    known = {}
    for number in range(PEERS + 5):
        known = remember(known, f"d{number}", number)
    known = remember(known, "d7", 7)
    assert len(known) == PEERS
    assert next(iter(known)) == "d5"
    assert list(known)[-1] == "d7"
