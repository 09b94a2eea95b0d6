"""The neutral width policy: every device trains the same width."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import evolve, frozen

from protocol.messages import Plan

from .base import Context, DeviceView, Explanation, Model, Stateless, Waiting, option


@frozen
class Fixed(Stateless):
    """``width`` in (0, 1] for everyone."""

    kind: ClassVar[str] = "fixed"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    width: float = option(1.0, 1 / 1024, 1)

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan, Explanation]:
        return state, evolve(plan, width=self.width), {"width": self.width}
