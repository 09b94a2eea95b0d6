"""When a simulation ends: ``accuracy>=0.88 or 6h``, ``200 versions``, ``5000 updates or 2d``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from coordinator.errors import ShoalError
from coordinator.simulator.population import seconds

SMOOTH: Final = 3
"""Evaluations over which accuracy is averaged: a single one is too easily lucky."""

_ACCURACY = re.compile(r"accuracy\s*>=\s*(\d+(?:\.\d+)?)(\s*%)?")
_COUNT = re.compile(r"(\d+)\s*(versions?|updates?)")


@frozen
class Until:
    """Whichever comes first; ``accuracy`` is the mean of the last three evaluations, ``seconds`` are virtual."""

    accuracy: float = math.inf
    seconds: float = math.inf
    versions: float = math.inf
    updates: float = math.inf

    def met(self, gone: float, version: int, updates: int, accuracies: Sequence[float]) -> str:
        """What has been reached, in words; empty while nothing is."""
        if (now := smoothed(accuracies)) is not None and now >= self.accuracy:
            return f"accuracy {now:.4f} reached {self.accuracy:g}"
        if gone >= self.seconds:
            return f"{self.seconds / 3600:g} h are over"
        if version >= self.versions:
            return f"version {version} was reached"
        return f"{updates} updates have come" if updates >= self.updates else ""


def smoothed(accuracies: Sequence[float]) -> float | None:
    """Mean of the last three; None before there are three."""
    return sum(accuracies[-SMOOTH:]) / SMOOTH if len(accuracies) >= SMOOTH else None


def parse(text: str) -> Until:
    """Read a condition; ShoalError bad-request for what can never be reached, or might never end."""
    found: dict[str, float] = {}
    for term in re.split(r"\s+or\s+", text.strip()):
        name, value = _term(term)
        if name in found:
            raise ShoalError("bad-request", f"until: {name} is given twice in {text!r}")
        found[name] = value
    until = Until(**found)
    if not 0 < found.get("accuracy", 0.5) <= 1:
        raise ShoalError("bad-request", f"until: no model reaches an accuracy of {until.accuracy:g}, expected up to 1")
    if found.keys() == {"accuracy"}:
        raise ShoalError("bad-request", f"until: {text!r} may never come true, add a limit, e.g. '{text} or 24h'")
    if min(found.values()) <= 0:
        raise ShoalError("bad-request", f"until: {text!r} holds from the beginning, expected more than 0")
    return until


def _term(term: str) -> tuple[str, float]:
    if match := _ACCURACY.fullmatch(term):
        return "accuracy", float(match[1]) / (100 if match[2] else 1)
    if match := _COUNT.fullmatch(term):
        return match[2].rstrip("s") + "s", float(match[1])
    try:
        return "seconds", seconds(term)
    except ValueError:
        expected = "expected e.g. 'accuracy>=0.88 or 6h', '200 versions' or '5000 updates or 2d'"
        raise ShoalError("bad-request", f"until: {term!r} is no condition, {expected}") from None
