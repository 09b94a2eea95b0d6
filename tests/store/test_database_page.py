"""docs/database.md describes every table, view and column there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coordinator.store import views
from coordinator.store.diagram import drawn, kind
from coordinator.store.models import Base

PAGE = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
TABLES = {**Base.metadata.tables, **views.metadata.tables}


def described(name):
    """The rows (column, type, unit, meaning) of a table's section."""
    section = re.search(rf"^### `{name}`\n(.*?)(?=^### |^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/database.md has no section for {name}"
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", section[1], re.MULTILINE)
    return [tuple(cell.strip() for cell in row) for row in rows]


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described_with_its_type_unit_and_meaning(name):
    table = TABLES[name]
    derived = {f"{c.name}{end}" for c in table.columns if kind(c) == "time" for end in ("_utc", "_s")}
    expected = [(c.name, kind(c)) for c in table.columns if c.name not in derived]
    rows = described(name)
    assert [row[:2] for row in rows] == expected
    assert all(meaning for *_, meaning in rows)
    assert all(unit for _, word, unit, _ in rows if word == "time")


@pytest.mark.parametrize("name", Base.metadata.tables)
def test_every_reference_is_told(name):
    meanings = {row[0]: row[3] for row in described(name)}
    for column in TABLES[name].columns:
        for key in column.foreign_keys:
            assert f"→ `{key.column.table.name}`" in meanings[column.name]
        if column.nullable:
            assert "empty" in meanings[column.name], column.name


def test_no_table_is_described_that_is_not_there():
    assert sorted(re.findall(r"^### `(\w+)`", PAGE, re.MULTILINE)) == sorted(TABLES)


def test_the_list_on_top_names_them_all():
    assert {name for name in TABLES if f"| `{name}` | " in PAGE} == set(TABLES)


def test_the_diagram_is_drawn_from_the_tables_as_they_are():
    assert drawn(PAGE, Base.metadata) == PAGE, "draw it anew with `make docs`"


def test_a_page_without_a_place_for_the_diagram_is_refused():
    with pytest.raises(ValueError, match="0 places for the diagram"):
        drawn("# Database\n", Base.metadata)
