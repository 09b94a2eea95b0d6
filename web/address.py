"""What an address asks for: the parameters behind its question mark, checked and in types."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from attrs import frozen
from flask import request

from coordinator.errors import ShoalError
from coordinator.store import queries

PAGE_SIZE: Final = 50
CURVE_AXES: Final = ("time", "version", "bytes")
MEASURES: Final = ("accuracy", "loss")
LANES: Final = 40
"""Devices on one page of the timeline."""
WINDOWS: Final = (120, 300, 900, 3600)
"""Seconds of work that the timeline shows; the second is the usual one."""


@frozen
class Window:
    """A span of work in seconds since 1970, ``following`` the present or fixed; ``asked`` is its full length."""

    since: float
    until: float
    following: bool
    asked: int


def window(began: float, ended: float | None, now: float) -> Window:
    """What the URL asks for by ``until`` (s since 1970) and ``window`` (s); else the run's last minutes."""
    asked = whole("window", WINDOWS[1])
    if asked > 86400:
        raise ShoalError("bad-request", f"window is {asked}, expected 1 to 86400 seconds")
    fixed = number("until")
    if fixed is not None:
        return Window(fixed - asked, fixed, False, asked)
    until = now if ended is None else ended
    # A young run fills the picture.
    return Window(max(until - asked, min(began, until - WINDOWS[0] / 4)), until, ended is None, asked)


def device_filter() -> queries.DeviceFilter:
    return queries.DeviceFilter(
        status=text("status"), group=text("group"), text=text("text"), flag=text("flag"), tag=text("tag")
    )


def update_filter() -> queries.UpdateFilter:
    return queries.UpdateFilter(
        run=text("run"),
        device=text("device"),
        outcome=text("outcome"),
        width=number("width"),
        since=moment("since"),
        until=moment("until"),
        flagged=bool(text("flagged")),
    )


def order(usual: str) -> queries.Order:
    """How the list is sorted, and which page of it is shown."""
    return queries.Order.parse(text("sort") or usual, whole("page", 1), PAGE_SIZE)


def text(name: str) -> str:
    """A parameter without the space around it, empty if it is not given."""
    return request.args.get(name, "").strip()[:200]


def whole(name: str, usual: int) -> int:
    """A parameter that counts from 1."""
    given = text(name)
    if not given:
        return usual
    if not given.isdecimal() or not 1 <= int(given) <= 1_000_000_000:
        raise ShoalError("bad-request", f"{name} is {given[:40]!r}, expected a whole number from 1")
    return int(given)


def number(name: str) -> float | None:
    """A parameter that is a finite number."""
    given = text(name)
    try:
        value = float(given) if given else None
    except ValueError as error:
        raise ShoalError("bad-request", f"{name} is {given[:40]!r}, expected a number") from error
    if value is not None and not -1e11 < value < 1e11:
        raise ShoalError("bad-request", f"{name} is {given[:40]!r}, expected a finite number")
    return value


def moment(name: str) -> float | None:
    """A moment as forms send it, "2026-11-20T12:58", taken as UTC where it does not say."""
    given = text(name)
    try:
        at = datetime.fromisoformat(given) if given else None
        return None if at is None else at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise ShoalError("bad-request", f"{name} is {given[:40]!r}, expected a time like 2026-11-20T12:58") from error


def some(name: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """The words that a parameter which may stand several times names, in their own order; all if it names none."""
    given = {one.strip()[:200] for one in request.args.getlist(name)} - {""}
    if strange := sorted(given - set(allowed)):
        raise ShoalError("bad-request", f"{name} is {strange[0][:40]!r}, expected one of {', '.join(allowed)}")
    return tuple(word for word in allowed if word in given or not given)


def choice(name: str, allowed: Sequence[str]) -> str:
    """A parameter that is one of a few words, the first if it is not given."""
    given = text(name) or allowed[0]
    if given not in allowed:
        raise ShoalError("bad-request", f"{name} is {given[:40]!r}, expected one of {', '.join(allowed)}")
    return given
