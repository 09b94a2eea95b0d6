"""Whether this board knows what time it is: its clock against the Date of the coordinator's answers.

A wrong clock keeps nobody from training, but hours of work, certificates and logs go by it.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from attrs import frozen

from .address import Address
from .errors import HomeError

SKEW = 300.0  # seconds by which the clock may be off
RARELY, OFTEN, SOON = 3600.0, 600.0, 60.0  # seconds until the next question: after right, wrong and no answers
TIMEOUT = 10.0  # seconds
ADVICE = "set it (timedatectl set-ntp true): certificates and hours go by it"


@frozen
class Compared:
    """``off``: seconds by which the clock is ahead of the coordinator's, None if that could not be found out."""

    off: float | None


def off(told: str | None, now: float) -> float | None:
    """The same, by the header Date, at ``now`` in seconds since 1970."""
    try:
        return now - parsedate_to_datetime(told or "").timestamp()
    except (TypeError, ValueError):
        return None


def complaint(seconds: float | None) -> str | None:
    """What is wrong with a clock that is so far off, None if nothing is."""
    if seconds is None or abs(seconds) <= SKEW:
        return None
    side = "ahead of" if seconds > 0 else "behind"
    return f"the clock is {abs(seconds) / 3600:.1f} hours {side} the coordinator's"


class Clock:
    """Asks now and then, and reports :class:`Compared` through ``report`` from a thread of its own."""

    def __init__(self, address: Address, report: Callable[[object], None]) -> None:
        self._address = address
        self._report = report
        self._ask_at = 0.0
        self.complaint: str | None = None

    def look(self, now: float) -> None:
        """Ask, if it is time to at ``now`` (seconds, monotonic)."""
        if now >= self._ask_at:
            self._ask_at = now + SOON
            threading.Thread(target=self._ask, name="clock", daemon=True).start()

    def hurry(self) -> None:
        """Ask at the next look."""
        self._ask_at = 0.0

    def heard(self, found: Compared, now: float) -> bool:
        """Take the answer; whether the clock has become right or wrong by it."""
        if found.off is None:
            return False
        was, self.complaint = self.complaint, complaint(found.off)
        self._ask_at = now + (OFTEN if self.complaint else RARELY)
        return (was is None) != (self.complaint is None)

    def _ask(self) -> None:
        try:
            connection = self._address.connect(TIMEOUT)
            try:
                connection.request("GET", self._address.prefix + "/api/v1/authority")
                told = connection.getresponse().getheader("Date")
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, HomeError):
            told = None
        self._report(Compared(off(told, time.time())))
