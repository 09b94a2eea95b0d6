"""Figures that are dear, remembered for as long as their price asks: however many pages are open, and however often
they ask, one figure never takes more than a hundredth of a core."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar, cast

from attrs import define, field

T = TypeVar("T")

CHEAP: Final = 0.03
"""Seconds of processor time below which a figure is taken anew every time."""
SHARE: Final = 0.01
"""Of a core, for one figure."""
MOST: Final = 500
"""Figures that are remembered; the oldest go first."""


@define
class Memory:
    """``clock`` counts seconds, ``price`` the processor time of this thread."""

    clock: Callable[[], float] = time.monotonic
    price: Callable[[], float] = time.thread_time
    _kept: dict[Hashable, tuple[float, Any]] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def recall(self, key: Hashable, take: Callable[[], T]) -> T:
        """The figure as it was taken last, if that was dear and not too long ago; else what ``take`` finds now."""
        known = self._kept.get(key)
        if known is not None and self.clock() < known[0]:
            return cast(T, known[1])
        began = self.price()
        found = take()
        spent = self.price() - began
        with self._lock:
            self._kept.pop(key, None)
            if spent > CHEAP:
                self._kept[key] = (self.clock() + spent / SHARE, found)
            while len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
        return found
