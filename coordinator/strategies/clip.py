"""A bound on the norm of every step of the global model."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import evolve, frozen

from protocol.weights import norm, scale

from .base import Context, Model, Stateless, Step, option


@frozen
class Clip(Stateless):
    """Scale a step down to Euclidean norm ``norm`` if it is longer; covered or not, directions stay."""

    kind: ClassVar[str] = "clip"
    norm: float = option(10.0, 0, 1e12)

    def apply(self, state: Any, step: Step, model: Model, ctx: Context) -> tuple[Any, Step]:
        length = norm(step.difference)
        if length <= self.norm:
            return state, step
        return state, evolve(step, difference=scale(step.difference, self.norm / length))
