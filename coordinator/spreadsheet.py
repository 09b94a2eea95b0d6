"""Rows as CSV (RFC 4180) that a spreadsheet shows as text and never runs as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def lines(columns: Sequence[str], rows: Iterable[Any], times: Sequence[str] = ("at",)) -> Iterator[str]:
    """A header and one line per row object; ``times`` are columns in seconds since 1970, written as ISO 8601."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(getattr(row, name), name in times) for name in columns])
        if buffer.tell() > 1 << 14:
            yield _taken(buffer)
    yield _taken(buffer)


def cell(value: Any, time: bool = False) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay numbers."""
    if value is None:
        return ""
    if time:
        return moment(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
