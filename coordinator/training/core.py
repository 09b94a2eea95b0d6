"""What changes in a run, and the open work in it."""

from __future__ import annotations

from attrs import define, field, frozen

from coordinator.training.inputs import Closed
from coordinator.training.stopping import Standing
from coordinator.training.work import Work
from protocol.messages import Plan
from protocol.subnetwork import Axis
from protocol.weights import Weights


@frozen
class Question:
    """What was asked of somebody else, by the member at ``index``."""

    index: int
    computation: str
    arguments: dict[str, tuple[float, ...]]


@define
class Core:
    """Everything that changes, but for the members' states.

    ``at`` names the open assignments of each device: there may be thousands.
    ``bases`` holds the weights of versions that open work builds on. ``wake_at`` is when the next Tick is due. While
    fields of plans are held (``holds``, by member), ``held`` has the plan that each device keeps them from.
    """

    weights: Weights
    layout: dict[str, tuple[Axis, ...]]
    version: int = 0
    absorbed: int = 0
    inputs: int = 0
    offers: int = 0
    shape_epoch: int = 0
    state: str = "running"
    open: dict[str, Work] = field(factory=dict)
    at: dict[str, tuple[str, ...]] = field(factory=dict)
    bases: dict[int, Weights] = field(factory=dict)
    wake_at: float | None = None
    questions: dict[int, Question] = field(factory=dict)
    asked: int = 0
    holds: dict[int, tuple[str, ...]] = field(factory=dict)
    held: dict[str, Plan] = field(factory=dict)
    barrier: str | None = None
    quiet: bool = False
    standing: Standing = field(factory=Standing)

    def works(self, device: str) -> list[tuple[str, Work]]:
        """The open assignments of a device, by number."""
        return [(number, self.open[number]) for number in self.at.get(device, ())]

    def begin(self, number: str, work: Work) -> None:
        self.open[number] = work
        self.at[work.device.id] = (*self.at.get(work.device.id, ()), number)

    def end(self, number: str) -> Work:
        """Take an assignment out; its base is not forgotten yet."""
        work = self.open.pop(number)
        left = tuple(other for other in self.at[work.device.id] if other != number)
        if left:
            self.at[work.device.id] = left
        else:
            del self.at[work.device.id]
        return work

    def close(self, number: str, state: str, reason: str) -> Closed:
        """An assignment ends without an update."""
        work = self.end(number)
        self.forget_bases()
        return Closed(number, work.device.id, state, reason, tell="commits" in work.features)

    def forget_bases(self) -> None:
        """Drop the weights that no open work builds on."""
        wanted = {version for work in self.open.values() for version in work.versions}
        self.bases = {version: weights for version, weights in self.bases.items() if version in wanted}
