"""Rounds and buffers that do not wait for ever."""

from __future__ import annotations

from .base import Context, MemberEvent, Reported, Tick, WakeAt


def watched(timeout: float, began: float | None, event: MemberEvent, ctx: Context) -> tuple[bool, list[WakeAt]]:
    """Whether at this event a collection is over that ``began`` with its first update (seconds since 1970, None where
    there is none yet) and may take ``timeout`` seconds (0: for ever); else when to look again."""
    if not timeout:
        return False, []
    if isinstance(event, Reported) and began is None:
        return False, [WakeAt(ctx.now + timeout)]  # it begins when this update is absorbed
    if isinstance(event, Tick) and began is not None:
        if ctx.now >= began + timeout:
            return True, []
        return False, [WakeAt(began + timeout)]
    return False, []
