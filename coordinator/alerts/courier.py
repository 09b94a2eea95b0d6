"""Delivery: one thread for every channel, so that none waits for another, and nobody waits for any.

A channel that cannot be reached keeps its place in the journal: what happens meanwhile becomes one message once it is
back. A message may arrive twice if the coordinator dies at the wrong moment, with the same id; it is never lost.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from attrs import evolve
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.alerts import record
from coordinator.alerts.channels import Channel, Undelivered, channels
from coordinator.alerts.notice import Notice, Occurrence, compose, ripe, wait
from coordinator.alerts.record import Standing
from coordinator.alerts.rules import Rules
from coordinator.errors import ShoalError
from coordinator.services import Store

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at the journal."""
FAREWELL: Final = 5.0
"""Seconds that a delivery may take to end."""
SAVE: Final = 300.0
"""Seconds after which a place in a journal without news is noted."""


class Writer(Protocol):
    def write(self, change: Callable[[Session], Any]) -> Any:
        """See :class:`coordinator.services.Commands`."""


class Courier(threading.Thread):
    """Brings what the rules want to one channel. ``look`` is one round of its thread."""

    def __init__(
        self, channel: Channel, rules: Rules, database: Store, writer: Writer, clock: Callable[[], float]
    ) -> None:
        super().__init__(name=f"alerts {channel.name}", daemon=True)
        self._channel = channel
        self._rules = rules
        self._database = database
        self._writer = writer
        self._clock = clock
        self._chance = random.Random()  # noqa: S311 - spreads attempts, guards nothing
        self._stands: Standing | None = None
        self._told: dict[tuple[str, str], float] = {}
        self._saved = 0.0
        self._ending = threading.Event()

    def run(self) -> None:
        while True:
            try:
                self.look()
            except (SQLAlchemyError, ShoalError, OSError) as error:
                log.warning("alerts-waiting channel=%s error=%s", self._channel.name, error)
            except Exception:
                log.exception("alerts-failed channel=%s", self._channel.name)
            if self._ending.wait(LOOK):
                return

    def stop(self) -> None:
        """Deliver no more; what was not is, after the next start."""
        self._ending.set()
        self.join(FAREWELL)  # one that waits for a mail server is left to itself

    def look(self) -> None:
        """Deliver what is ripe. SQLAlchemyError or ShoalError if the database cannot be used now."""
        now = self._clock()
        stands = self._stands or self._begin(now)
        if stands.next_at is not None and now < stands.next_at:
            return
        pending, seq = self._pending(stands.seq)
        if not pending:
            self._stands = evolve(stands, seq=seq)
            if now - self._saved >= SAVE and seq != stands.seq:
                self._note(now)
        elif ripe(pending, now, self._rules.gather):
            self._deliver(pending, seq, now)

    def _begin(self, now: float) -> Standing:
        """Where the channel stood; a new one begins with what happens from now on."""
        with self._database.read() as session:
            stands = record.standing(session, self._channel.name)
            self._told = record.told(session, self._channel.name, now - self._rules.quiet - self._rules.gather)
            end = record.end(session)
        if stands is None:
            self._stands = Standing(end)
            self._note(now)
        else:
            self._stands = evolve(stands, seq=min(stands.seq, end))
        assert self._stands is not None
        return self._stands

    def _pending(self, after: int) -> tuple[list[Occurrence], int]:
        """What the rules want of the journal behind a line, and the last line that was looked at."""
        wanted: list[Occurrence] = []
        with self._database.read() as session:
            while rows := record.following(session, after):
                wanted += [row for row in rows if self._rules.wants(row.kind)]
                after = rows[-1].seq
        return wanted, after

    def _deliver(self, pending: list[Occurrence], seq: int, now: float) -> None:
        notice, name = compose(pending, self._told, self._rules.quiet), self._channel.name
        assert self._stands is not None
        if notice is not None:
            try:
                self._channel.send(notice, now)
            except Undelivered as error:
                attempts = self._stands.attempts + 1
                after = wait(attempts, self._chance.random())
                self._stands = evolve(self._stands, attempts=attempts, error=str(error)[:500], next_at=now + after)
                log.warning("alert-undelivered attempts=%d again_in=%.0f error=%s", attempts, after, error)
                self._note(now)
                return
            self._told |= {(kind, subject): at for kind, subject, at in notice.subjects}
            log.info("alert-delivered channel=%s count=%d", name, notice.count)
        self._stands = Standing(seq)
        self._note(now, notice)

    def _note(self, now: float, notice: Notice | None = None) -> None:
        """Where the channel stands, and the message that has arrived."""
        stands, name = self._stands, self._channel.name
        assert stands is not None
        self._told = {key: at for key, at in self._told.items() if at + self._rules.quiet > now - self._rules.gather}

        def change(session: Session) -> None:
            record.stand(session, name, stands)
            if notice is not None:
                record.delivered(session, name, notice, now)

        self._writer.write(change)
        self._saved = now


def couriers(rules: Rules, database: Store, writer: Writer, clock: Callable[[], float]) -> list[Courier]:
    """One for every channel of the rules."""
    return [Courier(channel, rules, database, writer, clock) for channel in channels(rules)]
