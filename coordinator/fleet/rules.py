"""The rules of a rollout: its waves, when one is through, when all is off, and how long a device has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import asdict, field, fields, frozen

from coordinator.errors import ShoalError


def _refuse(name: str, value: object, expected: str) -> ShoalError:
    return ShoalError("bad-request", f"{name} is {value}, expected {expected}")


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Rules:
    """``waves`` are cumulative shares of the devices, the last of them 1. A wave is through once ``success`` of those
    that came to an end have succeeded, and ``soak`` seconds have passed in which they were not lost; with ``approval``
    an operator then lets the next begin.

    The rollout is aborted when ``abort_least`` devices and ``abort_share`` of those that came to an end failed, timed
    out or went back, once ``abort_after`` have come to an end. At most ``parallel`` are under way at a time. One device
    has ``seconds`` from when it takes the release and ``step`` between two reports; the switch may wait ``lock`` for
    training, and the trial takes ``trial``. What was not begun ``expiry`` seconds after the start is given up.

    A failure that another attempt may mend is tried again after ``back_off`` seconds, the last of them for all further
    ones; a wave waits for ``attempts`` of them. ``force``: offer it also to devices that went back from it once.
    """

    waves: tuple[float, ...] = field(default=(0.01, 0.1, 0.5, 1.0), converter=_floats)
    success: float = 0.95
    soak: float = 600.0
    approval: bool = False
    abort_least: int = 2
    abort_share: float = 0.1
    abort_after: int = 3
    parallel: int = 10
    seconds: float = 1800.0
    step: float = 300.0
    lock: float = 6 * 3600.0
    trial: float = 180.0
    expiry: float = 14 * 86_400.0
    attempts: int = 3
    back_off: tuple[float, ...] = field(default=(60.0, 300.0, 1500.0), converter=_floats)
    force: bool = False

    def __attrs_post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.waves), self.waves, strict=False))
        if not (1 <= len(self.waves) <= 20 and rising and self.waves[-1] == 1):
            raise _refuse("waves", list(self.waves), "1 to 20 rising shares, the last of them 1")
        if not (1 <= len(self.back_off) <= 20 and all(1 <= seconds <= 86_400 for seconds in self.back_off)):
            raise _refuse("back_off", list(self.back_off), "1 to 20 numbers from 1 to 86400 seconds")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise _refuse(name, getattr(self, name), f"{low} to {high}")

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Rules:
        """From JSON; ShoalError bad-request for a rule there is not."""
        known = {one.name for one in fields(cls)}
        if unknown := sorted(plain.keys() - known):
            raise _refuse("rule", repr(unknown[0][:40]), f"one of {', '.join(sorted(known))}")
        return cls(**plain)

    def plain(self) -> dict[str, Any]:
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_RANGES: Final[dict[str, tuple[float, float]]] = {
    "success": (0, 1),
    "soak": (0, 7 * 86_400),
    "abort_least": (1, 1_000_000),
    "abort_share": (0, 1),
    "abort_after": (1, 1_000_000),
    "parallel": (1, 10_000),
    "seconds": (10, 86_400),
    "step": (10, 86_400),
    "lock": (0, 7 * 86_400),
    "trial": (1, 86_400),
    "expiry": (60, 365 * 86_400),
    "attempts": (1, 100),
}
