"""When to ask for work, and which answer counts. Sans-IO, a part of the session."""

from __future__ import annotations

from .outbox import Chance

ANSWER, ANSWER_LIMIT = 10.0, 60.0  # seconds to wait for the answer to a check-in
SETBACK, SETBACK_LIMIT = 5.0, 300.0  # seconds before the next check-in after a failure


class CheckIns:
    """Ids are ``<boot>.<counter>``; ``due_at`` is when to ask next."""

    def __init__(self, boot: str, rng: Chance, now: float) -> None:
        self._boot = boot
        self._rng = rng
        self._counter = 0
        self._pending: str | None = None  # waits for its answer
        self.due_at = now
        self._answer = ANSWER
        self._setbacks = 0

    def next(self, now: float) -> str:
        """The id of a new check-in, the only one whose answer counts from now on."""
        self._counter += 1
        self._pending = f"{self._boot}.{self._counter}"
        self.due_at = now + self._jittered(self._answer)
        self._answer = min(2 * self._answer, ANSWER_LIMIT)
        return self._pending

    def expects(self, check_in: str) -> bool:
        return check_in == self._pending

    def answered(self) -> None:
        self._pending, self._answer = None, ANSWER

    def rest(self, now: float, seconds: float) -> None:
        self.answered()
        self.due_at = now + seconds

    def forget(self, now: float) -> None:
        """The answer cannot come any more: ask again as soon as possible."""
        if self._pending is not None:
            self.rest(now, 0)

    def pause(self, now: float) -> None:
        """Something was odd about the answer."""
        self.rest(now, self._jittered(SETBACK))

    def fail(self, now: float) -> None:
        """Wait longer after every failure."""
        wait = min(SETBACK * 2**self._setbacks, SETBACK_LIMIT)
        self._setbacks = min(self._setbacks + 1, 10)
        self.rest(now, self._jittered(wait))

    def succeed(self) -> None:
        self._setbacks = 0

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.75, 1.25)
