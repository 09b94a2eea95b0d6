"""What commands print: tables for people, JSON for programs; and the spans of time people write."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, as the API gave it."
)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; aligned by spaces and never cut where the output is not a terminal."""
    texts = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _terminal(columns, texts)
        return
    heads = [column.upper() for column in columns]
    widths = [max(len(line[place]) for line in [heads, *texts]) for place in range(len(columns))]
    for line in [heads, *texts]:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """One thing in full: a name and a value per line."""
    known = [(name, cell(value)) for name, value in pairs]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        click.echo(f"{name.ljust(width)}  {value}".rstrip())


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def cell(value: Any) -> str:
    """A value as people read it. What devices say must not steer the terminal: control characters are dropped."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{cell(key)} {cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or "-"
    return _CONTROL.sub(" ", str(value))


def moment(seconds: float | None) -> str:
    """Seconds since 1970 as date and time in UTC."""
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"


def duration(text: str) -> float:
    """The type of an option: ``90s``, ``15m``, ``72h`` or ``3d``, in seconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no duration: write 90s, 15m, 72h or 3d")
    return float(found[1]) * _UNITS[found[2]]


def time(text: str) -> float:
    """The type of an option: a date, a date and time (UTC unless it says otherwise), or a duration ago; in seconds
    since 1970."""
    if found := _DURATION.fullmatch(text):
        return datetime.now(UTC).timestamp() - float(found[1]) * _UNITS[found[2]]
    try:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no time: write 2026-03-31, 2026-03-31T12:00 or 2h (ago)") from error


def _terminal(columns: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for line in texts:
        shown.add_row(*map(Text, line))
    Console().print(shown)
