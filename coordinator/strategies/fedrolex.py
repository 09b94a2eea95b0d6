"""FedRolex: the part of the model that a device trains rolls on, so that all channels are trained alike.

Alam, Liu, Yan, Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction, NeurIPS 2022.
In round r a device of width p trains the ⌈p·C⌉ channels of every hidden group that begin at r mod C and wrap around.
Every group has its own C, so windows of different groups drift apart. Averaging over the devices that cover a
coordinate is the aggregators' business.

Choice: without rounds the window rolls with the version, or with the updates that were absorbed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import evolve, field, frozen

from protocol.messages import Plan

from .base import Context, DeviceView, Explanation, Model, Stateless, Waiting, choice, option
from .heterofl import check_widths

TURN = 1 << 30
"""Windows begin anew after so many channels: a plan holds no larger number."""


@frozen
class FedRolex(Stateless):
    """``widths`` per device group; ``width`` for devices of any other group. ``stride`` channels per version, or per
    absorbed update."""

    kind: ClassVar[str] = "fedrolex"
    writes: ClassVar[frozenset[str]] = frozenset({"width", "roll"})
    waiting: ClassVar[Waiting] = "none"
    widths: dict[str, float] = field(factory=dict, validator=check_widths)
    width: float = option(1.0, 1 / 1024, 1)
    per: str = choice("version", "absorbed")
    stride: int = option(1, 1, 1_000_000)

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan, Explanation]:
        width = self.widths.get(device.group, self.width)
        count = ctx.absorbed if self.per == "absorbed" else ctx.version
        roll = self.stride * count % TURN
        explanation: Explanation = {"group": device.group, "width": width, "roll": roll, "per": self.per}
        return state, evolve(plan, width=width, roll=roll), explanation
