"""So many updates of one device within a minute and an hour, and no more."""

from __future__ import annotations

import pytest

from coordinator.strategies import Rate

from .scene import context, contribution, device, model

MODEL = model(0, 0, 0, 0)


def judged(gate, times, name="pi"):
    """Whether the updates of one device at these seconds are admitted."""
    state, admitted = gate.init(MODEL), []
    for at in times:
        state, verdict = gate.judge(state, contribution(1, 1, 1, 1, view=device(name)), MODEL, context(now=at))
        assert not verdict.quarantine
        admitted.append(not verdict.refusal)
    return admitted


def test_what_comes_at_once_is_admitted_up_to_the_limit():
    assert judged(Rate(per_minute=3), [100.0] * 5) == [True] * 3 + [False] * 2


def test_room_comes_back_evenly():
    # three a minute: one every 20 s
    assert judged(Rate(per_minute=3), [0, 0, 0, 19, 21, 22, 41]) == [True, True, True, False, True, False, True]


def test_a_steady_device_at_the_limit_is_never_refused():
    assert all(judged(Rate(per_minute=6), [10.0 * n for n in range(100)]))


def test_the_hour_counts_as_well():
    assert judged(Rate(per_minute=60, per_hour=4), [0, 60, 120, 180, 240, 1000]) == [True] * 4 + [False, True]


def test_what_was_refused_takes_no_room():
    assert judged(Rate(per_minute=2), [0, 0, 1, 2, 3, 31]) == [True, True, False, False, False, True]


def test_no_limit():
    assert all(judged(Rate(per_minute=0, per_hour=0), [0.0] * 1000))


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Rate(per_minute=1), "it sent more than 1 updates within a minute"),
        (Rate(per_minute=0, per_hour=1), "it sent more than 1 updates within an hour"),
    ],
)
def test_devices_are_counted_each_by_itself_and_told_why(gate, reason):
    state = gate.init(MODEL)
    for name, refusal in (("a", ""), ("b", ""), ("a", reason)):
        state, verdict = gate.judge(state, contribution(1, 1, 1, 1, view=device(name)), MODEL, context())
        assert verdict.refusal == refusal


def test_who_is_level_again_is_forgotten():
    gate = Rate()
    state = gate.init(MODEL)
    for number in range(50):
        given = contribution(1, 1, 1, 1, view=device(f"d{number}"))
        state, _ = gate.judge(state, given, MODEL, context(now=100.0 * number))
    assert [len(level) for level in state.level.values()] == [1, 1]
