"""What is usual among devices: the newest value of every device counts once, however often it speaks.

A fifth of the devices may say what they like: medians hardly move, and the spread is taken from the half that agrees
with the fleet more than the median does, where devices that turn against it do not stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TypeVar

from attrs import frozen

T = TypeVar("T")

PEERS = 200
"""Devices that are remembered; the longest silent are forgotten first."""
LEAST_SPREAD = 0.1
"""Of cosines: some devices that happen to agree are no reason to turn another away."""
NORMAL = 1.4826
"""A normal distribution's standard deviation over the median of its absolute deviations."""


@frozen
class Usual:
    """``middle`` and ``spread`` > 0, a standard deviation where values are normally distributed."""

    middle: float
    spread: float

    def opposite(self, agreement: float, spreads: float) -> float | None:
        """Below which a cosine turns against the fleet: nearer to the opposite of the median than to zero, and below it
        by so many spreads. None where the median is less than ``agreement``: then nobody can tell."""
        if self.middle < agreement:
            return None
        return min(-self.middle / 2, self.middle - spreads * self.spread)


def remember(known: Mapping[str, T], device: str, value: T) -> dict[str, T]:
    """``known`` by device, with one device's newest value at the end."""
    return dict([*((name, old) for name, old in known.items() if name != device), (device, value)][-PEERS:])


def forget(known: Mapping[str, T], device: str) -> dict[str, T]:
    return {name: value for name, value in known.items() if name != device}


def usual(cosines: list[float]) -> Usual:
    """Median, and the spread of the upper half; of one value or more."""
    middle = median(cosines)
    above = [value - middle for value in cosines if value >= middle]
    return Usual(middle, max(NORMAL * median(above), LEAST_SPREAD))
