"""Which lines of the journal become which message. Nothing here reads a clock, a database or a socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

NAMED: Final = 10
"""Subjects that a message names; the others are counted."""
FIRST_WAIT: Final = 5.0
LONGEST_WAIT: Final = 3600.0
"""Seconds before what could not be delivered is tried again."""

Told = Mapping[tuple[str, str], float]
"""(kind, subject) → when what was last told of it had happened, in seconds since 1970."""


@frozen
class Occurrence:
    """A line of the journal. ``subject`` is the id of the device or run it is about, or its text where it is about
    neither; ``name`` is what people call that."""

    seq: int
    at: float
    kind: str
    subject: str
    name: str
    text: str


@frozen
class Alert:
    """All that happened of one kind: ``count`` subjects, the first ten of them by ``names``."""

    kind: str
    count: int
    first_at: float
    last_at: float
    names: tuple[str, ...]
    text: str


@frozen
class Notice:
    """One message. ``subjects`` are what it tells of, as (kind, subject, when it happened); ``seq`` are the first and
    the last line of the journal."""

    alerts: tuple[Alert, ...]
    subjects: tuple[tuple[str, str, float], ...]
    seq: tuple[int, int]

    @property
    def headline(self) -> str:
        rest = len(self.alerts) - 1
        return self.alerts[0].text + (f" (and {rest} more of other kinds)" if rest else "")

    @property
    def text(self) -> str:
        return "\n".join(alert.text for alert in self.alerts)

    @property
    def count(self) -> int:
        return sum(alert.count for alert in self.alerts)

    @property
    def id(self) -> str:
        """The same for a message that is sent again."""
        return f"{self.seq[0]}"


def trial(now: float) -> Notice:
    """What ``shoal alert test`` sends."""
    text = "This is a test: alerts of Shoal arrive here."
    return Notice((Alert("test", 1, now, now, ("test",), text),), (), (0, 0))


def ripe(pending: Sequence[Occurrence], now: float, gather: float) -> bool:
    """Whether the oldest has waited long enough for others like it."""
    return bool(pending) and min(one.at for one in pending) + gather <= now


def compose(pending: Iterable[Occurrence], told: Told, quiet: float) -> Notice | None:
    """One message about everything that is news, a paragraph for each kind; None if nothing is."""
    news = [one for one in pending if one.at >= told.get((one.kind, one.subject), float("-inf")) + quiet]
    if not news:
        return None
    kinds: dict[str, dict[str, Occurrence]] = {}
    for one in news:
        kinds.setdefault(one.kind, {})[one.subject] = one  # of the same subject the last word counts
    alerts = tuple(_alert(kind, list(those.values())) for kind, those in kinds.items())
    subjects = tuple((kind, subject, one.at) for kind, those in kinds.items() for subject, one in those.items())
    return Notice(alerts, subjects, (min(one.seq for one in news), max(one.seq for one in news)))


def wait(attempts: int, chance: float) -> float:
    """Seconds before the next attempt, after ``attempts`` that failed: twice as long each time, and ``chance`` (from 0
    to 1) spreads it between half and the whole of that."""
    return min(FIRST_WAIT * 2 ** min(attempts - 1, 30), LONGEST_WAIT) * (0.5 + 0.5 * chance)


def plain(notice: Notice, at: float) -> dict[str, Any]:
    """The message as JSON; ``text`` on top is what chat programs show."""
    alerts = [
        {
            "kind": alert.kind,
            "count": alert.count,
            "first_at": alert.first_at,
            "last_at": alert.last_at,
            "names": list(alert.names),
            "text": alert.text,
        }
        for alert in notice.alerts
    ]
    return {"id": notice.id, "at": at, "text": notice.text, "alerts": alerts}


def _alert(kind: str, those: Sequence[Occurrence]) -> Alert:
    names = tuple(one.name for one in those[:NAMED])
    text = those[0].text
    if len(those) > 1:
        noun, _, state = kind.partition("-")
        rest = f" and {len(those) - NAMED} more" if len(those) > NAMED else ""
        text = f"{len(those)} {noun}s {state or noun}: {', '.join(names)}{rest}"
    return Alert(kind, len(those), min(one.at for one in those), max(one.at for one in those), names, text)
