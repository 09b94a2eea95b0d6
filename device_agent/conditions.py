"""When this device may train: what its owner allows, judged from what the board says now. Pure.

A condition on something that the board cannot measure is met: a ceiling for the temperature does not stop a board
without a thermometer. ``shoal-agent doctor`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Protocol

from attrs import frozen

from .errors import UsageError
from .setting import setting

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(2[0-4]|[01]\d):([0-5]\d)")
DAY = 24 * 60  # minutes


@frozen(kw_only=True)
class Conditions:
    """Settings ``[conditions]``; what is None asks for nothing.

    ``hours``: spans of local time such as ``22:00-06:00``. ``temperature`` in °C stops, and training goes on below
    ``temperature_resume`` (default: 5 °C less). ``memory_free`` in bytes. ``battery``: the least charge in percent
    while there is no mains; ``mains``: never without. ``unmetered``: not while the link is metered, which ``metered``
    says (auto: ask NetworkManager). ``nice`` of the process, ``cpu_share`` of the time training may compute.
    """

    hours: tuple[str, ...] | None = setting()
    temperature: float | None = setting(None, -50, 200)
    temperature_resume: float | None = setting(None, -50, 200)
    memory_free: int | None = setting(None, 0, 1 << 50)
    battery: float | None = setting(None, 0, 100)
    mains: bool = setting(False)
    unmetered: bool = setting(False)
    metered: str = setting("auto", one_of=("auto", "yes", "no"))
    nice: int = setting(0, 0, 19)
    cpu_share: float = setting(1.0, 0.01, 1)

    def __attrs_post_init__(self) -> None:
        for text in self.hours or ():
            span(text)
        if self.temperature_resume is not None and (
            self.temperature is None or self.temperature_resume > self.temperature
        ):
            raise UsageError(
                f"setting conditions.temperature_resume is {self.temperature_resume:g}, expected less than "
                f"conditions.temperature, which is {self.temperature}"
            )


class Board(Protocol):
    """What conditions are judged by; None is what the board cannot measure."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def memory_free(self) -> int | None: ...
    @property
    def battery(self) -> float | None: ...
    @property
    def mains(self) -> bool | None: ...
    @property
    def metered(self) -> bool | None: ...


def span(text: str) -> tuple[int, int]:
    """``22:00-06:00`` as minutes of the day, from and until; UsageError for anything else."""
    match = _SPAN.fullmatch(text)
    first, last = (
        (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (0, DAY + 1)
    )
    if match is None or last > DAY or first == last:
        raise UsageError(f"setting conditions.hours has {text!r}, expected spans such as 22:00-06:00")
    return first, last


def obstacles(
    conditions: Conditions, board: Board, minute: int, standing: Collection[str] = ()
) -> dict[str, str]:
    """Conditions that are not met, by name, each with a sentence; training may happen when there is none.

    ``minute`` of the local day, 0 … 1439. ``standing`` are the obstacles of the last judgement: a board that was too
    hot stays so until it has cooled down to ``temperature_resume``.
    """
    found = {
        "hours": _hours(conditions, minute),
        "temperature": _temperature(conditions, board.temperature, "temperature" in standing),
        "memory": _memory(conditions, board.memory_free),
        "power": _power(conditions, board.mains, board.battery),
        "link": "the link is metered" if conditions.unmetered and board.metered else None,
    }
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def _hours(conditions: Conditions, minute: int) -> str | None:
    if conditions.hours is None:
        return None
    for text in conditions.hours:
        first, last = span(text)
        if first <= minute < last or (last < first and (minute >= first or minute < last)):
            return None
    now = f"{minute // 60:02}:{minute % 60:02}"
    return f"it is {now}, training is allowed at {', '.join(conditions.hours)}"


def _temperature(conditions: Conditions, degrees: float | None, hot: bool) -> str | None:
    ceiling = conditions.temperature
    if ceiling is None or degrees is None:
        return None
    resume = ceiling - 5 if conditions.temperature_resume is None else conditions.temperature_resume
    if degrees > ceiling or (hot and degrees > resume):
        return f"the board has {degrees:.1f} °C, it stops above {ceiling:g} °C and goes on at {resume:g} °C"
    return None


def _memory(conditions: Conditions, free: int | None) -> str | None:
    if conditions.memory_free is None or free is None or free >= conditions.memory_free:
        return None
    return f"{free / 1e6:.0f} MB of memory are free, {conditions.memory_free / 1e6:.0f} MB are asked for"


def _power(conditions: Conditions, mains: bool | None, battery: float | None) -> str | None:
    if mains is not False:  # on mains, or a board that knows no other source of power
        return None
    if conditions.mains:
        return "the board is not on mains"
    if conditions.battery is not None and battery is not None and battery < conditions.battery:
        return f"the battery has {battery:g} %, at least {conditions.battery:g} % are asked for"
    return None
