"""``shoal history``: reads the database itself, so it works while nothing runs and disturbs nothing that does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict
from sqlalchemy.orm import Session

from coordinator import spreadsheet
from coordinator.cli.client import home_option
from coordinator.cli.db import opened
from coordinator.cli.output import moment, table, time
from coordinator.store import journal, queries
from coordinator.store.queries import Order, UpdateFilter, UpdateRow

_TIMES: Final = ("at", "offered_at", "taken_at", "closed_at")
_SHOWN: Final = {
    "updates": ("at", "run", "device", "base_version", "staleness", "width", "loss", "accuracy", "outcome", "reason"),
    "assignments": ("offered_at", "id", "run", "device", "version", "width", "state", "reason", "closed_at"),
    "events": ("seq", "at", "kind", "run", "device", "text"),
}
_PAGE: Final = 1000


@click.group
def history() -> None:
    """Updates, assignments and events, read from the database.

    \b
    Example:
      shoal history updates --outcome refused --since 2h
      shoal history updates --limit 0 --format csv > updates.csv
    """


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table"),
        click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="The last ones; 0: all."),
        click.option("--until", type=time, help="2026-03-31, 2026-03-31T12:00 (UTC), or 2h (ago)."),
        click.option("--since", type=time, help="2026-03-31, 2026-03-31T12:00 (UTC), or 2h (ago)."),
        click.option("--device", default="", help="The id of a device."),
        click.option("--run", default="", help="The id of a run."),
        home_option,
    ):
        command = option(command)
    return command


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
        _print("updates", queries.UPDATE_COLUMNS, _last_updates(session, wanted, limit), form)


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
        rows = journal.offers(session, journal.Span(**span), limit, state or "")
        _print("assignments", journal.OFFER_COLUMNS, rows, form)


@history.command
@_filters
def events(home: Path | None, limit: int, form: str, **span: Any) -> None:
    """The journal: what happened, in words, oldest first.

    \b
    Example:
      shoal history events --since 1d --format json
    """
    with opened(home) as database, database.read() as session:
        _print("events", _SHOWN["events"], journal.latest(session, journal.Span(**span), limit), form)


def _last_updates(session: Session, wanted: UpdateFilter, limit: int) -> Iterable[UpdateRow]:
    if limit == 0:
        return queries.export(session, wanted)
    return reversed(list(islice(_newest_updates(session, wanted), limit)))


def _newest_updates(session: Session, wanted: UpdateFilter) -> Iterator[UpdateRow]:
    page = 1
    while rows := queries.updates(session, wanted, Order("id", descending=True, page=page, size=_PAGE)).rows:
        yield from rows
        page += 1


def _print(kind: str, columns: Sequence[str], rows: Iterable[Any], form: str) -> None:
    if form == "csv":
        for lines in spreadsheet.lines(columns, rows, _TIMES):
            click.echo(lines, nl=False)
    elif form == "json":
        _print_json(rows)
    else:
        shown = _SHOWN[kind]
        table([name.replace("_", " ") for name in shown], [[_value(row, name) for name in shown] for row in rows])


def _print_json(rows: Iterable[Any]) -> None:
    """An array with one row on each line, written as the rows come."""
    click.echo("[", nl=False)
    for place, row in enumerate(rows):
        click.echo((",\n " if place else "\n ") + json.dumps(asdict(row), ensure_ascii=False), nl=False)
    click.echo("\n]")


def _value(row: Any, name: str) -> Any:
    value = getattr(row, name)
    return moment(value) if name in _TIMES else value
