"""Stale synchronous parallel: nobody runs more than a bound ahead of the slowest; with bound 0 this is BSP.

Ho et al.: More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server, NeurIPS 2013. A device may
start when its number of updates, sound or not, is at most ``bound`` above the smallest number of the devices at work.
One counts as at work until ``patience`` seconds after it last checked in or delivered, or until its lease ends, so that
who is gone does not hold the others for ever; a newcomer, and one that comes back, starts at the smallest number.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from protocol.messages import Plan

from .base import (
    Context,
    DeviceView,
    Expired,
    Explanation,
    Left,
    MemberEffect,
    MemberEvent,
    Model,
    Refused,
    Reported,
    Retry,
    Shapeless,
    Waiting,
    option,
)


@frozen
class Pace:
    """A device's updates so far, and when it was last heard of (seconds since 1970)."""

    updates: int
    seen: float


@frozen
class Paces:
    """The devices at work."""

    devices: dict[str, Pace]


@frozen
class Ssp(Shapeless):
    """``bound`` updates ahead at most; ``pause`` seconds until a device that is too far ahead asks again; ``patience``
    seconds of silence until a device counts as gone: more than an assignment takes."""

    kind: ClassVar[str] = "ssp"
    writes: ClassVar[frozenset[str]] = frozenset()
    bound: int = option(4, 0, 1_000_000)
    pause: float = option(2.0, 0.1, 86_400)
    patience: float = option(900.0, 1, 1e7)

    @property
    def waiting(self) -> Waiting:
        return "bound" if self.bound else "rounds"

    def init(self, model: Model) -> Paces:
        return Paces({})

    def on(self, state: Paces, event: MemberEvent, ctx: Context) -> tuple[Paces, list[MemberEffect]]:
        match event:
            case Left():
                state.devices.pop(event.device, None)
            case Expired():
                state.devices.pop(event.device.id, None)
            case Reported() | Refused():  # both are a turn: one that sends nonsense must not hold up the rest
                updates, _ = self._heard(state, event.device.id, ctx)
                state.devices[event.device.id] = Pace(updates + 1, ctx.now)
        return state, []

    def shape(
        self, state: Paces, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Paces, Plan | Retry, Explanation]:
        updates, least = self._heard(state, device.id, ctx)
        ahead = updates - least
        explanation: Explanation = {"ahead": ahead, "bound": self.bound}
        if ahead > self.bound:
            return state, Retry(self.pause, f"{ahead} updates ahead of the slowest, at most {self.bound}"), explanation
        return state, plan, explanation

    def _heard(self, state: Paces, device: str, ctx: Context) -> tuple[int, int]:
        """The device is at work, others may be gone: its number of updates, and the smallest of all."""
        for gone in [d for d, pace in state.devices.items() if ctx.now - pace.seen > self.patience]:
            del state.devices[gone]
        least = min((pace.updates for pace in state.devices.values()), default=0)
        updates = state.devices[device].updates if device in state.devices else least
        state.devices[device] = Pace(updates, ctx.now)
        return updates, least
