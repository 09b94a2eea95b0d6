"""A simulated device's spool: what survives a crash, in memory."""

from __future__ import annotations

from attrs import define, field, frozen

from coordinator.simulator.course import Stand
from device_agent.conversation import Commit, Saved
from protocol.messages import Assignment, DeviceEvent, Update


@frozen
class Spooled:
    """An update without a receipt."""

    update: Update
    body: bytes = field(repr=False)
    region: str = field(repr=False)


@define
class Spool:
    """What survives a crash. Of the assignment held ``commits`` were made, and training stood at ``stand`` then."""

    held: Assignment | None = None
    commits: int = 0
    stand: Stand | None = None
    updates: dict[tuple[str, int], Spooled] = field(factory=dict)
    residual: bytes | None = None
    events: dict[int, DeviceEvent] = field(factory=dict)
    finished: list[str] = field(factory=list)

    def saved(self) -> Saved:
        updates = tuple((one.update, one.body) for one in self.updates.values())
        return Saved(self.held, self.commits, updates, dict(self.events), tuple(self.finished[-64:]))

    def hold(self, assignment: Assignment) -> None:
        if self.held is None or self.held.id != assignment.id:
            self.commits, self.stand = 0, None
        self.held = assignment

    def drop(self, finished: str | None) -> None:
        self.held, self.commits, self.stand = None, 0, None
        if finished is not None:
            self.finished.append(finished)

    def commit(self, made: Commit, stand: Stand | None) -> None:
        """``stand`` is where training goes on, unless it was the last commit."""
        self.updates[made.update.key] = Spooled(made.update, made.body, made.region)
        self.residual = made.residual
        if made.checkpoint is None:
            self.drop(made.update.assignment)
        else:
            self.commits, self.stand = made.checkpoint.position.commit, stand
