"""How fast a device trains and how fast its link is, as its updates tell.

Measurements are smoothed, but one that is off by more than half is a change of conditions (another program runs, the
link is worse) and believed at once. A change at one width is a change of the device: the estimates of its other widths
move by the same ratio, so that a device that was narrowed can be seen to recover.
"""

from __future__ import annotations

from math import log

from attrs import evolve, field, frozen

from protocol.messages import Plan

from .base import Model, Reported

SMOOTHING = 0.3
JUMP = 1.5
SECONDS, GOODPUT = (1e-9, 1e6), (1.0, 1e12)
"""What a device may claim: seconds per sample, bytes per second. Beyond lies a lie or a bug."""


@frozen
class Conditions:
    """``seconds`` of training per sample at each width that was measured, ``goodput`` of the link in bytes/s."""

    seconds: dict[float, float] = field(factory=dict)
    goodput: float | None = None

    def after(self, event: Reported) -> Conditions:
        """With what an update tells of them."""
        found, trained = self, event.steps * event.plan.batch
        if trained and event.seconds_train > 0:
            measured = clamped(event.seconds_train / trained, SECONDS)
            found = evolve(found, seconds=_trained(self.seconds, event.plan.width, measured))
        if event.seconds_link and event.bytes_link:
            measured = clamped(event.bytes_link / event.seconds_link, GOODPUT)
            found = evolve(found, goodput=followed(self.goodput, measured))
        return found

    def time(self, width: float, plan: Plan, model: Model) -> float | None:
        """Predicted seconds of one assignment of ``plan`` at ``width``: training, and the weights down and up.

        Training is scaled by FLOPs from the nearest width measured. None if none was.
        """
        if not self.seconds:
            return None
        near = min(self.seconds, key=lambda measured: abs(log(measured / width)))
        cost = model.costs[width]
        seconds = self.seconds[near] * cost.flops / model.costs[near].flops * plan.steps * plan.batch
        return seconds + 8 * cost.parameters / self.goodput if self.goodput else seconds


def _trained(seconds: dict[float, float], width: float, measured: float) -> dict[float, float]:
    old = seconds.get(width)
    new = followed(old, measured)
    ratio = 1.0 if old is None else new / old
    return {known: clamped(value * ratio, SECONDS) for known, value in seconds.items()} | {width: new}


def followed(old: float | None, new: float) -> float:
    """The estimate after a measurement."""
    if old is None or not old / JUMP <= new <= old * JUMP:
        return new
    return (1 - SMOOTHING) * old + SMOOTHING * new


def clamped(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
