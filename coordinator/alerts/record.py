"""What is kept of alerts: where each channel stands in the journal, and its last messages."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from coordinator.alerts.notice import Notice, Occurrence
from coordinator.store.models import Alert, AlertChannel, Device, Event

READ = 5000
"""Lines of the journal that are read at a time."""
KEPT = 1000
"""Messages of a channel that are kept."""


@frozen
class Standing:
    """Where a channel stands: the last line it is done with, attempts that failed since, and when the next may be."""

    seq: int
    attempts: int = 0
    error: str = ""
    next_at: float | None = None


def standing(session: Session, channel: str) -> Standing | None:
    """None for a channel that was never used."""
    row = session.get(AlertChannel, channel)
    return Standing(row.seq, row.attempts, row.error, row.next_at) if row is not None else None


def end(session: Session) -> int:
    """The newest line of the journal."""
    return session.scalar(select(func.max(Event.seq))) or 0


def following(session: Session, after: int) -> list[Occurrence]:
    """The next lines of the journal, oldest first."""
    query = (
        select(Event.seq, Event.at, Event.kind, Event.device_id, Event.run_id, Device.name, Event.text)
        .outerjoin(Device, Device.id == Event.device_id)
        .where(Event.seq > after)
        .order_by(Event.seq)
        .limit(READ)
    )
    return [
        Occurrence(
            row.seq,
            row.at,
            row.kind,
            row.device_id or row.run_id or row.text,
            row.name or row.run_id or row.text,
            row.text,
        )
        for row in session.execute(query)
    ]


def told(session: Session, channel: str, since: float) -> dict[tuple[str, str], float]:
    """What a channel has told of messages since a time, see :data:`coordinator.alerts.notice.Told`."""
    rows = session.scalars(
        select(Alert.subjects).where(Alert.channel == channel, Alert.at >= since).order_by(Alert.at, Alert.id)
    )
    return {(kind, subject): at for row in rows for kind, subject, at in row}


def stand(session: Session, channel: str, now: Standing) -> None:
    """Note where a channel stands."""
    row = session.get(AlertChannel, channel)
    if row is None:
        row = AlertChannel(name=channel)
        session.add(row)
    row.seq, row.attempts, row.error, row.next_at = now.seq, now.attempts, now.error, now.next_at
    session.flush()


def delivered(session: Session, channel: str, notice: Notice, at: float) -> None:
    """Note a message that has arrived; the oldest ones go."""
    told = [list(one) for one in notice.subjects]
    row = Alert(channel=channel, at=at, seq=notice.seq[1], count=notice.count, text=notice.text, subjects=told)
    session.add(row)
    session.flush()
    newest = select(Alert.id).where(Alert.channel == channel).order_by(Alert.id.desc()).offset(KEPT).limit(1)
    if (last := session.scalar(newest)) is not None:
        session.execute(delete(Alert).where(Alert.channel == channel, Alert.id <= last))


def last(session: Session, limit: int) -> list[Alert]:
    """The newest messages of all channels, newest first."""
    return list(session.scalars(select(Alert).order_by(Alert.id.desc()).limit(limit)))
