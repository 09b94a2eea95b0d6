"""HeteroFL: a fixed width for every group of devices, or one that is drawn anew every time.

Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients,
ICLR 2021 (arXiv 2010.01264), static and dynamic mode. Averaging over the devices that cover a coordinate is the
aggregators' business; the 1/p scaler is the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import evolve, field, frozen

from protocol.messages import Plan
from protocol.subnetwork import WIDTHS

from .base import Context, DeviceView, Explanation, Model, Stateless, Waiting, between, option


def check_widths(instance: Any, attribute: Any, value: Mapping[str, float] | tuple[float, ...]) -> None:
    """An attrs field validator: all of them are widths."""
    for width in value.values() if isinstance(value, Mapping) else value:
        between(1 / 1024, 1)(instance, attribute, width)


@frozen
class HeteroFL(Stateless):
    """``widths`` per device group; ``width`` for devices of any other group."""

    kind: ClassVar[str] = "heterofl"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    widths: dict[str, float] = field(factory=dict, validator=check_widths)
    width: float = option(1.0, 1 / 1024, 1)

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan, Explanation]:
        width = self.widths.get(device.group, self.width)
        return state, evolve(plan, width=width), {"group": device.group, "width": width}


@frozen
class HeteroFLDynamic(Stateless):
    """One of ``widths`` is drawn at every check-in, each with its share of ``probabilities``; none: all alike."""

    kind: ClassVar[str] = "heterofl_dynamic"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    widths: tuple[float, ...] = field(default=WIDTHS, validator=check_widths)
    probabilities: tuple[float, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.widths:
            raise ValueError("widths is empty, expected at least one width")
        if self.probabilities and len(self.probabilities) != len(self.widths):
            raise ValueError(f"there are {len(self.probabilities)} probabilities for {len(self.widths)} widths")
        if not all(0 <= share <= 1e9 for share in self.probabilities) or (self.probabilities and not any(self._shares)):
            raise ValueError(f"probabilities are {self.probabilities}, expected numbers from 0, not all of them 0")

    @property
    def _shares(self) -> tuple[float, ...]:
        return self.probabilities or (1.0,) * len(self.widths)

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan, Explanation]:
        odds = [share / sum(self._shares) for share in self._shares]
        drawn = int(ctx.rng.choice(len(odds), p=odds))
        width = self.widths[drawn]
        return state, evolve(plan, width=width), {"width": width, "probability": odds[drawn]}
