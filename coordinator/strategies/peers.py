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
NORMAL = 1.4826
"""A normal distribution's standard deviation over the median of its absolute deviations."""


@frozen
class Usual:
    """``middle`` and ``spread`` > 0, a standard deviation where values are normally distributed."""

    middle: float
    spread: float


def remember(known: Mapping[str, T], device: str, value: T) -> dict[str, T]:
    """``known`` by device, with one device's newest value at the end."""
    return dict([*((name, old) for name, old in known.items() if name != device), (device, value)][-PEERS:])


def forget(known: Mapping[str, T], device: str) -> dict[str, T]:
    return {name: value for name, value in known.items() if name != device}


def usual(values: list[float], least: float) -> Usual:
    """Median, and the spread of the upper half, at least ``least``; of one value or more."""
    middle = median(values)
    above = [value - middle for value in values if value >= middle]
    return Usual(middle, max(NORMAL * median(above), least))
