"""History: columns, files, the SQL behind the list, and the console."""

from __future__ import annotations

import csv
import io
import re
from html import unescape

import pytest

from coordinator.store import queries
from coordinator.store.models import Device, Update
from coordinator.store.queries import Order, UpdateFilter
from tests.web.conftest import post
from tests.web.fleet import NOW


def heads(page):
    return [re.sub("<[^>]+>", "", head) for head in re.findall(r"<th scope=\"col\".*?</th>", page)]


def answer(page):
    """The rows of the console's answer."""
    body = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[1]
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in body.split("</tr>")[:-1]]


def test_the_columns_asked_for_are_shown_in_their_own_order(olga):
    page = olga.get("/history?column=staleness&column=device&run=har-night").text

    assert heads(page) == ["Device", "Staleness"]
    assert "column=staleness&amp;column=device&amp;run=har-night&amp;sort=-staleness" in page


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_the_filter_holds_for_every_file(olga, database, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    with database.read() as session:
        expected = session.query(Update).filter_by(outcome="stale").count()
    found = olga.get(f"/history.{form}?outcome=stale")

    assert found.headers["Content-Disposition"] == f'attachment; filename="updates.{form}"'
    if form == "csv":
        count = len(list(csv.reader(io.StringIO(found.text)))) - 1
    elif form == "json":
        count = len(found.get_json())
    else:
        from pyarrow import parquet

        count = parquet.read_table(io.BytesIO(found.data)).num_rows
    assert count == expected > 0


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (UpdateFilter(), Order("id", True, 1, 50)),
        (UpdateFilter(run="har-night", outcome="applied", width=0.5), Order("staleness", True, 1, 30)),
        (UpdateFilter(device="pi5-barn-00"), Order("device", False, 1, 20)),
        (UpdateFilter(since=NOW - 200, until=NOW - 60), Order("applied_version", False, 2, 7)),
        (UpdateFilter(run="x' OR '1'='1"), Order("at", True, 1, 50)),
    ],
)
def test_the_sql_behind_the_page_gives_the_rows_of_the_page(opened, wanted, order):
    from coordinator.store import console

    app, database = opened
    with database.read() as session:
        expected = [row.id for row in queries.updates(session, wanted, order).rows]
    url = app.extensions["shoal"].settings.reader_url
    with console.ask(url, queries.statement(wanted, order), limit=1000, seconds=10) as sheet:
        assert [row[0] for row in sheet.rows] == expected


def test_a_question_is_answered_with_its_rows(olga):
    page = post(olga, "/history/sql", sql="SELECT name, 1.5 AS half FROM device ORDER BY name LIMIT 2").text

    assert answer(page) == [["pi3-barn-10", "1.5"], ["pi3-dock-06", "1.5"]]
    assert "2 rows" in page


def test_a_million_rows_are_cut_and_the_page_says_so(olga):
    page = post(olga, "/history/sql", sql="SELECT a.id FROM telemetry a, telemetry b").text

    assert len(answer(page)) == 200
    assert "The first 200 rows" in page


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DELETE FROM device", "begin with SELECT"),
        ("SELECT secret_hash FROM api_token", "api_token is not for reading"),
        ("SELECT nonsense FROM device", "no such column"),
        ("", "begin with SELECT"),
        ("</textarea><script>alert(1)</script>", "refused"),
    ],
)
def test_what_is_refused_is_told_beside_the_statement_which_stays(olga, sql, says):
    found = post(olga, "/history/sql", sql=sql)

    assert found.status_code == 400
    assert says in re.search(r'id="wrong-sql">(.*?)</span>', found.text, re.DOTALL)[1]
    assert "<script>alert" not in found.text


def test_hostile_values_in_an_answer_stay_text(olga, database):
    with database.write() as session:
        session.get(Device, "d0003").name = "<script>alert(1)</script>\u202e"
    page = post(olga, "/history/sql", sql="SELECT name FROM device").text

    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_an_answer_can_be_had_as_a_file(olga):
    found = post(olga, "/history/sql.csv", sql="SELECT id FROM run ORDER BY id")

    assert found.text.split() == ["id", "har-night", "har-pilot", "har-wide"]


def test_nothing_is_asked_by_a_link(olga):
    page = olga.get("/history/sql?sql=SELECT+1").text

    assert "SELECT 1" in page
    assert "<tbody>" not in page


def test_a_viewer_sees_the_sql_but_asks_none(vic):
    page = vic.get("/history").text

    assert "FROM v_update_ledger" in page
    assert "/history/sql" not in page
    assert vic.get("/history/sql").status_code == 403
    assert post(vic, "/history/sql", sql="SELECT 1").status_code == 403
    assert post(vic, "/history/sql.csv", sql="SELECT 1").status_code == 403
