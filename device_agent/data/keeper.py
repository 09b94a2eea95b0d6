"""Keeps the data set up to date: a thread that reads the source again when it has changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from attrs import field, frozen

from device_agent.errors import DataError, printable

from .loading import Loaded, fingerprint, load
from .source import Source

LONGEST = 600.0  # seconds between two attempts at data that stays unusable

log = logging.getLogger(__name__)


@frozen(eq=False)
class Found:
    """The data was read."""

    loaded: Loaded = field(repr=False)


@frozen
class Spoiled:
    """There is no data that can be used."""

    reason: str


class Keeper:
    """Reports :class:`Found` or :class:`Spoiled` through ``report``, first soon after it was opened, then whenever the
    source has changed. Data that cannot be used is tried again every now and then: its cause may lie elsewhere."""

    def __init__(self, source: Source, report: Callable[[object], None]) -> None:
        self._source = source
        self._report = report
        self._mark: str | None = None
        self._reason: str | None = None
        self._patience = source.every
        self._again_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="data", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def _keep(self) -> None:
        while not self._closing.wait(self.look(time.time())):
            pass

    def look(self, now: float) -> float:
        """Read the source if that makes sense at ``now`` (seconds since 1970); seconds until the next look."""
        source, fresh = self._source, False
        try:
            if self._mark is not None and self._unsettled(now):
                return source.settle
            mark = fingerprint(source, now - source.settle)
            fresh = mark != self._mark
            if not fresh and (self._reason is None or now < self._again_at):
                return source.every
            self._patience = source.every if fresh else min(2 * self._patience, LONGEST)
            self._mark, self._again_at = mark, now + self._patience
            loaded = load(source, now - source.settle)
        except DataError as error:
            self._spoiled(str(error))
        except Exception as error:  # whatever it is, the agent has to go on, and to say so
            log.exception("data-broke")
            self._spoiled(printable(f"{source.name}: {type(error).__name__}: {error}"))
        else:
            self._reason = None
            self._report(Found(loaded))
        # What was being written just now may be finished soon.
        return min(source.every, source.settle + 0.1) if fresh else source.every

    def _unsettled(self, now: float) -> bool:
        """Whether the one file there is may still be being written."""
        path = self._source.path
        try:
            return path is not None and path.is_file() and path.stat().st_mtime > now - self._source.settle
        except OSError:
            return False

    def _spoiled(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            self._report(Spoiled(reason))
