"""When a run ends by itself."""

from __future__ import annotations

from attrs import define, field, frozen

from coordinator.strategies.base import option
from coordinator.training.inputs import Evaluated
from protocol.messages import Update


@frozen
class Stop:
    """The first of these rules that holds ends the run; 0 is none.

    ``target`` is an accuracy, ``patience`` so many measured versions without a better accuracy, ``deadline`` seconds
    since the first device came, ``bytes`` what all updates cost the links, up and down. Accuracy is that on the control
    set where there is one, else on the test set, else what devices' hold-outs say together.
    """

    target: float = option(0.0, 0, 1)
    patience: int = option(0, 0, 1_000_000)
    deadline: float = option(0.0, 0, 1e9)
    bytes: int = option(0, 0, 1 << 60)


@frozen
class Local:
    """What a device's hold-out said last."""

    samples: int
    accuracy: float


@define
class Standing:
    """How far a run is, for its stop rules. ``began`` is when the first input came, ``waited`` counts the measured
    versions since the ``best``; ``local`` is what each device said last."""

    began: float | None = None
    bytes: int = 0
    best: float = -1.0
    waited: int = 0
    local: dict[str, Local] = field(factory=dict)

    def deadline(self, rules: Stop) -> float | None:
        return self.began + rules.deadline if rules.deadline and self.began is not None else None

    def delivered(self, device: str, update: Update) -> None:
        self.bytes += update.size + update.bytes_down
        if update.holdout is not None:
            self.local[device] = Local(update.holdout.samples, update.holdout.accuracy)

    def over(self, rules: Stop, now: float) -> str | None:
        """Why the run has to end, if time or bytes are used up."""
        deadline = self.deadline(rules)
        if deadline is not None and now >= deadline:
            return f"its {rules.deadline:g} s are over"
        if rules.bytes and self.bytes >= rules.bytes:
            return f"updates cost {self.bytes} bytes, the budget is {rules.bytes}"
        return None

    def measured(self, rules: Stop, target: float | None, given: Evaluated) -> tuple[str, str] | None:
        """State and reason in which the run has to end, if this version is good enough or the last of too many."""
        accuracy = given.accuracy if given.control_accuracy is None else given.control_accuracy
        goal = target or rules.target
        if goal and accuracy >= goal:
            return "finished", f"version {given.version} reached {accuracy:.4f}, the target is {goal:g}"
        self.waited = 0 if accuracy > self.best else self.waited + 1
        self.best = max(self.best, accuracy)
        if rules.patience and self.waited >= rules.patience:
            return "finished", f"{self.waited} measured versions were no better than {self.best:.4f}"
        return None

    def locally(self, rules: Stop, target: float | None, devices: int) -> tuple[str, str] | None:
        """The same by the devices' hold-outs, once at least half of ``devices`` have spoken."""
        goal = target or rules.target
        if not goal or not self.local or 2 * len(self.local) < devices:
            return None
        samples = sum(local.samples for local in self.local.values())
        accuracy = sum(local.samples * local.accuracy for local in self.local.values()) / samples
        if accuracy < goal:
            return None
        return "finished", f"{len(self.local)} devices' hold-outs say {accuracy:.4f}, the target is {goal:g}"
