"""Rows of history as CSV, JSON, Parquet or Arrow, written piece by piece: memory does not grow with their number."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal, get_args, get_type_hints

import numpy as np
from attrs import evolve, frozen

from coordinator import spreadsheet
from coordinator.errors import ShoalError

Kind = Literal["text", "integer", "number", "boolean", "time", "json"]

BATCH: Final = 10_000
"""Rows that are held at a time."""

_KINDS: Final[dict[Any, Kind]] = {str: "text", int: "integer", float: "number", bool: "boolean"}


@frozen
class Column:
    """What a column is called, and what it holds; times are seconds since 1970."""

    name: str
    kind: Kind


@frozen
class Sheet:
    """Rows that can be walked through once, each with as many values as there are columns."""

    columns: tuple[Column, ...]
    rows: Iterable[Sequence[Any]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @classmethod
    def of(cls, row: type[Any], rows: Iterable[Any], names: Sequence[str], times: Sequence[str] = ("at",)) -> Sheet:
        """From objects of an attrs class: its attributes ``names``, of which ``times`` are times."""
        hints = get_type_hints(row)
        columns = tuple(Column(name, "time" if name in times else _kind(hints[name])) for name in names)
        return cls(columns, ([getattr(one, name) for name in names] for one in rows))

    def taken(self, limit: int) -> Sheet:
        """At most the first ``limit`` rows."""
        return evolve(self, rows=islice(self.rows, limit))


@frozen
class Format:
    media_type: str
    write: Callable[[Sheet], Iterator[bytes]]


def _kind(hint: Any) -> Kind:
    kinds = [_KINDS[part] for part in (get_args(hint) or (hint,)) if part in _KINDS]
    return kinds[0] if kinds else "json"


def csv(sheet: Sheet) -> Iterator[bytes]:
    """A header, then one line per row; times as ISO 8601, JSON as text."""
    times = [column.kind == "time" for column in sheet.columns]
    nested = [column.kind == "json" for column in sheet.columns]

    def cells(row: Sequence[Any]) -> list[Any]:
        return [
            spreadsheet.cell(_text(value) if inner and value is not None else value, time)
            for value, time, inner in zip(row, times, nested, strict=True)
        ]

    for text in spreadsheet.written(sheet.names, map(cells, sheet.rows)):
        yield text.encode()


def json_array(sheet: Sheet) -> Iterator[bytes]:
    """An array with one object on each line."""
    names = sheet.names
    separator = "[\n "
    rows = iter(sheet.rows)
    while batch := list(islice(rows, 500)):
        lines = (_text(dict(zip(names, row, strict=True))) for row in batch)
        yield (separator + ",\n ".join(lines)).encode()
        separator = ",\n "
    yield b"[\n]\n" if separator.startswith("[") else b"\n]\n"


def parquet(sheet: Sheet) -> Iterator[bytes]:
    """An Apache Parquet file, compressed; times are timestamps in UTC."""
    arrow = _pyarrow()
    from pyarrow import parquet as writers

    pipe, schema = _Pipe(), _schema(arrow, sheet)
    with writers.ParquetWriter(pipe, schema, compression="zstd") as writer:
        for batch in _batches(arrow, schema, sheet):
            writer.write_batch(batch)
            yield pipe.taken()
    yield pipe.taken()


def arrow(sheet: Sheet) -> Iterator[bytes]:
    """An Apache Arrow IPC stream."""
    library = _pyarrow()
    pipe, schema = _Pipe(), _schema(library, sheet)
    with library.ipc.new_stream(pipe, schema) as writer:
        for batch in _batches(library, schema, sheet):
            writer.write_batch(batch)
            yield pipe.taken()
    yield pipe.taken()


FORMATS: Final[dict[str, Format]] = {
    "csv": Format("text/csv; charset=utf-8", csv),
    "json": Format("application/json", json_array),
    "parquet": Format("application/vnd.apache.parquet", parquet),
    "arrow": Format("application/vnd.apache.arrow.stream", arrow),
}


def check(form: str) -> Format:
    """The format of a name; ShoalError bad-request if there is none, or if what it needs is not installed."""
    if form not in FORMATS:
        raise ShoalError("bad-request", f"format is {form[:40]!r}, expected one of {', '.join(FORMATS)}")
    if form in ("parquet", "arrow"):
        _pyarrow()
    return FORMATS[form]


class _Pipe(io.RawIOBase):
    """What a writer has written since it was last taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._place += len(part)
        return len(part)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


_HELD: Final[dict[Kind, tuple[type[Any], ...]]] = {
    "text": (str,),
    "json": (str,),
    "integer": (int,),
    "time": (int,),
    "number": (float, int),
    "boolean": (bool,),
}


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        hint = "pip install 'shoal[parquet]'"
        raise ShoalError("bad-request", f"Parquet and Arrow need pyarrow, which cannot be used: {hint}") from error
    return pyarrow


def _schema(arrow: Any, sheet: Sheet) -> Any:
    types = {
        "text": arrow.string(),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "boolean": arrow.bool_(),
        "time": arrow.timestamp("us", tz="UTC"),
        "json": arrow.string(),
    }
    return arrow.schema([(column.name, types[column.kind]) for column in sheet.columns])


def _batches(arrow: Any, schema: Any, sheet: Sheet) -> Iterator[Any]:
    rows = iter(sheet.rows)
    while batch := list(islice(rows, BATCH)):
        given = zip(*batch, strict=True)
        columns = zip(given, sheet.columns, schema, strict=True)
        arrays = [_array(arrow, values, column, field.type) for values, column, field in columns]
        yield arrow.RecordBatch.from_arrays(arrays, schema=schema)


def _array(arrow: Any, values: Sequence[Any], column: Column, kind: Any) -> Any:
    """Made of buffers: of Python's values pyarrow wants to know whether they are pandas', and loads that (50 MB)."""
    if column.kind == "time":
        values = [None if value is None else round(value * 1e6) for value in values]
    elif column.kind == "json":
        values = [None if value is None else _text(value) for value in values]
    held = _HELD[column.kind]
    if strange := next((value for value in values if value is not None and not isinstance(value, held)), None):
        what = f"{type(strange).__name__} among {held[0].__name__}"
        detail = f"Column {column.name} does not hold the same kind of value in every row: CAST it to one ({what})"
        raise ShoalError("bad-request", detail)
    present = np.packbits([value is not None for value in values], bitorder="little")
    if held == (str,):
        texts = [b"" if value is None else value.encode(errors="replace") for value in values]
        parts = [np.cumsum([0, *map(len, texts)], dtype=np.int32), b"".join(texts)]
    elif column.kind == "boolean":
        parts = [np.packbits([bool(value) for value in values], bitorder="little")]
    else:
        plain = np.float64 if column.kind == "number" else np.int64
        parts = [np.array([0 if value is None else value for value in values], dtype=plain)]
    return arrow.Array.from_buffers(kind, len(values), [arrow.py_buffer(part) for part in (present, *parts)])


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
