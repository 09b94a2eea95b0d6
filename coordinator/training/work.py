"""An assignment that is open: what its next update is relative to, and what it may look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from coordinator.strategies.base import Contribution, DeviceView, Reported
from coordinator.training.inputs import Offered
from protocol.messages import Merge, Plan, Update
from protocol.subnetwork import Region
from protocol.weights import Weights, add

FRESH = 8
"""Fresh models that may be on their way to one device; the oldest are forgotten."""


@frozen
class Sent:
    """A fresh model was sent, to be merged with these weights."""

    merge: float
    keep: float


@frozen
class Work:
    """``version`` is the newest that its training builds on, as far as updates have told; ``sent`` are the fresh models
    sent since, by version. ``commits`` have come; ``most_steps`` is the largest number of steps per commit that it was
    ever told, ``amends`` how often it was told. ``features`` are the agent's.

    ``base`` is the effective base over the plan's region, once it is no longer the weights of ``version``, and None
    where the aggregator needs none.
    """

    device: DeviceView
    version: int
    plan: Plan
    expires_at: float
    features: tuple[str, ...]
    most_steps: int
    commits: int = 0
    amends: int = 0
    sent: dict[int, Sent] = field(factory=dict)
    base: Weights | None = None

    def amended(self, plan: Plan) -> Work:
        return evolve(self, plan=plan, amends=self.amends + 1, most_steps=max(self.most_steps, plan.steps))

    def refreshed(self, version: int, sent: Sent) -> Work:
        newest = sorted({**self.sent, version: sent}.items())[-FRESH:]
        return evolve(self, sent=dict(newest))

    def continued(self, update: Update, base: Weights | None, expires_at: float) -> Work:
        """After a commit that was not the last; ``base`` is where it ended."""
        newest = update.lineage.newest
        left = {version: sent for version, sent in self.sent.items() if version > newest}
        return evolve(self, version=newest, commits=update.commit, sent=left, base=base, expires_at=expires_at)

    @property
    def newest_sent(self) -> int:
        """The newest version its training builds on or may come to build on."""
        return max(self.sent, default=self.version)

    @property
    def versions(self) -> set[int]:
        """The versions whose weights may still be needed to know its base."""
        return {*self.sent} if self.base is not None else {self.version, *self.sent}


def effective_base(work: Work, merges: tuple[Merge, ...], weights: Callable[[int], Weights]) -> Weights:
    """What a difference is relative to; ``weights`` gives those of a version over the part that the plan trains."""
    base = weights(work.version) if work.base is None else work.base
    for merge in merges:
        fresh, share = weights(merge.version), np.float32(merge.merge)
        base = {name: (1 - share) * value + share * fresh[name] for name, value in base.items()}
    return base


def end_of(base: Weights | None, difference: Weights) -> Weights | None:
    """Where a commit ended: the effective base of the next one."""
    return None if base is None else add(base, difference)


def contribution_of(
    work: Work, update: Update, region: Region, difference: Weights, base: Weights | None, version: int
) -> Contribution:
    """The update as gates and aggregators see it, while the model is at ``version``."""
    return Contribution(
        device=work.device,
        key=f"{update.assignment}/{update.commit}",
        difference=difference,
        region=region,
        base=base,
        base_version=update.lineage.newest,
        staleness=version - update.lineage.newest,
        samples=update.samples,
        steps=update.steps,
        loss=update.loss,
        plan=work.plan,
    )


def reported(work: Work, update: Update, region: Region) -> Reported:
    """The news of it for all members."""
    sizes = {name: int(np.prod(shape)) for name, shape in region.shapes.items()}
    timings = update.timings
    return Reported(
        device=work.device,
        plan=work.plan,
        version=update.lineage.newest,
        commit=update.commit,
        last=update.last or update.commit >= work.plan.commits,
        merges=update.lineage.merges,
        steps=update.steps,
        samples=update.samples,
        loss=update.loss,
        squared_gradient={n: v for n, v in update.squared_gradient.items() if n in sizes},
        squared_gradient_peak={n: v for n, v in update.squared_gradient_peak.items() if n in sizes},
        sizes=sizes,
        seconds_train=timings.train,
        seconds_link=timings.download + (timings.upload or 0.0),
        bytes_link=update.bytes_down + (update.size if timings.upload is not None else 0),
    )


def offer_of(number: str, work: Work, check_in: str, explanation: dict[str, Any], *, again: bool) -> Offered:
    """The work as its device is offered it."""
    return Offered(number, work.device.id, check_in, work.version, work.plan, work.expires_at, explanation, again)
