"""Two agents with one identity: a card that was copied. Told by heartbeats, which name the process they come from."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

REMEMBERED: Final = 8
"""Earlier processes of one device that are remembered."""
AGAIN: Final = 3600.0
"""Seconds between two complaints about one device."""


@define
class Twins:
    """A process that has ended never comes back: one that does has been running beside its successor."""

    _now: dict[str, str] = field(factory=dict)
    _before: dict[str, deque[str]] = field(factory=dict)
    _told: dict[str, float] = field(factory=dict)

    def heard(self, device: str, boot: str, now: float) -> str | None:
        """A sentence for the journal, at most once an hour, if the device is two."""
        present = self._now.get(device)
        if boot == present:
            return None
        self._now[device] = boot
        if present is None:
            return None
        before = self._before.setdefault(device, deque(maxlen=REMEMBERED))
        returned = boot in before
        if present not in before:
            before.append(present)
        if not returned or now - self._told.get(device, -AGAIN) < AGAIN:
            return None
        self._told[device] = now
        return (
            f"two agents report as {device} (processes {present} and {boot}): its card was copied. Revoke the device, "
            "and enrol each board with a token of its own"
        )

    def forget(self, device: str) -> None:
        for known in (self._now, self._before, self._told):
            known.pop(device, None)
