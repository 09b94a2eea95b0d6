"""What this device may do now: the data it has, its owner's wishes, its conditions, its access. Tells why not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from attrs import asdict, frozen

from protocol.messages import CheckIn, DeviceEvent

from . import access, home, memory
from . import offer as offers
from .address import Address
from .clock import ADVICE, Clock, Compared
from .data.keeper import Found, Keeper, Spoiled
from .data.loading import Loaded
from .data.source import Source
from .gate import Gate
from .identity import Identity
from .readiness import READING, Readiness
from .settings import Settings
from .telemetry import Board, Reading

LOOK = 1.0  # seconds between two looks at what the owner wants
READ = 10.0  # seconds between two looks at the board

log = logging.getLogger(__name__)


@frozen
class Judged:
    """Whether the coordinator still knows this device; None if it could not be asked."""

    granted: bool | None


News = Found | Spoiled | Judged | Compared


class Duty:
    """``offer`` is the check-in to make, None while something is in the way; then the ``gate`` before training is
    shut. ``report`` takes what threads find out, which comes back through :meth:`heard`. ``deploys``: the device takes
    releases."""

    deploys = False

    def __init__(
        self,
        settings: Settings,
        source: Source,
        address: Address,
        backend: str,
        now: float,
        report: Callable[[object], None],
    ) -> None:
        self._settings = settings
        self._address = address
        self._report = report
        self.backend = backend
        self.gate = Gate()
        conditions = settings.conditions
        asks = conditions.unmetered or conditions.metered != "auto"
        self.board = Board(settings.home, conditions.metered if asks else None)
        self.reading: Reading = self.board.read(now)
        self.look_at = self._read_at = now
        self.loaded: Loaded | None = None
        self._ready_offer: CheckIn | None = None
        self._readiness = Readiness(settings.conditions)
        self._said: str | None = None
        self._keeper = Keeper(source, report)
        self.clock = Clock(address, report)

    def open(self) -> None:
        self._keeper.open()

    def close(self) -> None:
        self._keeper.close()

    @property
    def offer(self) -> CheckIn | None:
        return self._ready_offer if self.state is None else None

    @property
    def state(self) -> str | None:
        """One word for what is in the way, None when nothing is."""
        return self._readiness.state

    @property
    def reason(self) -> str | None:
        """Why, in a sentence."""
        return self._readiness.sentence

    def look(self, now: float) -> None:
        """See whether anything has changed at ``now`` (seconds, monotonic)."""
        self.look_at = now + LOOK
        self.clock.look(now)
        self._readiness.paused = home.paused(self._settings.home)
        if now >= self._read_at:
            self._read_at = now + READ
            self.reading = self.board.read(now)
            local = time.localtime()
            self._readiness.judge(self.reading, local.tm_hour * 60 + local.tm_min)
        self._settle()

    def heard(self, found: News) -> DeviceEvent | None:
        """Take what a thread has found out; what a person should read about it later."""
        event = None
        match found:
            case Found(loaded):
                event = self._found(loaded)
            case Spoiled(reason):
                self._readiness.data, self.loaded, self._ready_offer = reason, None, None
                event = DeviceEvent(kind="data-unusable", text=reason[:2000])
            case Judged(granted):
                # Who could not be asked has not changed its mind.
                self._readiness.revoked = granted is False or (granted is None and self._readiness.revoked)
            case Compared() if self.clock.heard(found, time.monotonic()):
                wrong = self.clock.complaint
                told = f"{wrong}: {ADVICE}" if wrong else "the clock is right again"
                event = DeviceEvent(kind="clock-wrong" if wrong else "clock-right", text=told)
        self._settle()
        return event

    def denied(self, known: Identity) -> None:
        """The broker shut us out: for good, or is something wrong with it? Only the coordinator knows."""

        def ask() -> None:
            self._report(Judged(access.granted(self._address, known.device, known.secret)))

        threading.Thread(target=ask, name="access", daemon=True).start()

    def facts(self) -> dict[str, Any]:
        """For the status file: what is worth writing at once."""
        return {
            "unmet": sorted(self._readiness.unmet),
            "problem": self._readiness.data,
            "clock": self.clock.complaint,
            "runtime": self.backend,
            "data": self.loaded.summary() if self.loaded else None,
        }

    def measured(self) -> dict[str, Any]:
        return asdict(self.reading)

    def _found(self, loaded: Loaded) -> DeviceEvent | None:
        recovered = self._readiness.data not in (None, READING)
        self.loaded, self._readiness.data = loaded, None
        self._ready_offer = offers.offer(self.backend, loaded, self._settings.privacy.label_histogram, self.deploys)
        samples = len(loaded.training)
        log.info("data samples=%d held_out=%d skipped=%d", samples, len(loaded.held_out), len(loaded.skipped))
        memory.give_back()
        if not recovered:
            return None
        return DeviceEvent(kind="data-usable", text=f"the training data can be used again: {samples} samples")

    def _settle(self) -> None:
        if self.state is None:
            self.gate.open()
        else:
            self.gate.shut()
        if self.reason != self._said:
            before, self._said = self._said, self.reason
            # Numbers in a reason change all the time: only its coming and going is news.
            if before is None or self._said is None or self.state != "waiting":
                log.info("readiness state=%s reason=%r", self.state or "ready", self._said)
