"""``shoal history``: reads the database itself, so it works while nothing runs and disturbs nothing that does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from attrs import fields
from sqlalchemy.orm import Session

from coordinator import export
from coordinator.cli.client import home_option
from coordinator.cli.db import located, opened
from coordinator.cli.output import duration, moment, table, time
from coordinator.errors import ShoalError
from coordinator.export import Sheet
from coordinator.store import console, queries, reports
from coordinator.store import lineage as origins
from coordinator.store.queries import EventRow, Order, UpdateFilter, UpdateRow, timeline

_TIMES: Final = ("at", "offered_at", "taken_at", "closed_at")
_SHOWN: Final = {
    "updates": ("at", "run", "device", "base_version", "staleness", "width", "loss", "accuracy", "outcome", "reason"),
    "assignments": ("offered_at", "id", "run", "device", "version", "width", "state", "reason", "closed_at"),
    "events": ("seq", "at", "kind", "run", "device", "text"),
}
_PAGE: Final = 1000


@click.group
def history() -> None:
    """What was, read from the database: runs, devices, updates, assignments, decisions, events, or any question in SQL.

    \b
    Example:
      shoal history updates --outcome refused --since 2h
      shoal history updates --limit 0 --format parquet > updates.parquet
    """


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        _format_option,
        click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="The last ones; 0: all."),
        click.option("--until", type=time, help="2026-03-31, 2026-03-31T12:00 (UTC), or 2h (ago)."),
        click.option("--since", type=time, help="2026-03-31, 2026-03-31T12:00 (UTC), or 2h (ago)."),
        click.option("--device", default="", help="The id of a device."),
        click.option("--run", default="", help="The id of a run."),
        home_option,
    ):
        command = option(command)
    return command


_format_option = click.option("--format", "form", type=click.Choice(["table", *export.FORMATS]), default="table")


@history.command
@_filters
def runs(home: Path | None, **given: Any) -> None:
    """Every run with what it came to: devices, updates, bytes, accuracy; oldest first.

    \b
    Example:
      shoal history runs --since 30d
    """
    _report("runs", home, **given)


@history.command
@_filters
def devices(home: Path | None, **given: Any) -> None:
    """What every device gave to every run, and its share of it.

    \b
    Example:
      shoal history devices --run digits-1 --limit 0 --format csv
    """
    _report("devices", home, **given)


@history.command
@_filters
def decisions(home: Path | None, **given: Any) -> None:
    """Every width that was decided, with what the policy looked at; oldest first.

    \b
    Example:
      shoal history decisions --device pico --since 1d
    """
    _report("decisions", home, **given)


@history.command
@click.argument("statement")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="At most so many rows; 0: all.")
@click.option("--timeout", type=duration, default="30s", show_default=True, help="When to give up: 30s, 5m.")
@_format_option
@home_option
def sql(home: Path | None, statement: str, limit: int, timeout: float, form: str) -> None:
    """Any question, as one SELECT; docs/database.md has thirty. Nothing can be changed, and secrets are not shown.

    \b
    Example:
      shoal history sql "SELECT device, share FROM v_device_contribution WHERE run_id = 'digits-1'"
    """
    given = located(home)
    most = limit or 1 << 62
    with console.ask(given.reader_url, statement, limit=most, seconds=timeout) as sheet:
        count = _print(sheet, form)
    if count == limit:
        click.echo(f"These are the first {limit} rows: --limit gives more.", err=True)


@history.command
@_filters
@click.option("--outcome", type=click.Choice(queries.OUTCOMES), default=None, help="Only these.")
def updates(home: Path | None, outcome: str | None, limit: int, form: str, **span: Any) -> None:
    """Every update with its outcome and the reason for it, oldest first.

    \b
    Example:
      shoal history updates --run run-1 --outcome stale
    """
    wanted = UpdateFilter(outcome=outcome or "", **span)
    with opened(home) as database, database.read() as session:
        names = [*queries.UPDATE_COLUMNS, "device_id"] if form == "json" else queries.UPDATE_COLUMNS
        _print(Sheet.of(UpdateRow, _last_updates(session, wanted, limit), names), form, _SHOWN["updates"])


@history.command
@_filters
@click.option("--state", type=click.Choice(["offered", "taken", "closed", "expired", "cancelled"]), help="Only these.")
def assignments(home: Path | None, state: str | None, limit: int, form: str, **span: Any) -> None:
    """Every assignment: who was offered what, and how it ended, oldest first.

    \b
    Example:
      shoal history assignments --device pico --state expired
    """
    with opened(home) as database, database.read() as session:
        rows = timeline.offers(session, timeline.Span(**span), limit, state or "")
        _print(Sheet.of(timeline.OfferRow, rows, timeline.OFFER_COLUMNS, _TIMES), form, _SHOWN["assignments"])


@history.command
@_filters
def events(home: Path | None, limit: int, form: str, **span: Any) -> None:
    """The journal: what happened, in words, oldest first.

    \b
    Example:
      shoal history events --since 1d --format json
    """
    with opened(home) as database, database.read() as session:
        names = [one.name for one in fields(EventRow)] if form != "csv" else _SHOWN["events"]
        rows = timeline.latest(session, timeline.Span(**span), limit)
        _print(Sheet.of(EventRow, rows, names), form, _SHOWN["events"])


@history.command
@click.argument("run", required=False)
@click.option("--version", type=click.IntRange(0), help="The newest, if none is given.")
@click.option("--device", help="Instead of a run: the model that this device uses now.")
@click.option("--format", "form", type=click.Choice(["json"]), default="json", show_default=True)
@home_option
def lineage(home: Path | None, run: str | None, version: int | None, device: str | None, form: str) -> None:
    """Where a version comes from: recipe, model, first weights, every device, every update of every version before.

    \b
    Example:
      shoal history lineage digits-1 --version 12 > lineage.json
      shoal history lineage --device pico > lineage.json
    """
    if (run is None) == (device is None) or (device is not None and version is not None):
        raise click.UsageError("Name a run, and perhaps its version, or a --device.")
    with opened(home) as database, database.read() as session:
        used = {} if device is None else origins.running(session, device)
        run = run if run is not None else used["run"]
        origin = {**used, **origins.origin(session, run, used.get("version", version))}
        click.echo(json.dumps(origin, ensure_ascii=False)[:-1], nl=False)
        for name, rows in (("devices", origins.devices), ("versions", origins.versions)):
            click.echo(f', "{name}": ', nl=False)
            separator = "["
            for row in rows(session, run, origin["version"]):
                click.echo(separator + "\n " + json.dumps(row, ensure_ascii=False), nl=False)
                separator = ","
            click.echo("[]" if separator == "[" else "\n]", nl=False)
        click.echo("}")


def _last_updates(session: Session, wanted: UpdateFilter, limit: int) -> Iterable[UpdateRow]:
    if limit == 0:
        return queries.export(session, wanted)
    return reversed(list(islice(_newest_updates(session, wanted), limit)))


def _newest_updates(session: Session, wanted: UpdateFilter) -> Iterator[UpdateRow]:
    page = 1
    while rows := queries.updates(session, wanted, Order("id", descending=True, page=page, size=_PAGE)).rows:
        yield from rows
        page += 1


def _report(name: str, home: Path | None, limit: int, form: str, **given: Any) -> None:
    report, wanted = reports.REPORTS[name], reports.Wanted(**given)
    with opened(home) as database, database.read() as session:
        sheet = reports.latest(session, report, wanted, limit) if limit else reports.rows(session, report, wanted)
        _print(sheet, form, report.shown)


def _print(sheet: Sheet, form: str, shown: Iterable[str] = ()) -> int:
    """Write the rows as they come; returns how many there were. ``shown`` are the columns of a table (none: all)."""
    counted = _Counted(sheet.rows)
    sheet = Sheet(sheet.columns, counted)
    if form == "table":
        _table(sheet, list(shown) or list(sheet.names))
        return counted.count
    out = sys.stdout.buffer
    if form in ("parquet", "arrow") and out.isatty():
        raise ShoalError("bad-request", f"{form} is not for the eye: send it to a file with > history.{form}")
    for part in export.check(form).write(sheet):
        out.write(part)
    out.flush()
    return counted.count


class _Counted:
    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            self.count += 1
            yield row


def _table(sheet: Sheet, shown: list[str]) -> None:
    places = [sheet.names.index(name) for name in shown]
    times = {place for place in places if sheet.columns[place].kind == "time"}
    heads = [name.replace("_", " ") for name in shown]
    table(heads, [[moment(row[place]) if place in times else row[place] for place in places] for row in sheet.rows])
