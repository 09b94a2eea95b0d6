"""A simulated device's spool: what survives a crash, in memory."""

from __future__ import annotations

from attrs import define, field, frozen

from device_agent.conversation import Saved
from protocol.messages import Assignment, DeviceEvent, Update


@frozen
class Spooled:
    """An update without a receipt."""

    update: Update
    body: bytes = field(repr=False)
    region: str = field(repr=False)


@define
class Spool:
    """What survives a crash."""

    held: Assignment | None = None
    updates: dict[tuple[str, int], Spooled] = field(factory=dict)
    residual: bytes | None = None
    events: dict[int, DeviceEvent] = field(factory=dict)
    finished: list[str] = field(factory=list)

    def saved(self) -> Saved:
        updates = tuple((one.update, one.body) for one in self.updates.values())
        return Saved(self.held, updates, dict(self.events), tuple(self.finished[-64:]))
