"""What history can be asked for by name: rows of the views, filtered, in one order, from a cursor on."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from attrs import field, frozen
from sqlalchemy import Column as SqlColumn
from sqlalchemy import ColumnElement, Select, Table, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.export import Column, Sheet
from coordinator.store import views
from coordinator.store.diagram import kind
from coordinator.store.models import Base, Device

CHUNK: Final = 2000
"""Rows that the database hands over at a time."""


@frozen(kw_only=True)
class Report:
    """``key`` are the columns of its order, the last one unique within the others; ``shown`` is what a table shows."""

    source: Table
    key: tuple[str, ...]
    at: str
    run: str = "run_id"
    device: str = "device_id"
    shown: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(Column(one.name, kind(one)) for one in self._columns)

    @property
    def _columns(self) -> list[Any]:
        """Without the columns that only say a time once more."""
        times = {f"{one.name}{end}" for one in self.source.c if kind(one) == "time" for end in ("_utc", "_s")}
        return [one for one in self.source.c if one.name not in times]


@frozen(kw_only=True)
class Wanted:
    """Every condition that is not empty must hold; ``device`` is an id or a name; times in seconds since 1970, ends
    included. ``equal`` holds further columns and their values."""

    run: str = ""
    device: str = ""
    since: float | None = None
    until: float | None = None
    equal: dict[str, Any] = field(factory=dict)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


REPORTS: Final[dict[str, Report]] = {
    "runs": Report(
        source=views.run_summary,
        key=("created", "run_id"),
        at="created",
        device="",
        shown=_words("run_id model recipe state version devices updates applied bytes_up best_accuracy created"),
    ),
    "updates": Report(source=views.update_ledger, key=("id",), at="at"),
    "devices": Report(
        source=views.device_contribution,
        key=("run_id", "device_id"),
        at="last",
        shown=_words("run_id device device_group updates applied stale refused share width staleness bytes_up last"),
    ),
    "events": Report(source=Base.metadata.tables["event"], key=("seq",), at="at"),
    "decisions": Report(
        source=views.width_decisions,
        key=("offered", "assignment_id"),
        at="offered",
        shown=_words("offered run_id device version previous_width width policy share temperature state"),
    ),
}


def rows(session: Session, report: Report, wanted: Wanted, *, after: str = "", limit: int = 0) -> Sheet:
    """The first ``limit`` rows (0: all) behind the cursor ``after``, in the report's order; read as they are taken."""
    query = _query(session, report, wanted).order_by(*_key(report))
    if after:
        query = query.where(tuple_(*_key(report)) > tuple_(*_values(report, after)))
    return Sheet(report.columns, _stream(session, query.limit(limit or None)))


def latest(session: Session, report: Report, wanted: Wanted, limit: int) -> Sheet:
    """The last ``limit`` rows, in the report's order."""
    query = _query(session, report, wanted).order_by(*(column.desc() for column in _key(report)))
    return Sheet(report.columns, list(session.execute(query.limit(limit)))[::-1])


def cursor(report: Report, row: Sequence[Any]) -> str:
    """What stands for the place behind a row."""
    names = [column.name for column in report.columns]
    key = json.dumps([row[names.index(name)] for name in report.key], separators=(",", ":"))
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _query(session: Session, report: Report, wanted: Wanted) -> Select[Any]:
    c = report.source.c
    conditions: list[ColumnElement[bool]] = [c[name] == value for name, value in wanted.equal.items()]
    if wanted.run:
        conditions.append(c[report.run] == wanted.run)
    if wanted.device:
        if not report.device:
            raise ShoalError("bad-request", "This list cannot be narrowed to a device")
        named = or_(Device.id == wanted.device, Device.name == wanted.device)
        conditions.append(c[report.device].in_(session.scalars(select(Device.id).where(named)).all()))
    if wanted.since is not None:
        conditions.append(c[report.at] >= wanted.since)
    if wanted.until is not None:
        conditions.append(c[report.at] <= wanted.until)
    return select(*report._columns).where(*conditions)


def _stream(session: Session, query: Select[Any]) -> Iterator[Sequence[Any]]:
    yield from session.execute(query, execution_options={"yield_per": CHUNK})


def _key(report: Report) -> list[SqlColumn[Any]]:
    return [report.source.c[name] for name in report.key]


def _values(report: Report, after: str) -> list[ColumnElement[Any]]:
    kinds = {"text": str, "integer": int, "time": float}
    try:
        values = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        columns = _key(report)
        if [type(value) for value in values] != [kinds[kind(column)] for column in columns]:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise ShoalError("bad-request", f"cursor is {after[:40]!r}, expected one of an earlier answer") from error
    return [literal(value, column.type) for value, column in zip(values, columns, strict=True)]
