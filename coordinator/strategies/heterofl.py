"""HeteroFL: a fixed width for every group of devices.

Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients,
ICLR 2021 (arXiv 2010.01264), static mode. Averaging over the devices that cover a coordinate is the aggregators'
business; the 1/p scaler is not used (without normalisation layers it diverges).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import evolve, field, frozen

from protocol.messages import Plan

from .base import Context, DeviceView, Explanation, Model, Stateless, Waiting, between, option


def _widths(instance: Any, attribute: Any, value: Mapping[str, float]) -> None:
    for width in value.values():
        between(1 / 1024, 1)(instance, attribute, width)


@frozen
class HeteroFL(Stateless):
    """``widths`` per device group; ``width`` for devices of any other group."""

    kind: ClassVar[str] = "heterofl"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    widths: dict[str, float] = field(factory=dict, validator=_widths)
    width: float = option(1.0, 1 / 1024, 1)

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan, Explanation]:
        width = self.widths.get(device.group, self.width)
        return state, evolve(plan, width=width), {"group": device.group, "width": width}
