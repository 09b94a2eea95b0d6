"""When a device may train."""

from __future__ import annotations

import pytest
from attrs import evolve, frozen

from device_agent.conditions import Conditions, obstacles, span
from device_agent.errors import UsageError


@frozen
class Board:
    temperature: float | None = None
    memory_free: int | None = None
    battery: float | None = None
    mains: bool | None = None
    metered: bool | None = None


def blocked(conditions: Conditions, board: Board, minute: int = 0, standing: tuple[str, ...] = ()) -> list[str]:
    return sorted(obstacles(conditions, board, minute, standing))


def test_without_conditions_a_board_in_flames_may_train() -> None:
    assert blocked(Conditions(), Board(199, 1, 1, False, True)) == []


def test_what_cannot_be_measured_does_not_stand_in_the_way() -> None:
    everything = Conditions(temperature=60, memory_free=1 << 30, battery=99, mains=True, unmetered=True)
    assert blocked(everything, Board()) == []


@pytest.mark.parametrize(
    ("hours", "clock", "may"),
    [
        ("22:00-06:00", "21:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "00:00", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("12:00-13:30", "13:29", True),
        ("12:00-13:30", "13:30", False),
        ("00:00-24:00", "23:59", True),
        ("20:00-24:00", "00:00", False),
    ],
)
def test_hours(hours: str, clock: str, may: bool) -> None:
    minute = int(clock[:2]) * 60 + int(clock[3:])
    found = obstacles(Conditions(hours=(hours,)), Board(), minute)
    assert found == ({} if may else {"hours": f"it is {clock}, training is allowed at {hours}"})


def test_one_of_several_spans_is_enough() -> None:
    assert blocked(Conditions(hours=("01:00-02:00", "12:00-13:00")), Board(), 12 * 60) == []


@pytest.mark.parametrize("text", ["", "6-8", "25:00-26:00", "22:00", "10:00-10:00", "10:60-11:00", "10:00-24:30"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"conditions.hours has .*, expected spans such as 22:00-06:00"):
        span(text)


def test_a_hot_board_stays_out_until_it_has_cooled_down() -> None:
    conditions = Conditions(temperature=75)
    standing: tuple[str, ...] = ()
    story = []
    for degrees in (74, 75, 75.1, 73, 70.1, 70, 74, 76):
        standing = tuple(obstacles(conditions, Board(temperature=degrees), 0, standing))
        story.append(bool(standing))
    assert story == [False, False, True, True, True, False, False, True]


def test_the_sentence_about_heat_names_both_ends() -> None:
    conditions = Conditions(temperature=75, temperature_resume=60)
    found = obstacles(conditions, Board(temperature=80.25), 0)
    assert found == {"temperature": "the board has 80.2 °C, it stops above 75 °C and goes on at 60 °C"}


@pytest.mark.parametrize(
    ("conditions", "board", "may"),
    [
        (Conditions(memory_free=100), Board(memory_free=100), True),
        (Conditions(memory_free=100), Board(memory_free=99), False),
        (Conditions(mains=True), Board(mains=True), True),
        (Conditions(mains=True), Board(mains=False, battery=100), False),
        (Conditions(battery=40), Board(mains=False, battery=40), True),
        (Conditions(battery=40), Board(mains=False, battery=39), False),
        (Conditions(battery=40), Board(mains=True, battery=3), True),
        (Conditions(unmetered=True), Board(metered=False), True),
        (Conditions(unmetered=True), Board(metered=True), False),
        (Conditions(), Board(metered=True), True),
    ],
)
def test_memory_power_and_link(conditions: Conditions, board: Board, may: bool) -> None:
    assert (blocked(conditions, board) == []) is may


def test_every_obstacle_is_named() -> None:
    conditions = Conditions(hours=("01:00-02:00",), temperature=50, memory_free=9, mains=True, unmetered=True)
    board = Board(60, 1, 10, False, True)
    assert blocked(conditions, board) == ["hours", "link", "memory", "power", "temperature"]
    assert blocked(conditions, evolve(board, metered=False), 60) == ["memory", "power", "temperature"]
