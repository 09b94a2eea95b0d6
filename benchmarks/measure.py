"""Rows, and how a ratio to a reference is taken: alternating pairs on one pinned core."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from attrs import frozen

PAIRS = 31
UNSETTLED = 0.25  # of a reference's median: a wider spread makes a ratio worthless
_BLOCK_SECONDS = 0.02


class Unavailable(RuntimeError):
    """A benchmark cannot run here. The text says what is missing."""


@frozen
class Row:
    """One figure. ``ratio`` is how many times better than the reference; ``spread`` is (q3 - q1)/median of the
    reference, or of the value where there is none.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    spread: float | None = None

    @property
    def unsettled(self) -> bool:
        return self.reference is not None and self.spread is not None and self.spread > UNSETTLED

    def to_json(self) -> dict[str, Any]:
        """The six fields, and ``"unsettled": true`` where the reference did not hold still."""
        return attrs.asdict(self) | ({"unsettled": True} if self.unsettled else {})


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core, the last it may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def spread(values: list[float]) -> float:
    """Distance of the quartiles relative to the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def compare(name: str, ours: Callable[[], object], reference: Callable[[], object], pairs: int = PAIRS) -> Row:
    """Milliseconds per call of ``ours``, and how many times faster it is than ``reference``.

    A pair times a block of calls of each, back to back; who goes first alternates. The ratio is the median of the
    pairs' ratios.
    """
    blocks = tuple((call, _calls_per_block(call)) for call in (ours, reference))
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[side].append(_seconds(*blocks[side]))
    return Row(
        name,
        1e3 * statistics.median(seconds[0]),
        "ms",
        1e3 * statistics.median(seconds[1]),
        statistics.median(b / a for a, b in zip(*seconds, strict=True)),
        spread(seconds[1]),
    )


def _calls_per_block(call: Callable[[], object]) -> int:
    for _ in range(3):
        call()
    return max(1, round(_BLOCK_SECONDS / _seconds(call, 5)))


def _seconds(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
