"""Figures that are dear, remembered for as long as their price asks, twenty seconds at most: however many pages are
open, and however often they ask, a figure that takes 40 ms never takes more than a five-hundredth of a core."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar, cast

from attrs import define, field

T = TypeVar("T")

CHEAP: Final = 0.004
"""Seconds of processor time below which a figure is taken anew every time."""
SHARE: Final = 0.002
"""Of a core, for one figure."""
LONGEST: Final = 20.0
"""Seconds for which a figure is remembered at most."""
MOST: Final = 500
"""Figures that are remembered; the oldest go first."""


@define
class Memory:
    """``clock`` counts seconds, ``price`` the processor time of this thread."""

    clock: Callable[[], float] = time.monotonic
    price: Callable[[], float] = time.thread_time
    _kept: dict[Hashable, tuple[float, Any]] = field(factory=dict, init=False)
    _turns: dict[Hashable, threading.Lock] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def recall(self, key: Hashable, take: Callable[[], T]) -> T:
        """The figure as it was taken last, if that was dear and not too long ago; else what ``take`` finds now."""
        if (known := self._good(key)) is not None:
            return cast(T, known[1])
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:  # who asks while it is taken waits for it
            try:
                if (known := self._good(key)) is not None:
                    return cast(T, known[1])
                began = self.price()
                found = take()
                self._keep(key, found, self.price() - began)
                return found
            finally:
                with self._lock:
                    self._turns.pop(key, None)

    def _good(self, key: Hashable) -> tuple[float, Any] | None:
        known = self._kept.get(key)
        return known if known is not None and self.clock() < known[0] else None

    def _keep(self, key: Hashable, found: Any, spent: float) -> None:
        with self._lock:
            self._kept.pop(key, None)
            if spent > CHEAP:
                self._kept[key] = (self.clock() + min(LONGEST, spent / SHARE), found)
            while len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
