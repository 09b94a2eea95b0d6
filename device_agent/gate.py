"""A gate before every batch of training: while it is shut, training stands still and its clock with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

CHECK = 0.2  # seconds between two looks at whether everything is to stop


class Gate:
    """Open at first. ``now`` gives seconds of a monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._waited = 0.0
        self._since: float | None = None  # when the one before the shut gate came

    @property
    def waiting(self) -> bool:
        """Whether somebody stands before it."""
        return self._since is not None

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def passed(self, stopped: Callable[[], bool]) -> bool:
        """Wait until the gate is open; False if it was ``stopped`` first. One thread only may stand here."""
        if stopped():
            return False
        if self._open.is_set():
            return True
        with self._lock:
            self._since = self._now()
        while not self._open.wait(CHECK):
            if stopped():
                break
        with self._lock:
            self._waited += self._now() - (self._since or 0.0)
            self._since = None
        return not stopped()

    def clock(self) -> float:
        """Seconds, less those spent before the shut gate."""
        with self._lock:
            now = self._now()
            return now - self._waited - (0.0 if self._since is None else now - self._since)
