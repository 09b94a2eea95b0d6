"""A fast machine stands in for a slow board."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

RECENT = 9  # steps whose median duration the pace stretches


class Pacer:
    """Stretches every step to ``pace`` × the median of the recent steps' own times."""

    def __init__(self, pace: float, clock: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._pace, self._clock, self._sleep = pace, clock, sleep
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._start = clock()

    def begin(self) -> None:
        self._start = self._clock()

    def end(self) -> None:
        if self._pace <= 1:
            return
        took = self._clock() - self._start
        self._recent.append(took)
        usual = sorted(self._recent)[len(self._recent) // 2]
        rest = self._pace * usual - took
        if rest > 0:
            self._sleep(rest)
