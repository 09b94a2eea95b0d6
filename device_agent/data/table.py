"""Tables of numbers with a column of labels: CSV and TSV files, and the rows of a SQLite query."""

from __future__ import annotations

import csv
import math
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from device_agent.errors import DataError

from .budget import Budget
from .folder import listing
from .source import Samples, Source, Unreadable

LONGEST_LINE = 1 << 20  # characters
MAX_COLUMNS = 1 << 20
_LABEL = 64  # bytes a label takes in a list
_LOOK = 1000  # rows between two looks at the budget


class _Rows:
    """Samples and labels as they come in; four bytes a number."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._numbers = array("f")
        self._labels: list[str | int] = []
        self._width: int | None = None

    def add(self, numbers: Sequence[float], label: str | int, where: str) -> None:
        if self._width is None:
            self._width = len(numbers)
        if len(numbers) != self._width:
            raise DataError(f"{where} has {len(numbers)} numbers, those before have {self._width}")
        for number in numbers:
            if not math.isfinite(number):
                raise DataError(f"{where} holds NaN or an infinite value, expected finite numbers")
        self._numbers.extend(numbers)
        self._labels.append(label)
        if len(self._labels) % _LOOK == 0:
            self._budget.ask(2 * len(self._numbers) * self._numbers.itemsize + _LABEL * len(self._labels))

    def samples(self, name: str, skipped: tuple[str, ...] = ()) -> Samples:
        if not self._labels:
            more = f" ({skipped[0]})" if skipped else ""
            raise DataError(f"the data is empty: {name} has no rows, expected at least one{more}")
        x = np.frombuffer(self._numbers, np.float32).reshape(len(self._labels), -1)
        whole = all(isinstance(label, int) for label in self._labels)
        return Samples(x, np.array(self._labels, np.int64 if whole else None), skipped=skipped)


def from_csv(source: Source, budget: Budget, settled_before: float) -> Samples:
    """A file, or all files of a folder, whose first line names the columns; every column but the label is a number."""
    path = source.where()
    found = listing(path, (".csv", ".tsv"), settled_before)
    rows, skipped, columns = _Rows(budget), [], None
    for file in found.files:
        try:
            columns = _file(file, source.label, rows, columns, settled_before)
        except Unreadable as error:
            skipped.append(str(error))
    if found.unsettled and not found.files:
        skipped.append(f"{found.unsettled} files are still being written")
    if len(skipped) == len(found.files) == 1:
        raise DataError(skipped[0])
    return rows.samples(str(path), tuple(skipped))


def _file(file: Path, label: str, rows: _Rows, expected: list[str] | None, settled_before: float) -> list[str]:
    """Add the rows of one file; its columns."""
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            complete = _lines(text, whole=file.stat().st_mtime <= settled_before)
            reader = csv.reader(complete, delimiter=delimiter)
            columns = next(reader, None)
            if columns is None:
                raise Unreadable(f"{file} is empty, expected a first line that names the columns")
            if label not in columns:
                named = ", ".join(columns[:20])
                raise DataError(f"{file} has no column {label!r} (there is {named}): set label in [data]")
            if expected is not None and columns != expected:
                raise DataError(f"{file} has other columns than the files before it")
            place = columns.index(label)
            for cells in reader:
                if cells:
                    _row(cells, place, columns, rows, f"{file} line {reader.line_num}")
            return columns
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{file} cannot be read as CSV: {error}") from error
    except OSError as error:
        raise Unreadable(f"{file} cannot be read: {error.strerror}") from error


def _lines(text: Iterator[str], whole: bool) -> Iterator[str]:
    """The lines; without the last one if it has no end and somebody may still be writing it."""
    for line in text:
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"a line has more than {LONGEST_LINE} characters")
        if line.endswith("\n") or whole:
            yield line


def _row(cells: list[str], place: int, columns: list[str], rows: _Rows, where: str) -> None:
    if len(cells) != len(columns):
        raise DataError(f"{where} has {len(cells)} cells, expected {len(columns)}")
    label = cells.pop(place).strip()
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError as error:
        bad = next(cell for cell in cells if not _is_number(cell))
        raise DataError(f"{where} has {bad[:40]!r}, expected a number") from error
    rows.add(numbers, int(label) if label.isdecimal() else label, where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def from_sqlite(source: Source, budget: Budget, _: float) -> Samples:
    """The rows of ``query``, which cannot change anything.

    Every column but the label is a number, or there is one column of little-endian float32 values as a BLOB.
    """
    path = source.where()
    if source.query is None:
        raise DataError(f"the source sqlite needs a query in [data] to read {path}")
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be opened: {error}") from error
    try:
        database.execute("PRAGMA query_only = ON")
        cursor = database.execute(source.query)
        columns = [column[0] for column in cursor.description or ()]
        if source.label not in columns:
            there = ", ".join(columns) or "nothing"
            raise DataError(f"the query gives no column {source.label!r} (it gives {there}): set label in [data]")
        place, rows = columns.index(source.label), _Rows(budget)
        for number, row in enumerate(cursor, 1):
            cells = list(row)
            label = cells.pop(place)
            named = label if isinstance(label, int) else str(label)
            rows.add(_numbers(cells, number), named, f"row {number} of the query")
        return rows.samples("the query")
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DataError(f"{path}: {error}") from error
    finally:
        database.close()


def _numbers(cells: list[object], row: int) -> Sequence[float]:
    if len(cells) == 1 and isinstance(cells[0], bytes):
        if len(cells[0]) % 4:
            raise DataError(f"row {row} of the query has {len(cells[0])} bytes, expected float32 values of four each")
        return np.frombuffer(cells[0], "<f4").tolist()
    for cell in cells:
        if not isinstance(cell, int | float):
            raise DataError(f"row {row} of the query has {str(cell)[:40]!r}, expected a number")
    return cells  # type: ignore[return-value]
