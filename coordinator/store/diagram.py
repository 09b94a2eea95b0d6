"""``python -m coordinator.store.diagram PAGE``: draws the tables into a page, as Mermaid between two comments."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import JSON, Boolean, Column, Float, Integer, MetaData, Table

from coordinator.export import Kind
from coordinator.store.models import Base, Instant

BEGIN: Final = "<!-- diagram: made by `make docs` -->"
END: Final = "<!-- end of diagram -->"

_KINDS: Final[tuple[tuple[type[Any], Kind], ...]] = (
    (Instant, "time"),
    (JSON, "json"),
    (Boolean, "boolean"),
    (Float, "number"),
    (Integer, "integer"),  # BigInteger is one
)


def kind(column: Column[Any]) -> Kind:
    """What a column holds, in a word: text, integer, number, boolean, time or json."""
    return next((word for cls, word in _KINDS if isinstance(column.type, cls)), "text")


def mermaid(metadata: MetaData) -> str:
    """Every table with its keys, and what refers to what."""
    lines = ["```mermaid", "erDiagram"]
    for table in sorted(metadata.tables.values(), key=lambda table: table.name):
        lines += _references(table)
    for table in sorted(metadata.tables.values(), key=lambda table: table.name):
        lines += [f"  {table.name} {{", *_keys(table), "  }"]
    return "\n".join([*lines, "```"])


def drawn(page: str, metadata: MetaData) -> str:
    """The page with the diagram in its place; ValueError if it has none."""
    diagram = f"{BEGIN}\n{mermaid(metadata)}\n{END}"
    made, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: diagram, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for the diagram, expected one between {BEGIN} and {END}")
    return made


def _references(table: Table) -> Iterator[str]:
    for column in table.columns:
        for key in column.foreign_keys:
            there = "o|" if column.nullable else "||"
            yield f"  {key.column.table.name} {there}--o{{ {table.name} : {column.name}"


def _keys(table: Table) -> Iterator[str]:
    for column in table.columns:
        marks = ["PK"] if column.primary_key else []
        marks += ["FK"] if column.foreign_keys else ["UK"] if column.unique else []
        if marks:
            yield f"    {kind(column)} {column.name} {', '.join(marks)}"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(drawn(place.read_text(encoding="utf-8"), Base.metadata), encoding="utf-8")
