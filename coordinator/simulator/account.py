"""What a device has done with its time, its link and its battery."""

from __future__ import annotations

import math

from attrs import define, field

from coordinator.simulator.population import Energy


@define
class Tally:
    """Seconds training, transferring, away and, connected, doing nothing of it; bytes with their framing; joules."""

    training: float = 0.0
    transfer: float = 0.0
    waiting: float = 0.0
    away: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    joules: float = 0.0
    crashes: int = 0


@define
class Account:
    """Of one device; what it spends counts in ``fleet``, the sum over all, as well. ``level`` are joules left."""

    energy: Energy
    fleet: Tally
    own: Tally = field(factory=Tally)
    since: float = 0.0
    there: bool = False
    working: int = 0
    level: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.level = self._full

    def until(self, now: float) -> None:
        """Time goes by."""
        gone, self.since = now - self.since, now
        if not self.working and self.there:
            self.own.waiting += gone
        elif not self.working:
            self.own.away += gone
        if self._full:
            self.level = min(self._full, self.level + gone * self._gain)

    def link(self, now: float, there: bool) -> None:
        """The device can be reached from now on, or no more."""
        self.until(now)
        self.there = there

    def work(self, now: float, more: int) -> None:
        """So many things more are being done: training, transfers."""
        self.until(now)
        self.working += more

    def spend(self, training: float, transfer: float) -> None:
        """Seconds of training and of transfers."""
        joules = training * self.energy.training_watts + transfer * self.energy.transfer_watts
        for tally in (self.own, self.fleet):
            tally.training += training
            tally.transfer += transfer
            tally.joules += joules
        if self._full:
            self.level -= joules

    def count(self, up: int, down: int) -> None:
        """Bytes."""
        for tally in (self.own, self.fleet):
            tally.bytes_up += up
            tally.bytes_down += down

    @property
    def empty(self) -> bool:
        return bool(self._full) and self.level < 0

    @property
    def charging(self) -> float:
        """Seconds until the battery is half full; infinite if idling takes what charging gives."""
        return (self._full / 2 - self.level) / self._gain if self._gain > 0 else math.inf

    @property
    def _full(self) -> float:
        return self.energy.battery_wh * 3600

    @property
    def _gain(self) -> float:
        return self.energy.charging_watts - self.energy.idle_watts
