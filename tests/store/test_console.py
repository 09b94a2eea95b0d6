"""SQL of people: it reads, it cannot write, it sees no secret, and it ends."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.fleet import Fleet
from coordinator.errors import ShoalError
from coordinator.store import console
from coordinator.store.database import Database
from tests.conftest import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def url(request, new_database):
    url = new_database(request.param)
    database = Database(url)
    Fleet().write(database)
    database.close()
    return url


def ask(url, sql, limit=1000, seconds=5.0):
    with console.ask(url, sql, limit=limit, seconds=seconds) as sheet:
        return [(column.name, column.kind) for column in sheet.columns], [list(row) for row in sheet.rows]


def refused(url, sql, **limits):
    with pytest.raises(ShoalError) as caught:
        ask(url, sql, **limits)
    assert caught.value.code == "bad-request"
    return caught.value.detail


def test_a_select_is_answered_with_names_kinds_and_values(url):
    columns, rows = ask(url, "SELECT id, count(*) AS n, 0.5 AS half, NULL AS empty FROM run GROUP BY id ORDER BY id;")
    assert columns == [("id", "text"), ("n", "integer"), ("half", "number"), ("empty", "text")]
    assert rows[0] == ["digits-1", 1, 0.5, None]


def test_comments_quotes_and_common_table_expressions_are_understood(url):
    sql = """-- one; two
    WITH grouped AS (SELECT "group", count(*) AS "n;m" FROM device GROUP BY "group") /* drop table */
    SELECT * FROM grouped WHERE "group" = 'pi5' AND '-- x; ''y''' <> '' """
    assert ask(url, sql)[1] == [["pi5", 3]]


def test_no_more_rows_come_than_were_asked_for(url):
    assert len(ask(url, 'SELECT id FROM "update" ORDER BY id', limit=7)[1]) == 7


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("DELETE FROM device", "has to begin with SELECT"),
        ('UPDATE "update" SET weight = 1', "has to begin with SELECT"),
        ("PRAGMA journal_mode=DELETE", "has to begin with SELECT"),
        ("ATTACH 'x.db' AS x", "has to begin with SELECT"),
        ("COPY device TO PROGRAM 'id'", "has to begin with SELECT"),
        ("EXPLAIN ANALYZE SELECT 1", "has to begin with SELECT"),
        ("", "has to begin with SELECT"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT 1; DROP TABLE device", "more than one statement"),
        ("SELECT 1 /* ; */ ; -- \n DROP TABLE device", "more than one statement"),
        ("WITH gone AS (DELETE FROM device RETURNING id) SELECT * FROM gone", "DELETE is not allowed"),
        ("SELECT * INTO copy FROM device", "INTO is not allowed"),
        ("SELECT * FROM device FOR UPDATE", "UPDATE is not allowed"),
        ("SELECT count(*) FROM update", "is written \"update\""),
        ("WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT * FROM n) SELECT * FROM n", "RECURSIVE is not allowed"),
        ("SELECT pg_sleep(60)", "pg_sleep is not for reading"),
        ('SELECT "pg_sleep"(60)', "pg_sleep is not for reading"),
        ("SELECT PG_SLEEP (60)", "pg_sleep is not for reading"),
        ("SELECT * FROM pg_catalog.pg_user", "pg_catalog is not for reading"),
        ("SELECT * FROM information_schema.tables", "information_schema is not for reading"),
        ("SELECT * FROM sqlite_master", "sqlite_master is not for reading"),
        ("SELECT * FROM pragma_table_info('device')", "pragma_table_info is not for reading"),
        ("SELECT * FROM credential", "credential is not for reading"),
        ('SELECT * FROM "api_token"', "api_token is not for reading"),
        ("SELECT secret_hash FROM public.enrolment_token", "enrolment_token is not for reading"),
        ("SELECT load_extension('x')", "function load_extension is not allowed"),
        ("SELECT set_config('role', 'postgres', false)", "function set_config is not allowed"),
        ("SELECT query_to_xml('SELECT 1', true, true, '')", "function query_to_xml is not allowed"),
        ("SELECT lo_import('/etc/passwd')", "function lo_import is not allowed"),
        ("SELECT randomblob(1000000000)", "function randomblob is not allowed"),
        ("SELECT * FROM generate_series(1, 1000000000)", "function generate_series is not allowed"),
        ("SELECT E'\\' ; DROP TABLE device; --'", "texts with a prefix"),
        ('SELECT * FROM U&"cr\\0065dential"', "is not understood"),
        ("SELECT $$x$$", "is not understood"),
        ("SELECT * FROM [credential]", "is not understood"),
        ("SELECT * FROM `credential`", "is not understood"),
        ("SELECT " + "1," * 6000 + "1", "at most 10000"),
        ("SELECT nonsense FROM device", "The statement failed: .*nonsense"),
        ("SELECT 'open", "is not understood"),
    ],
)  # fmt: skip
def test_what_is_no_harmless_select_is_refused_with_a_sentence(url, sql, sentence):
    detail = refused(url, sql)
    assert re.search(sentence, detail), detail


def test_a_huge_join_is_cut_off(url):
    began = time.monotonic()
    said = refused(url, 'SELECT count(*) FROM "update" a, "update" b, "update" c, "update" d', seconds=0.3)
    assert "stopped after 0.3 s" in said
    assert time.monotonic() - began < 30


def test_a_flood_of_rows_is_cut_off(url):
    flood = 'SELECT a.id FROM "update" a, "update" b, "update" c, "update" d'
    assert "stopped after 0.3 s" in refused(url, flood, limit=10**12, seconds=0.3)


@pytest.mark.parametrize("sql", ["DELETE FROM device", "CREATE TABLE x (y INTEGER)", "SELECT * FROM credential"])
def test_where_the_words_are_not_looked_at_the_database_itself_refuses(url, sql, monkeypatch):
    database = Database(url)
    if database.engine.dialect.name == "postgresql":
        with database.engine.begin() as connection:
            make_reader(connection)
    monkeypatch.setattr(console, "check", lambda sql: sql)
    assert "The statement failed" in refused(url, sql)
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM device")).scalar() == 12
    database.close()


def make_reader(connection):
    """The statements that docs/database.md gives to administrators of PostgreSQL."""
    page = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
    statements = page.split("<!-- reader -->\n\n```sql\n")[1].split("```")[0]
    if not connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = 'shoal_reader'")).scalar():
        connection.execute(text("CREATE ROLE shoal_reader NOLOGIN"))
    for statement in statements.split(";\n")[1:]:
        if statement.strip():
            connection.execute(text(statement))
