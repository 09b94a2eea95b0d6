"""FedAvg: synchronous rounds behind a cohort barrier.

McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017 (arXiv
1602.05629):

    w ← w + Σ n_k Δ_k / Σ n_k

over the updates of one round, with n_k samples on device k. A round is one model version: :class:`Cohort` lets
``goal`` devices and some more (over-selection, Bonawitz et al., MLSys 2019) train it, :class:`FedAvg` averages the
first ``goal`` updates and makes the next version; who comes later is stale. With subnetworks the weighted mean runs per
coordinate over the updates that cover it. A round that is not complete ``timeout`` seconds after its first update goes
on with what there is. The papers draw the devices of a round at random; here they are those that ask first.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from attrs import evolve, field, frozen

from protocol.messages import Plan
from protocol.subnetwork import Region
from protocol.weights import Weights, zeros_like

from . import sums
from .base import (
    Context,
    Contribution,
    Contributor,
    DeviceView,
    Discarded,
    Expired,
    Explanation,
    Left,
    MemberEffect,
    MemberEvent,
    Model,
    Propose,
    Refused,
    Retry,
    Shapeless,
    Step,
    Waiting,
    option,
)
from .time_limit import watched


@frozen
class Round:
    """Sums over the round's updates: Σ n·Δ, Σ n and the number of updates, per coordinate.

    ``contributors`` are weighed by their samples n; ``began`` is when the first came (seconds since 1970).
    """

    total: Weights
    weight: Weights
    count: Weights
    contributors: tuple[Contributor, ...] = ()
    began: float | None = None


@frozen
class FedAvg:
    """``goal`` updates per round, weighted by the devices' samples; ``timeout`` seconds after the first (0: none).

    The weight of a contributor in history is its share n_k / Σ n_k of the round.
    """

    kind: ClassVar[str] = "fedavg"
    needs_base: ClassVar[bool] = False
    synchronous: ClassVar[bool] = True
    goal: int = option(10, 1, 100_000)
    timeout: float = option(0.0, 0, 1e7)
    max_staleness: int = option(0, 0, 0)

    def init(self, model: Model) -> Round:
        return Round(zeros_like(model.weights), zeros_like(model.weights), zeros_like(model.weights))

    def on(self, state: Round, event: MemberEvent, ctx: Context) -> tuple[Round, list[MemberEffect]]:
        over, wishes = watched(self.timeout, state.began, event, ctx)
        if over:
            return _empty(state.total), [Propose(_mean(state))]
        return state, [*wishes]

    def reshape(self, state: Round, kept: Region) -> Round:
        total, weight, count = (kept.cut(part) for part in (state.total, state.weight, state.count))
        return evolve(state, total=total, weight=weight, count=count)

    def absorb(self, state: Round, model: Model, contribution: Contribution, ctx: Context) -> tuple[Round, Step | None]:
        samples = float(contribution.device.samples)
        sums.add(contribution.region, state.total, contribution.difference, samples)
        contribution.region.fill(state.weight, samples)
        contribution.region.fill(state.count, 1)
        contributor = Contributor(contribution.key, samples)
        began = ctx.now if state.began is None else state.began
        state = evolve(state, contributors=(*state.contributors, contributor), began=began)
        if len(state.contributors) < self.goal:
            return state, None
        return _empty(state.total), _mean(state)


def _empty(like: Weights) -> Round:
    return Round(zeros_like(like), zeros_like(like), zeros_like(like))


def _mean(state: Round) -> Step:
    for name, total in state.total.items():
        np.divide(total, state.weight[name], out=total, where=state.weight[name] > 0)
    samples = sum(c.weight for c in state.contributors)
    return Step(state.total, state.count, tuple(Contributor(c.key, c.weight / samples) for c in state.contributors))


@frozen
class Rounds:
    """Who was let into the round of ``version``, and when others dropped out of it (seconds since 1970)."""

    version: int = 0
    admitted: tuple[str, ...] = ()
    dropped: dict[str, float] = field(factory=dict)

    def without(self, device: str, now: float) -> Rounds:
        if device not in self.admitted:
            return self
        left = tuple(admitted for admitted in self.admitted if admitted != device)
        return Rounds(self.version, left, {**self.dropped, device: now})


@frozen
class Cohort(Shapeless):
    """Admit ``goal`` devices and a share ``over_selection`` more to each round; others come back in ``pause`` seconds.

    A device trains once per round. One of which no update comes (its lease ends, it loses its work, sends something
    unsound or is revoked) makes room: for another at first, after two pauses for itself as well.
    """

    kind: ClassVar[str] = "cohort"
    writes: ClassVar[frozenset[str]] = frozenset()
    waiting: ClassVar[Waiting] = "rounds"
    goal: int = option(10, 1, 100_000)
    over_selection: float = option(0.3, 0, 10)
    pause: float = option(2.0, 0.1, 86_400)

    def init(self, model: Model) -> Rounds:
        return Rounds()

    def on(self, state: Rounds, event: MemberEvent, ctx: Context) -> tuple[Rounds, list[MemberEffect]]:
        match event:
            case Expired() | Refused() if event.version == state.version:
                state = state.without(event.device.id, ctx.now)
            case Left():
                state = state.without(event.device, ctx.now)
            case Discarded():
                state = Rounds(state.version)  # the round came to nothing: it is trained once more
        return state, []

    @property
    def room(self) -> int:
        """How many devices train in a round."""
        return math.ceil(self.goal * (1 + self.over_selection) - 1e-9)

    def shape(
        self, state: Rounds, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Rounds, Plan | Retry, Explanation]:
        if state.version != ctx.version:
            state = Rounds(ctx.version)
        explanation: Explanation = {"round": ctx.version, "admitted": len(state.admitted), "room": self.room}
        if device.id in state.admitted:
            return state, Retry(self.pause, f"it has had its turn in round {ctx.version}"), explanation
        if len(state.admitted) >= self.room:
            return state, Retry(self.pause, f"round {ctx.version} has its {self.room} devices"), explanation
        dropped = state.dropped.get(device.id)
        if dropped is not None and ctx.now < dropped + 2 * self.pause:
            return state, Retry(self.pause, f"it dropped out of round {ctx.version}: others go first"), explanation
        return evolve(state, admitted=(*state.admitted, device.id)), plan, explanation
