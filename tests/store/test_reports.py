"""Lists of history: filtered, in one order, page by page or all at once, in every format."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from benchmarks.fleet import Fleet
from coordinator import export
from coordinator.errors import ShoalError
from coordinator.export import Column, Sheet
from coordinator.store import reports
from coordinator.store.database import Database
from coordinator.store.reports import REPORTS, Wanted
from tests.conftest import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def session(request, new_database):
    database = Database(new_database(request.param))
    Fleet().write(database)
    with database.read() as session:
        yield session
    database.close()


def column(sheet, name):
    place = sheet.names.index(name)
    return [row[place] for row in sheet.rows]


@pytest.mark.parametrize("name", REPORTS)
def test_pages_put_together_are_the_whole_list(session, name):
    report = REPORTS[name]
    whole = [list(row) for row in reports.rows(session, report, Wanted()).rows]
    paged, after = [], ""
    while page := [
        list(row) for row in reports.rows(session, report, Wanted(), after=after, limit=max(1, len(whole) // 3)).rows
    ]:
        paged += page
        after = reports.cursor(report, page[-1])
    assert paged == whole
    assert [list(row) for row in reports.latest(session, report, Wanted(), 2).rows] == whole[-2:]
    assert set(report.shown) <= {one.name for one in report.columns}


def test_conditions_narrow_a_list(session):
    updates, decisions = REPORTS["updates"], REPORTS["decisions"]
    assert set(column(reports.rows(session, updates, Wanted(run="har-1")), "run_id")) == {"har-1"}
    assert set(column(reports.rows(session, updates, Wanted(device="pi5-001")), "device")) == {"pi5-001"}
    assert set(column(reports.rows(session, updates, Wanted(equal={"outcome": "stale"})), "outcome")) == {"stale"}
    middle = column(reports.rows(session, decisions, Wanted()), "offered")[200]
    early = column(reports.rows(session, decisions, Wanted(until=middle)), "offered")
    late = column(reports.rows(session, decisions, Wanted(since=middle)), "offered")
    assert (early[-1], late[0], len(early) + len(late)) == (middle, middle, 401)
    assert column(reports.rows(session, updates, Wanted(device="eve")), "id") == []


def test_a_list_of_runs_cannot_be_narrowed_to_a_device(session):
    with pytest.raises(ShoalError, match="cannot be narrowed to a device"):
        reports.rows(session, REPORTS["runs"], Wanted(device="pi5-001"))


@pytest.mark.parametrize("cursor", ["x", "W10", "WzFd", "bnVsbA", "WyJ4IiwieSJd", "e30", "✓", "A" * 10_000])
def test_a_made_up_cursor_is_refused(session, cursor):
    with pytest.raises(ShoalError, match="expected one of an earlier answer"):
        reports.rows(session, REPORTS["runs"], Wanted(), after=cursor)


def written(sheet, form):
    return b"".join(export.check(form).write(sheet))


def test_every_format_holds_the_same_rows(session):
    def sheet():
        return reports.rows(session, REPORTS["updates"], Wanted(run="digits-1"))

    plain = [dict(zip(sheet().names, row, strict=True)) for row in sheet().rows]
    assert json.loads(written(sheet(), "json")) == plain
    lines = list(csv.DictReader(io.StringIO(written(sheet(), "csv").decode())))
    assert [int(line["id"]) for line in lines] == [row["id"] for row in plain]
    assert lines[0]["at"].startswith("2023-11-14T22:2")
    tables = (
        parquet.read_table(io.BytesIO(written(sheet(), "parquet"))),
        pyarrow.ipc.open_stream(written(sheet(), "arrow")).read_all(),
    )
    for table in tables:
        rows = table.to_pylist()
        assert [{**row, "at": row["at"].timestamp()} for row in rows] == plain
        assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"


def test_json_columns_are_text_in_files_for_tables(session):
    table = pyarrow.ipc.open_stream(written(reports.rows(session, REPORTS["decisions"], Wanted()), "arrow")).read_all()
    assert {"whale_fl", "heterofl", "fixed"} == {
        key for text in table["explanation"].to_pylist() for key in json.loads(text)
    }


@pytest.mark.parametrize("form", export.FORMATS)
def test_nothing_is_a_file_as_well(form):
    content = written(Sheet((Column("id", "integer"), Column("at", "time")), []), form)
    found = {
        "csv": lambda: list(csv.reader(io.StringIO(content.decode()))) == [["id", "at"]],
        "json": lambda: json.loads(content) == [],
        "parquet": lambda: parquet.read_table(io.BytesIO(content)).column_names == ["id", "at"],
        "arrow": lambda: pyarrow.ipc.open_stream(content).read_all().num_rows == 0,
    }
    assert found[form]()


def test_a_column_that_changes_its_kind_gets_a_sentence():
    sheet = Sheet((Column("x", "integer"),), [(1,), ("two",)])
    with pytest.raises(ShoalError, match="Column x does not hold the same kind of value in every row"):
        written(sheet, "parquet")


def test_an_unknown_format_is_refused():
    with pytest.raises(ShoalError, match="format is 'xlsx', expected one of csv, json, parquet, arrow"):
        export.check("xlsx")


@pytest.mark.parametrize("form", export.FORMATS)
def test_memory_does_not_grow_with_the_rows(form):
    def peak(count):
        sheet = Sheet(
            (Column("id", "integer"), Column("text", "text")), ((number, "x" * 50) for number in range(count))
        )
        tracemalloc.start()
        for _ in export.check(form).write(sheet):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # imports
    assert peak(40_000) < 1.5 * peak(15_000)
