"""Contributions held as they are: robust rules look at each of them, where a mean needs their sum alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.subnetwork import Region
from protocol.weights import Array, Weights

from .base import Context, Contribution, Contributor, MemberEffect, MemberEvent, Model, Propose, Step, option
from .time_limit import watched

MOST = 1000
"""Contributions that may be held: each takes the memory of a whole model."""


@frozen
class Taken:
    """A contribution's difference, full size, damped by the weight; NaN where its subnetwork does not reach."""

    difference: Weights
    contributor: Contributor


@frozen
class Held:
    """The contributions of a buffer, in the order they came; ``began`` is when the first did (seconds since 1970)."""

    taken: tuple[Taken, ...] = ()
    began: float | None = None

    @property
    def contributors(self) -> tuple[Contributor, ...]:
        return tuple(one.contributor for one in self.taken)


@frozen
class Buffered(ABC):
    """Holds ``goal`` contributions, each times (1 + staleness)^−``exponent``, before :meth:`combined` makes a step of
    them, times ``server_rate``; ``max_staleness`` in versions. With ``max_staleness`` 0 a buffer is a round, behind a
    barrier. One that is not full ``timeout`` seconds after its first (0: none) makes a step of what there is."""

    goal: int = option(10, 1, MOST)
    server_rate: float = option(1.0, 0, 100)
    exponent: float = option(0.5, 0, 10)
    max_staleness: int = option(100, 0, 1_000_000)
    timeout: float = option(0.0, 0, 1e7)

    @property
    def synchronous(self) -> bool:
        return not self.max_staleness

    def init(self, model: Model) -> Held:
        return Held()

    def on(self, state: Held, event: MemberEvent, ctx: Context) -> tuple[Held, list[MemberEffect]]:
        over, wishes = watched(self.timeout, state.began, event, ctx)
        if over:
            return Held(), [Propose(self.combined(state))]
        return state, [*wishes]

    def reshape(self, state: Held, kept: Region) -> Held:
        return Held(tuple(Taken(kept.cut(one.difference), one.contributor) for one in state.taken), state.began)

    def absorb(self, state: Held, model: Model, contribution: Contribution, ctx: Context) -> tuple[Held, Step | None]:
        weight = float((1 + contribution.staleness) ** -self.exponent)
        taken = Taken(_lifted(contribution, weight), Contributor(contribution.key, weight))
        state = Held((*state.taken, taken), ctx.now if state.began is None else state.began)
        if len(state.taken) < self.goal:
            return state, None
        return Held(), self.combined(state)

    @abstractmethod
    def combined(self, state: Held) -> Step:
        """The step of a full buffer."""

    def step(self, difference: Weights, coverage: Weights, contributors: tuple[Contributor, ...]) -> Step:
        """The step of a combined difference."""
        for value in difference.values():
            value *= np.float32(self.server_rate)
        return Step(difference, coverage, contributors)


def stacked(taken: Sequence[Taken], name: str) -> tuple[Array, NDArray[np.int64]]:
    """One tensor of all, [n, …], and by how many each coordinate is covered."""
    stack = np.stack([one.difference[name] for one in taken])
    return stack, np.asarray(np.count_nonzero(~np.isnan(stack), axis=0))


def _lifted(contribution: Contribution, weight: float) -> Weights:
    full = contribution.region.lift(contribution.difference)
    for name, covered in contribution.region.coverage().items():
        full[name] *= np.float32(weight)
        full[name][~covered] = np.nan
    return full
