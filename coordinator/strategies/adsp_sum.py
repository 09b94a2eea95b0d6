"""ADSP's parameter server: every update is added at once, divided by the number of devices at work.

Hu, Wang, Wu (AAAI 2020, see :mod:`.adsp`): W ← W + U_i / M. An update counts in full however stale it is: that all
devices commit equally often is what keeps the sum fair.

Choices: M counts, coordinate by coordinate, the devices at work that cover it, so that channels which only few devices
train take steps of full size. A device is at work until it was silent for ``patience`` seconds; M grows at once when
one joins and sinks smoothly when one falls silent (an exponential average over ``patience`` seconds), for steps that
grow suddenly may diverge. After the model was cut down all devices count as covering all of it until they commit.
With ``normalise`` an update is scaled to the average number of local steps (after FedNova, Wang et al., NeurIPS
2020): with unlike data at different speeds, the quick ones otherwise weigh more.
"""

from __future__ import annotations

import json
import math
from typing import ClassVar

import numpy as np
from attrs import define, evolve, field, frozen

from protocol.subnetwork import Region, Subnetwork
from protocol.weights import zeros_like

from .base import Context, Contribution, Contributor, Left, MemberEffect, MemberEvent, Model, Step, option

SMOOTHING = 0.1
NOBODY = 0.01
"""A band with less than a hundredth of a device in it is forgotten."""
WHOLE = "{}"


@frozen
class Band:
    """The devices that cover one subnetwork: how many there are, and their smoothed number as it was ``at`` a time."""

    live: int
    mean: float
    at: float

    def smoothed(self, now: float, patience: float) -> float:
        """M of this band: never less than who is at work."""
        return self.live + max(0.0, self.mean - self.live) * math.exp(-max(0.0, now - self.at) / patience)

    def changed(self, by: int, mean: float, now: float, patience: float) -> Band:
        """``by`` devices more; ``mean`` by how much that moves the average at once."""
        live = self.live + by
        return Band(live, max(float(live), self.smoothed(now, patience) + mean), max(now, self.at))


@frozen
class Member:
    """Which band a device is in, and when its newest update came (seconds since 1970)."""

    band: str
    seen: float


@define
class Census:
    """``bands`` by their channels as JSON; ``members`` by device, the one silent for longest first; ``steps`` is the
    average number of local steps of an update."""

    bands: dict[str, Band] = field(factory=dict)
    members: dict[str, Member] = field(factory=dict)
    steps: float | None = None

    def count(self, device: str, band: str, now: float, patience: float) -> None:
        """A device at work delivers in a band; who was silent for too long has been gone since then."""
        for gone, member in list(self.members.items()):
            if now - member.seen <= patience:
                break
            self.leave(gone, member.seen + patience, patience)
        before = self.members.pop(device, None)
        if before is None or before.band != band:
            # Who moves takes its part of the average along; who left and is back finds it reduced.
            if before is not None:
                self.bands[before.band] = self.bands[before.band].changed(-1, -1.0, now, patience)
            here = self.bands.get(band, Band(0, 0.0, now))
            self.bands[band] = here.changed(1, 0.0 if before is None else 1.0, now, patience)
        self.members[device] = Member(band, now)
        self.bands = {key: b for key, b in self.bands.items() if b.smoothed(now, patience) > NOBODY}

    def leave(self, device: str, now: float, patience: float) -> None:
        member = self.members.pop(device, None)
        if member is not None:
            self.bands[member.band] = self.bands[member.band].changed(-1, 0.0, now, patience)


@frozen
class AdspSum:
    """``patience`` seconds of silence until a device counts as gone: three periods; ``max_staleness`` in versions.

    A contributor's weight in history is 1/M of where all devices cover the model, with ``normalise`` times its factor.
    """

    kind: ClassVar[str] = "adsp_sum"
    needs_base: ClassVar[bool] = False
    synchronous: ClassVar[bool] = False
    patience: float = option(180.0, 0.1, 1e7)
    normalise: bool = False
    max_staleness: int = option(100_000, 0, 1_000_000)

    def init(self, model: Model) -> Census:
        return Census()

    def on(self, state: Census, event: MemberEvent, ctx: Context) -> tuple[Census, list[MemberEffect]]:
        if isinstance(event, Left):
            state.leave(event.device, ctx.now, self.patience)
        return state, []

    def reshape(self, state: Census, kept: Region) -> Census:
        if state.bands:
            bands = state.bands.values()
            at = max(band.at for band in bands)
            mean = sum(band.smoothed(at, self.patience) for band in bands)
            state.bands = {WHOLE: Band(sum(band.live for band in bands), mean, at)}
            state.members = {device: evolve(member, band=WHOLE) for device, member in state.members.items()}
        return state

    def absorb(
        self, state: Census, model: Model, contribution: Contribution, ctx: Context
    ) -> tuple[Census, Step | None]:
        region, own = contribution.region, _key(contribution.region.subnetwork)
        state.count(contribution.device.id, own, ctx.now, self.patience)
        factor = self._factor(state, contribution.steps)
        devices = {key: band.smoothed(ctx.now, self.patience) for key, band in state.bands.items()}
        if devices.keys() == {own}:
            by = np.float32(factor / devices[own])
            difference = {name: by * value for name, value in contribution.difference.items()}
        else:
            total = zeros_like(model.weights)
            for key, count in devices.items():
                Region(model.layout, _subnetwork(key)).fill(total, count)
            here = region.cut(total)
            difference = {
                name: np.float32(factor) * value / here[name] for name, value in contribution.difference.items()
            }
        coverage = zeros_like(model.weights)
        region.fill(coverage, 1)
        contributor = Contributor(contribution.key, factor / sum(devices.values()))
        return state, Step(region.lift(difference), coverage, (contributor,))

    def _factor(self, state: Census, steps: int) -> float:
        state.steps = float(steps) if state.steps is None else (1 - SMOOTHING) * state.steps + SMOOTHING * steps
        return state.steps / max(steps, 1) if self.normalise else 1.0


def _key(subnetwork: Subnetwork) -> str:
    return json.dumps(dict(sorted(subnetwork.channels.items())))


def _subnetwork(key: str) -> Subnetwork:
    listed = json.loads(key)
    return Subnetwork({group: tuple(kept) if isinstance(kept, list) else kept for group, kept in listed.items()})
