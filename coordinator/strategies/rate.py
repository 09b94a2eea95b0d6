"""Rate: turns away the updates of a device that sends more than it may.

The generic cell rate algorithm (ITU-T I.371): every update adds one interval to the time at which the device is level
again, and one that would take it further ahead than the limit allows is turned away. One number a device and limit.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from .base import Context, Contribution, Left, MemberEffect, MemberEvent, Model, Shapeless, Verdict, option
from .peers import forget

SPANS = {"minute": 60.0, "hour": 3600.0}


@frozen
class Pace:
    """By limit and device when it is level again (seconds since 1970); who is not named is."""

    level: dict[str, dict[str, float]] = field(factory=lambda: {span: {} for span in SPANS})


@frozen
class Rate(Shapeless):
    """At most ``per_minute`` and ``per_hour`` updates of one device; 0: any number."""

    kind: ClassVar[str] = "rate"
    per_minute: int = option(120, 0, 1_000_000)
    per_hour: int = option(3600, 0, 1_000_000)

    def init(self, model: Model) -> Pace:
        return Pace()

    def on(self, state: Pace, event: MemberEvent, ctx: Context) -> tuple[Pace, list[MemberEffect]]:
        if isinstance(event, Left):
            state = Pace({span: forget(level, event.device) for span, level in state.level.items()})
        return state, []

    def judge(self, state: Pace, contribution: Contribution, model: Model, ctx: Context) -> tuple[Pace, Verdict]:
        device, scores, levels = contribution.device.id, {}, {}
        for span, most in (("minute", self.per_minute), ("hour", self.per_hour)):
            behind = {name: at for name, at in state.level[span].items() if at > ctx.now}
            if most:
                interval = SPANS[span] / most
                level = max(behind.get(device, 0.0), ctx.now) + interval
                used = scores[f"share_of_{span}"] = (level - ctx.now) / SPANS[span]
                if used > 1 + 1e-9:
                    refusal = f"it sent more than {most} updates within {'an hour' if span == 'hour' else 'a minute'}"
                    return state, Verdict(dict(scores), refusal)
                behind[device] = level
            levels[span] = behind
        return Pace(levels), Verdict(dict(scores))
