"""Answers that open pages share: who asks for the same gets the same, made once.

An answer is given out for a second without a look at the store, and longer if it was dear to make: for as long as keeps
it below six thousandths of a core, fifteen seconds at most. However many pages are open, they cost little more than
one.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attrs import define, evolve, field, frozen

LEAST: Final = 1.0
LONGEST: Final = 15.0
"""Seconds."""
SHARE: Final = 0.006
"""Of a core, for one answer."""
MOST: Final = 100
"""Answers that are kept; the oldest go first."""


@frozen
class Answer:
    """``tag`` says what it shows, ``text`` shows it. ``pieces`` are {name: JSON} that go along to whoever does not have
    them yet."""

    tag: str
    text: str
    pieces: Mapping[str, str] = field(factory=dict)
    _marks: Mapping[str, str] = field(init=False)
    _bodies: dict[tuple[frozenset[str], bool], bytes] = field(factory=dict, init=False, eq=False)

    @_marks.default
    def _mark(self) -> dict[str, str]:
        return {name: hashlib.sha256(json.encode()).hexdigest()[:12] for name, json in self.pieces.items()}

    def body(self, known: Collection[str], packed: bool) -> bytes:
        """What is sent to somebody who has the pieces with the marks ``known``; compressed, if ``packed``."""
        lacking = frozenset(name for name, mark in self._marks.items() if mark not in known)
        made = self._bodies.get((lacking, packed))
        if made is None:
            whole = self.text + "".join(self._piece(name) for name in self.pieces if name in lacking)
            made = gzip.compress(whole.encode(), 5, mtime=0) if packed else whole.encode()
            self._bodies[lacking, packed] = made
        return made

    def _piece(self, name: str) -> str:
        # No "<" in it: nothing can end the element before its end.
        json = self.pieces[name].replace("<", "\\u003c")
        return f'<script type="application/json" data-piece="{name}" data-mark="{self._marks[name]}">{json}</script>'


@frozen
class _Kept:
    answer: Answer
    since: float
    until: float


@define
class Answers:
    """``clock`` counts seconds, ``price`` the processor time of this thread."""

    clock: Callable[[], float] = time.time
    price: Callable[[], float] = time.thread_time
    _kept: dict[Hashable, _Kept] = field(factory=dict, init=False)
    _turns: dict[Hashable, threading.Lock] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def fresh(self, key: Hashable) -> Answer | None:
        """The answer that is still good without a look at the store."""
        kept = self._kept.get(key)
        return kept.answer if kept is not None and kept.since <= self.clock() < kept.until else None

    def last(self, key: Hashable) -> Answer | None:
        """The newest answer, however old."""
        kept = self._kept.get(key)
        return None if kept is None else kept.answer

    @contextmanager
    def turn(self, key: Hashable, wait: bool = True) -> Iterator[bool]:
        """One at a time for a key. The others wait, and find what the first has made; or go on at once, with False."""
        with self._lock:
            if key not in self._turns and len(self._turns) >= 2 * MOST:
                self._turns = {known: turn for known, turn in self._turns.items() if turn.locked()}
            turn = self._turns.setdefault(key, threading.Lock())
        ours = turn.acquire(blocking=wait)
        try:
            yield ours
        finally:
            if ours:
                turn.release()

    def make(self, key: Hashable, take: Callable[[], Answer]) -> Answer:
        """A new answer for everybody who asks for ``key``. Only within its :meth:`turn`."""
        began, cost = self.clock(), self.price()
        answer = take()
        spent = self.price() - cost
        self._keep(key, _Kept(answer, began, began + min(LONGEST, max(LEAST, spent / SHARE))))
        return answer

    def renew(self, key: Hashable) -> None:
        """Nothing has happened since the newest answer."""
        now, kept = self.clock(), self._kept.get(key)
        if kept is not None:
            self._keep(key, evolve(kept, since=now, until=now + LEAST))

    def forget(self, key: Hashable) -> None:
        """Somebody has seen a newer state: nobody may be shown an older one after that."""
        if key in self._turns or key in self._kept:
            with self.turn(key), self._lock:
                self._kept.pop(key, None)

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = kept
            while len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
