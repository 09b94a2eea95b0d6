"""LabelFlip: reports devices that seem to learn wrong labels.

A device whose labels are swapped moves the rows of the output layer that belong to them the other way (Tolpegin et
al.: Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020, arXiv 2007.08432, and Jebreel et al.,
LFighter, 2022, arXiv 2207.01982, look at these rows as well). The score is the cosine between a device's change of the
output layer and the running mean of the fleet's, smoothed over its updates; it is flagged where that turns against the
other devices' (by the rule of :mod:`.outlier`) while its loss is above theirs: wrong labels are hard to learn,
whereas a difference with the wrong sign comes with an honest loss. Of models without classes nothing is said.

Measured on digits split by Dirichlet(0.5), the smoothed cosine ranks devices with all labels reversed, or with their
two most frequent ones swapped, behind nearly all others (area under the curve 1.00 and 0.99), the loss less well (0.94
and 0.83 early on): it is as large where a device holds what the others lack. The flag is for gross errors: few labels
that are wrong among many leave the cosine positive.
"""

from __future__ import annotations

from statistics import median
from typing import Any, ClassVar

import numpy as np
from attrs import evolve, field, frozen

from protocol.subnetwork import CLASSES, Axis, Layout, Region, Subnetwork, groups
from protocol.weights import Weights, dot, norm

from .base import Context, Contribution, Explanation, Left, MemberEffect, MemberEvent, Model, Verdict, option
from .peers import forget, remember, usual

ACTIONS = ("report", "refuse", "quarantine")
ENOUGH = 4
"""Other devices that one is compared with at least."""
SMOOTHING = 0.4
NONE = 1e-30


@frozen
class Record:
    """What is known of a device: how its output layer agrees with the fleet's (−1 … 1), its loss, both smoothed."""

    agreement: float
    loss: float
    updates: int = 1


@frozen
class Outputs:
    """``direction`` is the running mean of ``heard`` changes of the output layer, full size, each of length 1."""

    direction: Weights
    heard: int = 0
    records: dict[str, Record] = field(factory=dict)


def _action(_: Any, attribute: Any, value: str) -> None:
    if value not in ACTIONS:
        raise ValueError(f"{attribute.name} is {value!r}, expected one of {', '.join(ACTIONS)}")


@frozen
class LabelFlip:
    """``cosine_limit`` in spreads; ``agreement`` is the median cosine that it takes to judge; ``least`` updates of a
    device before it is flagged; ``warm_up`` and ``memory`` in updates of all, of the running mean. ``action`` on a
    flagged one: report, refuse or quarantine."""

    kind: ClassVar[str] = "label_flip"
    cosine_limit: float = option(3.0, 0, 1e6)
    agreement: float = option(0.2, 0, 1)
    least: int = option(2, 1, 1000)
    warm_up: int = option(10, 0, 100_000)
    memory: int = option(20, 1, 100_000)
    action: str = field(default="report", validator=_action)

    def init(self, model: Model) -> Outputs:
        return Outputs({name: np.zeros_like(model.weights[name]) for name in _outputs(model.layout)})

    def on(self, state: Outputs, event: MemberEvent, ctx: Context) -> tuple[Outputs, list[MemberEffect]]:
        if isinstance(event, Left):
            state = evolve(state, records=forget(state.records, event.device))
        return state, []

    def reshape(self, state: Outputs, kept: Region) -> Outputs:
        return evolve(state, direction=_part(kept).cut(state.direction))

    def judge(self, state: Outputs, contribution: Contribution, model: Model, ctx: Context) -> tuple[Outputs, Verdict]:
        part = _part(contribution.region)
        change = {name: contribution.difference[name] for name in state.direction}
        length = norm(change)
        if not length:
            return state, Verdict()
        if state.heard < self.warm_up:
            return self._taught(state, part, change, length), Verdict()
        direction = part.cut(state.direction)
        cosine = dot(change, direction) / max(length * norm(direction), NONE)
        device = contribution.device.id
        record = _smoothed(state.records.get(device), cosine, contribution.loss)
        others = list(forget(state.records, device).values())
        state = evolve(state, records=remember(state.records, device, record))
        scores: Explanation = {"cosine": cosine, "agreement": record.agreement, "flag": ""}
        if flag := self._flag(record, others):
            against = _classes_against(part, change, direction)
            scores["flag"] = f"{flag}; most against it go the classes {' and '.join(map(str, against))}"
            return state, self._verdict(scores)
        return self._taught(state, part, change, length), Verdict(scores)

    def _flag(self, record: Record, others: list[Record]) -> str:
        if len(others) < ENOUGH or record.updates < self.least:
            return ""
        expected = usual([other.agreement for other in others])
        loss = median(other.loss for other in others)
        limit = expected.opposite(self.agreement, self.cosine_limit)
        if limit is None or record.agreement >= limit or record.loss <= loss:
            return ""
        cosines = f"cosine {record.agreement:.2f}, the other devices' {expected.middle:.2f} ± {expected.spread:.2f}"
        return f"it seems to learn wrong labels: {cosines}; loss {record.loss:.3g}, theirs {loss:.3g}"

    def _verdict(self, scores: Explanation) -> Verdict:
        if self.action == "report":
            return Verdict(scores)
        return Verdict(scores, str(scores["flag"]), quarantine=self.action == "quarantine")

    def _taught(self, state: Outputs, part: Region, change: Weights, length: float) -> Outputs:
        share = 1 / min(state.heard + 1, self.memory)
        before = part.cut(state.direction)
        part.add(state.direction, before, -share)
        part.add(state.direction, change, share / length)
        return evolve(state, heard=state.heard + 1)


def _outputs(layout: Layout) -> dict[str, tuple[Axis, ...]]:
    """The tensors whose last axis runs over the classes, without positions or parts."""
    return {name: axes for name, axes in layout.items() if axes and axes[-1].group == CLASSES}


def _part(region: Region) -> Region:
    """The region within the output layer alone."""
    layout = _outputs(region.layout)
    here = groups(layout)
    channels = {group: kept for group, kept in region.subnetwork.channels.items() if group in here}
    return Region(layout, Subnetwork(channels))


def _smoothed(old: Record | None, cosine: float, loss: float) -> Record:
    if old is None:
        return Record(cosine, loss)
    agreement = (1 - SMOOTHING) * old.agreement + SMOOTHING * cosine
    return Record(agreement, (1 - SMOOTHING) * old.loss + SMOOTHING * loss, old.updates + 1)


def _classes_against(part: Region, change: Weights, direction: Weights) -> list[int]:
    """The two classes whose rows have the most negative product with the fleet's."""
    product = {name: value * direction[name] for name, value in change.items()}
    by_class = [value.reshape(-1, value.shape[-1]).sum(0) for value in part.lift(product).values()]
    return sorted(int(index) for index in np.argsort(np.sum(by_class, axis=0))[:2])
