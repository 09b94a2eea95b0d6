"""Lists of history by name, in pages or as files, and questions in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from threading import BoundedSemaphore
from typing import Any, Final

from attrs import frozen
from werkzeug.wrappers import Response

from coordinator import export
from coordinator.api.endpoint import Endpoint, File
from coordinator.api.history import check_time
from coordinator.auth import services
from coordinator.errors import ShoalError
from coordinator.export import Sheet
from coordinator.store import console, reports
from coordinator.store.reports import Report, Wanted

MAX_PAGE: Final = 1000
MAX_ROWS: Final = 100_000
"""Rows that one question in SQL may return."""
SECONDS: Final = 10.0
"""How long a question in SQL may take."""

_asking = BoundedSemaphore(2)  # whoever asks for much must not keep everybody else from being served


@frozen(kw_only=True)
class ListFilter:
    """``device`` is an id or a name, times are seconds since 1970, ends included."""

    run: str = ""
    device: str = ""
    since: float | None = None
    until: float | None = None

    def wanted(self) -> Wanted:
        check_time("since", self.since)
        check_time("until", self.until)
        return Wanted(run=self.run, device=self.device, since=self.since, until=self.until)


@frozen(kw_only=True)
class ListQuery(ListFilter):
    """A page of at most ``limit`` rows behind ``cursor``, which is that of the page before."""

    cursor: str = ""
    limit: int = 100


@frozen
class ColumnKind:
    """``kind`` is text, integer, number, boolean, time (seconds since 1970) or json."""

    name: str
    kind: str


@frozen(kw_only=True)
class Listing:
    """Rows by the names of their columns; ``cursor`` leads to the next page, null after the last."""

    columns: tuple[ColumnKind, ...]
    rows: tuple[dict[str, Any], ...]
    cursor: str | None = None


@frozen(kw_only=True)
class Question:
    """One SELECT; at most ``limit`` rows are returned."""

    sql: str
    limit: int = 1000


def list_history(name: str, query: ListQuery) -> Listing:
    """A page of runs, updates, devices, decisions or events, in the order of time."""
    report = _report(name)
    if not 1 <= query.limit <= MAX_PAGE:
        raise ShoalError("bad-request", f"limit is {query.limit}, expected 1 to {MAX_PAGE}")
    with services().database.read() as reading:
        sheet = reports.rows(reading, report, query.wanted(), after=query.cursor, limit=query.limit)
        rows = [list(row) for row in sheet.rows]
    full = len(rows) == query.limit
    return _listing(sheet, rows, reports.cursor(report, rows[-1]) if full else None)


def export_history(name: str, form: str, query: ListFilter) -> Response:
    """The whole of such a list as csv, json, parquet or arrow."""
    report, wanted, database = _report(name), query.wanted(), services().database
    export.check(form)

    def parts() -> Iterator[bytes]:
        with database.read() as reading:
            yield from export.check(form).write(reports.rows(reading, report, wanted))

    return _file(parts(), name, form)


def ask_history(body: Question) -> Listing:
    """The answer to a question in SQL, which can change nothing."""
    with ExitStack() as open_until_read:
        sheet = asked(body, open_until_read)
        return _listing(sheet, [list(row) for row in sheet.rows])


def export_answer(form: str, body: Question) -> Response:
    """The answer to a question in SQL as csv, json, parquet or arrow."""
    written = export.check(form)
    with ExitStack() as until_failed:
        response = _file(written.write(asked(body, until_failed)), "answer", form)
        response.call_on_close(until_failed.pop_all().close)  # the rows are read while they are sent
    return response


def _report(name: str) -> Report:
    if name not in reports.REPORTS:
        known = ", ".join(reports.REPORTS)
        raise ShoalError("not-found", f"There is no list {name[:40]!r}, only {known}")
    return reports.REPORTS[name]


def asked(question: Question, stack: ExitStack) -> Sheet:
    """The answer to a question in SQL; its rows can be read until ``stack`` is closed."""
    if not 1 <= question.limit <= MAX_ROWS:
        raise ShoalError("bad-request", f"limit is {question.limit}, expected 1 to {MAX_ROWS}")
    if not _asking.acquire(timeout=1):
        raise ShoalError("busy", "Other questions are being answered: ask again in a moment")
    stack.callback(_asking.release)
    url = services().settings.reader_url
    return stack.enter_context(console.ask(url, question.sql, limit=question.limit, seconds=SECONDS))


def _listing(sheet: Sheet, rows: Iterable[Sequence[Any]], cursor: str | None = None) -> Listing:
    columns = tuple(ColumnKind(column.name, column.kind) for column in sheet.columns)
    return Listing(columns=columns, rows=tuple(dict(zip(sheet.names, row, strict=True)) for row in rows), cursor=cursor)


def _file(parts: Iterator[bytes], name: str, form: str) -> Response:
    first = b""
    with suppress(StopIteration):
        first = next(parts)  # what goes wrong at once is told as a problem, not in the middle of a file
    response = Response(_behind(first, parts), content_type=export.FORMATS[form].media_type)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.{form}"'
    response.headers["Cache-Control"] = "no-store"
    return response


def _behind(first: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from parts


ENDPOINTS = (
    Endpoint(
        method="GET", path="/history/<name>", call=list_history, access="viewer", query=ListQuery, answer=Listing
    ),
    Endpoint(
        method="GET",
        path="/history/<name>/<form>",
        call=export_history,
        access="viewer",
        query=ListFilter,
        answer=File("*/*"),
    ),
    Endpoint(method="POST", path="/sql", call=ask_history, access="operator", body=Question, answer=Listing),
    Endpoint(
        method="POST", path="/sql/<form>", call=export_answer, access="operator", body=Question, answer=File("*/*")
    ),
)
