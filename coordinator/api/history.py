"""What happened: updates with their outcomes, and the journal."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen
from werkzeug.wrappers import Response

from coordinator import spreadsheet
from coordinator.api.endpoint import Endpoint, File
from coordinator.auth import services
from coordinator.errors import ShoalError
from coordinator.store import queries
from coordinator.store.queries import EventRow, Page, UpdateFilter, UpdateRow, timeline

END_OF_TIME = 253_402_300_799.0
"""The end of the year 9999, in seconds since 1970."""


@frozen(kw_only=True)
class ExportQuery:
    """``device`` is an id, times are seconds since 1970, ends included."""

    run: str = ""
    device: str = ""
    outcome: str = ""
    width: float | None = None
    since: float | None = None
    until: float | None = None

    def wanted(self) -> UpdateFilter:
        for name in ("since", "until"):
            check_time(name, getattr(self, name))
        wanted = UpdateFilter(
            run=self.run,
            device=self.device,
            outcome=self.outcome,
            width=self.width,
            since=self.since,
            until=self.until,
        )
        wanted.conditions()  # what cannot be filtered by is refused before the first byte is sent
        return wanted


@frozen(kw_only=True)
class UpdateQuery(ExportQuery):
    """``device`` is an id, times are seconds since 1970, ends included; a minus in front of ``sort`` reverses it."""

    sort: str = "-at"
    page: int = 1
    size: int = 100


@frozen(kw_only=True)
class EventQuery:
    """Events behind the cursor ``after``, of one device or run if these are given."""

    after: int = 0
    device: str = ""
    run: str = ""
    limit: int = 100


@frozen(kw_only=True)
class Events:
    """Oldest first; ``cursor`` is what to ask for ``after`` next time."""

    rows: tuple[EventRow, ...]
    cursor: int


def list_updates(query: UpdateQuery) -> Page[UpdateRow]:
    """Updates, filtered, sorted and in pages."""
    order = queries.Order.parse(query.sort, query.page, query.size)
    with services().database.read() as reading:
        return queries.updates(reading, query.wanted(), order)


def export_updates(query: ExportQuery) -> Response:
    """All updates that pass the filter as CSV, oldest first."""
    wanted, database = query.wanted(), services().database

    def rows() -> Iterator[UpdateRow]:
        with database.read() as reading:
            yield from queries.export(reading, wanted)

    response = Response(spreadsheet.lines(queries.UPDATE_COLUMNS, rows()), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = 'attachment; filename="updates.csv"'
    return response


def list_events(query: EventQuery) -> Events:
    """The journal from a cursor on."""
    if not 0 <= query.after < 1 << 62:
        raise ShoalError("bad-request", f"after is {query.after}, expected a cursor from an earlier answer, or 0")
    if not 1 <= query.limit <= 1000:
        raise ShoalError("bad-request", f"limit is {query.limit}, expected 1 to 1000")
    span = timeline.Span(run=query.run, device=query.device)
    with services().database.read() as reading:
        rows = timeline.following(reading, query.after, span, query.limit)
    return Events(rows=rows, cursor=rows[-1].seq if rows else query.after)


def check_time(name: str, seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds <= END_OF_TIME:
        raise ShoalError("bad-request", f"{name} is {seconds:g}, expected seconds since 1970")


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/updates",
        call=list_updates,
        access="viewer",
        query=UpdateQuery,
        answer=Page[UpdateRow],
    ),
    Endpoint(
        method="GET",
        path="/updates.csv",
        call=export_updates,
        access="viewer",
        query=ExportQuery,
        answer=File("text/csv"),
    ),
    Endpoint(method="GET", path="/events", call=list_events, access="viewer", query=EventQuery, answer=Events),
)
