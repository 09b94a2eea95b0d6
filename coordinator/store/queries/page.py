"""Sorted lists in pages: which page is asked for, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from attrs import frozen
from sqlalchemy import Column, ColumnElement, Integer, cast, extract, literal_column
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.errors import ShoalError

T = TypeVar("T")
Columns = Mapping[str, ColumnElement[Any] | InstrumentedAttribute[Any]]

MAX_SIZE = 1000


@frozen
class Order:
    """Page ``page`` (from 1) of ``size`` rows, sorted by the column called ``sort``."""

    sort: str
    descending: bool = False
    page: int = 1
    size: int = 50

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.page <= 1_000_000:
            raise ShoalError("bad-request", f"page is {self.page}, expected 1 to 1000000")
        if not 1 <= self.size <= MAX_SIZE:
            raise ShoalError("bad-request", f"size is {self.size}, expected 1 to {MAX_SIZE}")

    @classmethod
    def parse(cls, sort: str, page: int = 1, size: int = 50) -> Order:
        """``sort`` as it stands in a URL: a column's name, with a minus in front for the largest first."""
        return cls(sort.removeprefix("-"), sort.startswith("-"), page, size)

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.size

    def by(self, columns: Columns, unique: ColumnElement[Any] | InstrumentedAttribute[Any]) -> list[Any]:
        """The ORDER BY terms. Unknown values come last either way; ``unique`` makes the order total."""
        if self.sort not in columns:
            raise ShoalError("bad-request", f"sort is {self.sort[:40]!r}, expected one of {', '.join(columns)}")
        column = columns[self.sort]
        direct: Callable[[Any], Any] = (lambda c: c.desc()) if self.descending else (lambda c: c.asc())
        # An index serves the order only where nothing is said about unknown values.
        term = direct(column) if _always_known(column, unique) else direct(column).nulls_last()
        return [term, direct(unique)]


@frozen
class Page(Generic[T]):
    """One page of a list that has ``total`` rows."""

    rows: tuple[T, ...]
    total: int
    order: Order

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.order.size))

    @property
    def first(self) -> int:
        """The number of the first row, from 1; 0 if there is none."""
        return self.order.offset + 1 if self.rows else 0

    @property
    def last(self) -> int:
        return self.order.offset + len(self.rows)


def slot(moment: InstrumentedAttribute[Any], origin: float, seconds: int) -> ColumnElement[int]:
    """Which span of ``seconds`` a moment lies in, counted from 0 at ``origin`` (s since 1970)."""
    # Written out, not bound: PostgreSQL must recognise the same expression in SELECT and GROUP BY.
    begin, length = (literal_column(str(int(number)), Integer) for number in (origin, seconds))
    return (cast(extract("epoch", moment), Integer) - begin) // length


def _always_known(column: Any, unique: Any) -> bool:
    """Whether it is a column of the listed table itself, and never null there."""
    column, own = getattr(column, "expression", column), unique.expression.table
    return isinstance(column, Column) and column.table is own and not column.nullable
