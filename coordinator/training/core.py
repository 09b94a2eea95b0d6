"""What changes in a run, and the open work in it."""

from __future__ import annotations

from attrs import define, field, frozen

from coordinator.training.inputs import Closed
from coordinator.training.stopping import Standing
from coordinator.training.work import Work
from protocol.messages import Plan
from protocol.subnetwork import Axis, Region
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

    ``at`` names the open assignments of each device: there may be thousands. ``kept`` holds the weights that open work
    builds on, where they are needed, once for each version and part of the model; ``users`` counts who builds on them.
    ``wake_at`` is when the next Tick is due. While fields of plans are held (``holds``, by member), ``held`` has the
    plan that each device keeps them from.
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
    kept: dict[str, Weights] = field(factory=dict)
    users: dict[str, int] = field(factory=dict)
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
        self.put(number, work)
        self.at[work.device.id] = (*self.at.get(work.device.id, ()), number)

    def put(self, number: str, work: Work) -> None:
        """An assignment begins, or goes on in another way."""
        self._count(self.open.get(number), work)
        self.open[number] = work

    def end(self, number: str) -> Work:
        """Take an assignment out."""
        work = self.open.pop(number)
        self._count(work, None)
        left = tuple(other for other in self.at[work.device.id] if other != number)
        if left:
            self.at[work.device.id] = left
        else:
            del self.at[work.device.id]
        return work

    def close(self, number: str, state: str, reason: str) -> Closed:
        """An assignment ends without an update."""
        work = self.end(number)
        return Closed(number, work.device.id, state, reason, tell="commits" in work.features)

    def keep(self, plan: Plan, region: Region) -> None:
        """Somebody trains by ``plan``, over ``region``, from the weights as they are."""
        name = base_of(self.version, plan)
        if name not in self.kept:
            self.kept[name] = self.weights if region.whole else region.cut(self.weights)

    def _count(self, before: Work | None, after: Work | None) -> None:
        """Weights that no open work builds on any more go."""
        old, new = _bases(before), _bases(after)
        for name in sorted(new - old):  # a stored state is the same in every process
            self.users[name] = self.users.get(name, 0) + 1
        for name in old - new:
            self.users[name] -= 1
            if not self.users[name]:
                del self.users[name]
                self.kept.pop(name, None)


def _bases(work: Work | None) -> set[str]:
    return set() if work is None else {base_of(version, work.plan) for version in work.versions}


def base_of(version: int, plan: Plan) -> str:
    """By what name the part of a version is kept that a plan trains."""
    return f"{version}/{plan.width!r}/{plan.roll}"
