"""What members want done, done: everything but proposing steps, which is the engine's own affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from attrs import evolve

from coordinator.strategies import events
from coordinator.training.core import Core, Question
from coordinator.training.inputs import Amended, Closed, Effect, Refreshed, Requested, Reshaped, Versioned
from coordinator.training.work import Sent
from protocol.messages import Plan
from protocol.subnetwork import Region, shrunk
from protocol.weights import add, digest, finite, norm

EVALUATE = "evaluate"
"""The computation that measures the newest model on the control set."""


def amend(core: Core, wish: events.Amend) -> Iterator[Effect]:
    """Change the plan that a device trains by."""
    if not wish.changes.keys() <= events.AMENDABLE:
        raise ValueError(f"{sorted(wish.changes.keys() - events.AMENDABLE)} of a plan cannot be amended")
    for number, work in core.works(wish.device):
        plan = evolve(work.plan, **wish.changes).within(work.features)
        if plan != work.plan and "commits" in work.features:
            work = core.open[number] = work.amended(plan)
            yield Amended(number, wish.device, work.amends, plan)


def send_fresh(core: Core, wish: events.SendFresh, keep: Callable[[Plan], None]) -> Iterator[Effect]:
    """Send the newest model to a device that trains on an older one; ``keep`` remembers what was sent."""
    for number, work in core.works(wish.device):
        if "refresh" in work.features and work.newest_sent < core.version:
            core.put(number, work.refreshed(core.version, Sent(wish.merge, wish.keep)))
            keep(work.plan)
            yield Refreshed(number, wish.device, core.version, work.plan, wish.merge, wish.keep)


def ask(core: Core, index: int, computation: str, arguments: Mapping[str, float | tuple[float, ...]]) -> Requested:
    """Ask for a computation; the answer will be for the member at ``index``."""
    listed = {name: value if isinstance(value, tuple) else (value,) for name, value in arguments.items()}
    core.asked += 1
    core.questions[core.asked] = Question(index, computation, listed)
    return Requested(core.asked, computation, listed)


def hold(core: Core, index: int, fields: tuple[str, ...]) -> None:
    """The member at ``index`` holds these fields of plans, and no others any more."""
    if not core.holds:
        core.held = {work.device.id: work.plan for work in core.open.values()}
    others = {holder: held for holder, held in core.holds.items() if holder != index}
    core.holds = {**others, index: fields} if fields else others


def held(core: Core, device: str, plan: Plan) -> tuple[Plan, dict[str, float | int | str | None]]:
    """The plan with the fields that are held as they were in the device's last one; and which that changed."""
    names = sorted({name for fields in core.holds.values() for name in fields})
    if not names:
        return plan, {}
    last = core.held.setdefault(device, plan)
    kept = {name: getattr(last, name) for name in names}
    return evolve(plan, **kept), {name: value for name, value in kept.items() if value != getattr(plan, name)}


def adopt(core: Core, wish: events.Adopt) -> Versioned:
    """Take weights as they are."""
    Region(core.layout).check(wish.weights)
    if not finite(wish.weights):
        raise ValueError("the weights to adopt are not finite")
    moved = add(wish.weights, core.weights, -1.0)
    core.weights = wish.weights
    core.version += 1
    return Versioned(core.version, digest(wish.weights), norm(moved), (), wish.reason)


def clear(core: Core, reason: str) -> Iterator[Closed]:
    """End all open work."""
    for number in list(core.open):
        yield core.close(number, "cancelled", reason)


def cut_down(core: Core, kept: Region, reason: str) -> Iterator[Effect]:
    """Keep only a region of the model. Open work ends: its channels mean something else from now on."""
    yield from clear(core, f"the model changed its shape: {reason}")
    before = norm(core.weights)
    core.weights, core.layout = kept.cut(core.weights), shrunk(core.layout, kept.subnetwork)
    core.shape_epoch += 1
    core.version += 1
    lost = float(np.sqrt(max(0.0, before**2 - norm(core.weights) ** 2)))
    yield Versioned(core.version, digest(core.weights), lost, (), reason)
    counts = {group: kept.subnetwork.count(group, 0) for group in kept.subnetwork.channels}
    yield Reshaped(core.version, core.shape_epoch, counts, reason)
