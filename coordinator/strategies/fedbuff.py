"""FedBuff: buffered asynchronous aggregation.

Nguyen et al.: Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022 (arXiv 2106.06639). After K
updates the model moves by η·(1/K)·Σ s(τ)Δ with s(τ) = (1 + τ)^−a. With subnetworks the sum and the count run per
coordinate over the updates that cover it. The divisor is the count and not Σ s(τ), so that a buffer that is stale
as a whole takes a smaller step.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from protocol.subnetwork import Region
from protocol.weights import Weights, zeros_like

from . import sums
from .base import Context, Contribution, Contributor, MemberEffect, MemberEvent, Model, Step, option


@frozen
class Buffer:
    """Running sums over the buffered updates: Σ s·Δ and the number of updates, per coordinate."""

    total: Weights
    count: Weights
    contributors: tuple[Contributor, ...]


@frozen
class FedBuff:
    """``goal`` K updates per step, ``server_rate`` η, ``exponent`` a, ``max_staleness`` in versions."""

    kind: ClassVar[str] = "fedbuff"
    needs_base: ClassVar[bool] = False
    synchronous: ClassVar[bool] = False
    goal: int = option(10, 1, 100_000)
    server_rate: float = option(1.0, 0, 100)
    exponent: float = option(0.5, 0, 10)
    max_staleness: int = option(100, 0, 1_000_000)

    def init(self, model: Model) -> Buffer:
        return Buffer(zeros_like(model.weights), zeros_like(model.weights), ())

    def on(self, state: Buffer, event: MemberEvent, ctx: Context) -> tuple[Buffer, list[MemberEffect]]:
        return state, []

    def reshape(self, state: Buffer, kept: Region) -> Buffer:
        return Buffer(kept.cut(state.total), kept.cut(state.count), state.contributors)

    def absorb(
        self, state: Buffer, model: Model, contribution: Contribution, ctx: Context
    ) -> tuple[Buffer, Step | None]:
        weight = float((1 + contribution.staleness) ** -self.exponent)
        sums.add(contribution.region, state.total, contribution.difference, weight)
        contribution.region.fill(state.count, 1)
        contributors = (*state.contributors, Contributor(contribution.key, weight))
        if len(contributors) < self.goal:
            return Buffer(state.total, state.count, contributors), None
        for name, total in state.total.items():
            np.divide(total, state.count[name], out=total, where=state.count[name] > 0)
            total *= np.float32(self.server_rate)
        return self.init(model), Step(state.total, state.count, contributors)
