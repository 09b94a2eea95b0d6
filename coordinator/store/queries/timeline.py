"""What happened, in the order in which it happened: events and assignments of a span of time."""

from __future__ import annotations

from typing import Any, Final

from attrs import fields, frozen
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.store.models import Assignment, Device, Event
from coordinator.store.queries.history import EventRow


@frozen(kw_only=True)
class Span:
    """Every condition that is not empty must hold; times are seconds since 1970, ends included."""

    run: str = ""
    device: str = ""
    since: float | None = None
    until: float | None = None

    def of(self, run: Any, device: Any, at: InstrumentedAttribute[float]) -> list[ColumnElement[bool]]:
        wanted: list[ColumnElement[bool]] = []
        if self.run:
            wanted.append(run == self.run)
        if self.device:
            wanted.append(device == self.device)
        if self.since is not None:
            wanted.append(at >= self.since)
        if self.until is not None:
            wanted.append(at <= self.until)
        return wanted


@frozen(kw_only=True)
class OfferRow:
    """An assignment as a line of history."""

    offered_at: float
    id: str
    run: str
    device: str
    kind: str
    version: int
    width: float
    state: str
    reason: str
    bytes_down: int
    taken_at: float | None
    closed_at: float | None


OFFER_COLUMNS: Final = tuple(one.name for one in fields(OfferRow))


def following(session: Session, after: int, span: Span, limit: int) -> tuple[EventRow, ...]:
    """The first ``limit`` events after the cursor, oldest first: whoever goes on from the last misses none."""
    query = _events().where(Event.seq > after, *span.of(Event.run_id, Event.device_id, Event.at))
    return tuple(EventRow(*row) for row in session.execute(query.order_by(Event.seq).limit(limit)))


def latest(session: Session, span: Span, limit: int) -> tuple[EventRow, ...]:
    """The last ``limit`` events of a span (0: all), oldest first."""
    query = _events().where(*span.of(Event.run_id, Event.device_id, Event.at))
    rows = session.execute(query.order_by(Event.seq.desc()).limit(limit or None)).all()
    return tuple(EventRow(*row) for row in reversed(rows))


def offers(session: Session, span: Span, limit: int, state: str = "") -> tuple[OfferRow, ...]:
    """The last ``limit`` assignments (0: all) that were offered in a span, oldest first; in one state if given."""
    conditions = span.of(Assignment.run_id, Assignment.device_id, Assignment.offered_at)
    if state:
        conditions.append(Assignment.state == state)
    query = (
        select(Assignment)
        .where(*conditions)
        .order_by(Assignment.offered_at.desc(), Assignment.id.desc())
        .limit(limit or None)
    )
    return tuple(
        OfferRow(
            offered_at=one.offered_at,
            id=one.id,
            run=one.run_id,
            device=one.device_id,
            kind=one.kind,
            version=one.version,
            width=one.width,
            state=one.state,
            reason=one.reason,
            bytes_down=one.bytes_down,
            taken_at=one.taken_at,
            closed_at=one.closed_at,
        )
        for one in reversed(session.scalars(query).all())
    )


def _events() -> Any:
    return select(
        Event.seq, Event.at, Event.kind, Event.run_id, Event.device_id, Device.name, Event.text
    ).outerjoin(Device, Device.id == Event.device_id)
