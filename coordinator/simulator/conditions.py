"""What one device meets with: how fast it trains, how fast its link is, when it is there. Seeded, in virtual time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.errors import ShoalError
from coordinator.simulator.population import DAY, Availability, Compute, Link
from coordinator.strategies.base import Cost

BITS = 8e-3
"""Kilobits per byte."""
SLOWEST = 0.02
"""A drawn rate is never below this share of its mean."""

Costs = Mapping[float, Cost]


class Speed:
    """Seconds that steps take. Factors that change with time have chances of their own and are the same whoever asks
    when."""

    def __init__(self, compute: Compute, costs: Costs, begin: float, rng: np.random.Generator) -> None:
        self._compute = compute
        self._costs = costs
        self._begin = begin
        self._rng, self._changing = rng, rng.spawn(1)[0]
        self._own = math.exp(rng.normal(0, compute.spread)) if compute.spread else 1.0
        self._samples: dict[float, float] = {}  # by width: every step asks
        self._turns, self._drawn = [begin], [1.0]  # from each moment on, a factor
        self._known_until = begin if compute.change_every else math.inf

    def assignment(self) -> float:
        """A factor on the time of everything in one assignment."""
        jitter = self._compute.jitter
        return math.exp(self._rng.normal(0, jitter)) if jitter else 1.0

    def step(self, width: float, batch: int, at: float) -> float:
        """Seconds of one training step on ``batch`` samples that begins at ``at``."""
        return (batch * self.sample(width) + self._compute.ms_per_step / 1e3) / self._factor(at)

    def sample(self, width: float) -> float:
        """Seconds per sample, before factors that change with time."""
        if width not in self._samples:
            self._samples[width] = self._sample(width)
        return self._samples[width]

    def _sample(self, width: float) -> float:
        table = self._compute.ms_per_sample
        cost = _flops(self._costs, width)
        if table is None:
            return cost / (self._compute.mflops * 1e6) * self._own
        known = min(table, key=lambda one: abs(math.log(one / width)))
        return table[known] / 1e3 * cost / _flops(self._costs, known) * self._own

    def _factor(self, at: float) -> float:
        compute = self._compute
        while at >= self._known_until:
            self._turns.append(self._known_until)
            self._drawn.append(self._changing.uniform(compute.change_low, compute.change_high))
            self._known_until += self._changing.exponential(compute.change_every)
        drawn = self._drawn[bisect_right(self._turns, at) - 1] if at >= self._begin else 1.0
        place = bisect_right([moment for moment, _ in compute.changes], at - self._begin)
        return drawn * (compute.changes[place - 1][1] if place else 1.0)


def _flops(costs: Costs, width: float) -> float:
    """FLOPs of a sample at a width; those of widths that have no entry follow the nearest one by their square."""
    nearest = min(costs, key=lambda one: abs(math.log(one / width)))
    return costs[nearest].flops * (width / nearest) ** 2


class Wire:
    """Seconds that transfers take."""

    def __init__(self, link: Link, rng: np.random.Generator) -> None:
        self._link = link
        self._rng = rng
        self._trace = _trace(link.trace) if link.trace else None
        self._offset = rng.uniform(0, self._trace.length) if self._trace else 0.0
        self.latency = link.latency

    def down(self, size: int, at: float) -> float:
        """Seconds in which ``size`` bytes come from the coordinator."""
        return self._transfer(size, at, self._link.down_kbps, 0)

    def up(self, size: int, at: float) -> float:
        return self._transfer(size, at, self._link.up_kbps, 1)

    def message(self, size: int) -> float:
        """Seconds of a short message to the coordinator, at the mean rate."""
        rate = self._trace.mean if self._trace else self._link.up_kbps
        return self.latency + (size * BITS / rate if rate else 0.0)

    def _transfer(self, size: int, at: float, mean: float, direction: int) -> float:
        if self._trace is not None:
            return self.latency + self._trace.seconds(size * BITS, at + self._offset, direction)
        if not mean:
            return self.latency
        rate = mean
        if self._link.deviation:
            rate = max(SLOWEST * mean, self._rng.normal(mean, self._link.deviation * mean))
        return self.latency + self._with_outages(size * BITS / rate)

    def _with_outages(self, busy: float) -> float:
        """Outages begin as often as their share of the time and their mean length say; one may be going on."""
        share, length = self._link.outage, self._link.outage_length
        if not share:
            return busy
        often = busy * share / ((1 - share) * length)
        outages = self._rng.poisson(often) + (self._rng.random() < share)
        return busy + float(self._rng.exponential(length, outages).sum())


class Trace:
    """Recorded rates, over and over. ``carried`` [n + 1, 2] are the kilobits carried by ``moments`` [n + 1]."""

    def __init__(self, moments: NDArray[np.float64], rates: NDArray[np.float64]) -> None:
        steps = np.diff(moments, append=2 * moments[-1] - moments[-2])
        self.length = float(steps.sum())
        self.mean = float((rates * steps[:, None]).sum(0).min() / self.length)
        self._moments = np.concatenate([[0.0], np.cumsum(steps)])
        self._carried = np.concatenate([np.zeros((1, 2)), np.cumsum(rates * steps[:, None], axis=0)])

    def seconds(self, kilobits: float, at: float, direction: int) -> float:
        """How long ``kilobits`` take from moment ``at``."""
        carried, begin = self._carried[:, direction], at % self.length
        wanted = float(np.interp(begin, self._moments, carried)) + kilobits
        rounds, rest = divmod(wanted, float(carried[-1]))
        return float(rounds * self.length + np.interp(rest, carried, self._moments) - begin)


@cache
def _trace(path: str) -> Trace:
    try:
        table = np.loadtxt(Path(path), delimiter=",", ndmin=2, comments="#", dtype=np.float64)
    except (OSError, ValueError) as error:
        sentence = f"The trace {path} is no CSV of seconds, down and up in kbit/s: {error}"
        raise ShoalError("bad-request", sentence) from error
    if table.shape[1] != 3 or len(table) < 2 or not np.isfinite(table).all() or (np.diff(table[:, 0]) <= 0).any():
        raise ShoalError("bad-request", f"The trace {path} needs rows of seconds (ascending), down and up in kbit/s")
    if (table[:, 1:] < 0).any() or not table[:, 1:].any(axis=0).all():
        raise ShoalError("bad-request", f"The trace {path} has rates below 0, or a direction in which nothing travels")
    return Trace(table[:, 0], table[:, 1:])


class Presence:
    """When a device comes and goes, and when it crashes."""

    def __init__(self, availability: Availability, begin: float, rng: np.random.Generator) -> None:
        self._given = availability
        self._rng = rng
        self._shift = rng.uniform(-1, 1) * availability.shift if availability.shift else 0.0
        self._on = availability.away == 0 or rng.random() < availability.on / (availability.on + availability.away)
        self._turn = begin + self._stay() if availability.away else math.inf

    def there(self, at: float) -> bool:
        """Whether it can be reached; ask in the order of time."""
        while at >= self._turn:
            self._on = not self._on
            self._turn += self._stay()
        return self._on and self._in_window(at)

    def next(self, at: float) -> float:
        """When that may change, after ``at``; infinite if never."""
        self.there(at)
        edges = [self._turn]
        if self._given.windows:
            day = (at + self._shift) % DAY
            for begin, end in self._given.windows:
                edges += [at + ((edge - day) % DAY or DAY) for edge in (begin, end)]
        return min(edges)

    def crash(self, at: float) -> float:
        """When it crashes next, after ``at``."""
        return at + self._rng.exponential(DAY / self._given.crashes) if self._given.crashes else math.inf

    def _stay(self) -> float:
        return float(self._rng.exponential(self._given.on if self._on else self._given.away))

    def _in_window(self, at: float) -> bool:
        if not self._given.windows:
            return True
        day = (at + self._shift) % DAY
        return any(begin <= day < end or begin <= day + DAY < end for begin, end in self._given.windows)


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """An independent stream for one purpose of one device."""
    return np.random.default_rng([seed, *purpose.encode(), number])
