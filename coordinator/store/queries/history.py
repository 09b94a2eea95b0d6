"""History: every update with its outcome, and the journal of events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from attrs import fields, frozen
from sqlalchemy import ColumnElement, Row, Select, func, or_, select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import Device, Event, Update
from coordinator.store.queries.flags import FLAGGED, flags
from coordinator.store.queries.page import Columns, Order, Page

OUTCOMES: Final = ("stored", "applied", "stale", "refused", "expired")

_COLUMNS: Final[Columns] = {
    "id": Update.id,
    "at": Update.at,
    "run": Update.run_id,
    "device": Device.name,
    "assignment": Update.assignment_id,
    "commit": Update.commit,
    "base_version": Update.base_version,
    "applied_version": Update.applied_version,
    "staleness": Update.staleness,
    "width": Update.width,
    "weight": Update.weight,
    "samples": Update.samples,
    "steps": Update.steps,
    "loss": Update.loss,
    "accuracy": Update.accuracy,
    "norm": Update.norm,
    "bytes_up": Update.bytes_up,
    "bytes_down": Update.bytes_down,
    "seconds_download": Update.seconds_download,
    "seconds_train": Update.seconds_train,
    "seconds_upload": Update.seconds_upload,
    "outcome": Update.outcome,
    "reason": Update.reason,
}
UPDATE_COLUMNS: Final = tuple(_COLUMNS)
"""The columns of the list and of the CSV file, in their order."""
SORTS: Final[Columns] = {name: column for name, column in _COLUMNS.items() if name != "reason"} | {
    "device": func.lower(Device.name)
}


@frozen(kw_only=True)
class UpdateFilter:
    """Every condition given must hold; ``device`` is an id or a name; times in seconds since 1970, ends included."""

    run: str = ""
    device: str = ""
    outcome: str = ""
    width: float | None = None
    since: float | None = None
    until: float | None = None
    flagged: bool = False
    """Only updates that a gate remarked on."""

    def conditions(self) -> list[ColumnElement[bool]]:
        if self.outcome and self.outcome not in OUTCOMES:
            raise ShoalError("bad-request", f"outcome is {self.outcome[:40]!r}, expected one of {', '.join(OUTCOMES)}")
        found: list[ColumnElement[bool]] = []
        if self.run:
            found.append(Update.run_id == self.run)
        if self.device:
            named = select(Device.id).where(or_(Device.id == self.device, Device.name == self.device))
            found.append(Update.device_id.in_(named))
        if self.outcome:
            found.append(Update.outcome == self.outcome)
        if self.width is not None:
            found.append(Update.width == self.width)
        if self.since is not None:
            found.append(Update.at >= self.since)
        if self.until is not None:
            found.append(Update.at <= self.until)
        if self.flagged:
            found.append(FLAGGED)
        return found


@frozen(kw_only=True)
class UpdateRow:
    """One update of the ledger; ``device`` is the device's name, ``device_id`` its id. Sizes in bytes."""

    id: int
    at: float
    run: str
    device: str
    device_id: str
    assignment: str
    commit: int
    base_version: int
    applied_version: int | None
    staleness: int | None
    width: float
    weight: float | None
    samples: int
    steps: int
    loss: float
    accuracy: float
    norm: float | None
    bytes_up: int
    bytes_down: int
    seconds_download: float
    seconds_train: float
    seconds_upload: float | None
    outcome: str
    reason: str
    flags: dict[str, str]
    """{gate: what it remarked}, also of an update that it let pass."""


@frozen
class EventRow:
    seq: int
    at: float
    kind: str
    run: str | None
    device_id: str | None
    device: str | None
    text: str


def updates(session: Session, wanted: UpdateFilter, order: Order) -> Page[UpdateRow]:
    """One page of the updates that pass the filter."""
    conditions = wanted.conditions()
    total = session.scalar(select(func.count()).select_from(Update).where(*conditions)) or 0
    query = _updates().where(*conditions).order_by(*order.by(SORTS, Update.id)).limit(order.size).offset(order.offset)
    return Page(tuple(_update(row) for row in session.execute(query)), total, order)


def export(session: Session, wanted: UpdateFilter, batch: int = 1000) -> Iterator[UpdateRow]:
    """All updates that pass the filter, oldest first, without ever holding more than ``batch`` of them."""
    last = 0
    while True:
        query = _updates().where(*wanted.conditions(), Update.id > last).order_by(Update.id).limit(batch)
        rows = session.execute(query).all()
        yield from map(_update, rows)
        if len(rows) < batch:
            return
        last = rows[-1].id


def events(
    session: Session, *, after: int = 0, device: str | None = None, run: str | None = None, limit: int = 50
) -> tuple[EventRow, ...]:
    """The journal's newest rows with ``seq`` above ``after``, newest first."""
    query = (
        select(Event.seq, Event.at, Event.kind, Event.run_id, Event.device_id, Device.name, Event.text)
        .outerjoin(Device, Device.id == Event.device_id)
        .where(Event.seq > after)
        .order_by(Event.seq.desc())
        .limit(limit)
    )
    if device is not None:
        query = query.where(Event.device_id == device)
    if run is not None:
        query = query.where(Event.run_id == run)
    return tuple(EventRow(*row) for row in session.execute(query))


def _updates() -> Select[*tuple[Any, ...]]:
    columns = [column.label(name) for name, column in _COLUMNS.items()]
    return select(*columns, Update.device_id, Update.scores).join(Device, Device.id == Update.device_id)


def _update(row: Row[*tuple[Any, ...]]) -> UpdateRow:
    told = {one.name: getattr(row, one.name) for one in fields(UpdateRow) if one.name != "flags"}
    return UpdateRow(**told, flags=flags(row.scores))
