"""Whether this device takes work, and if not, why: its owner, its access, its data, its conditions."""

from __future__ import annotations

from attrs import define, field

from . import conditions
from .conditions import Conditions
from .telemetry import Reading

STATES = ("revoked", "paused", "starting", "no-data", "waiting")
READING = "the training data has not been read yet"


@define
class Readiness:
    """What stands in the way of work. ``data`` is the sentence about unusable data, None when there is some."""

    conditions: Conditions
    paused: bool = False
    revoked: bool = False
    data: str | None = READING
    unmet: dict[str, str] = field(factory=dict)

    def judge(self, board: Reading, minute: int) -> None:
        """Judge the conditions anew at ``minute`` of the local day."""
        self.unmet = conditions.obstacles(self.conditions, board, minute, self.unmet)

    @property
    def state(self) -> str | None:
        """One of STATES for what stands in the way; None when nothing does."""
        if self.revoked:
            return "revoked"
        if self.paused:
            return "paused"
        if self.data is not None:
            return "starting" if self.data == READING else "no-data"
        return "waiting" if self.unmet else None

    @property
    def sentence(self) -> str | None:
        """Why, for a person; None when nothing stands in the way."""
        found = []
        if self.revoked:
            found.append("the coordinator has revoked this device: enrol it again with a new token")
        if self.paused:
            found.append("it was told to pause: 'shoal-agent resume' ends that, or the command resume")
        if self.data is not None:
            found.append(self.data)
        found += self.unmet.values()
        return "; ".join(found) or None
