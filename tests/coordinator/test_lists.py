"""History over HTTP: pages with a cursor, files in four formats, and questions in SQL within limits."""

from __future__ import annotations

import io
import json

import pytest
from pyarrow import parquet

from benchmarks.fleet import Fleet
from coordinator.api import lists
from tests.conftest import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def client(app, database):
    Fleet(updates=60).write(database)
    return app.test_client()


def problem(response, code):
    assert response.status_code >= 400
    assert response.json["code"] == code
    return response.json["detail"]


def ask(client, bearer, sql, path="/sql", who="olga", **more):
    return client.post(f"/api/v1{path}", json={"sql": sql, **more}, headers=bearer[who])


def test_cursors_lead_through_a_list_from_beginning_to_end(client, bearer):
    seen, path = [], "/api/v1/history/updates?limit=25"
    while True:
        page = client.get(path, headers=bearer["vic"]).json
        seen += [row["id"] for row in page["rows"]]
        if page["cursor"] is None:
            break
        path = f"/api/v1/history/updates?limit=25&cursor={page['cursor']}"
    assert seen == sorted(set(seen))
    assert len(seen) > 50
    assert {"name": "at", "kind": "time"} in page["columns"]


def test_a_list_is_a_file_in_every_format(client, bearer):
    def get(form):
        return client.get(f"/api/v1/history/decisions/{form}?run=digits-1", headers=bearer["vic"])

    rows = json.loads(get("json").data)
    assert {row["run_id"] for row in rows} == {"digits-1"}
    assert get("csv").text.count("\r\n") == len(rows) + 1
    assert parquet.read_table(io.BytesIO(get("parquet").data)).num_rows == len(rows)
    assert get("arrow").headers["Content-Disposition"] == 'attachment; filename="decisions.arrow"'


@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        ("/history/secrets", "not-found", "There is no list 'secrets', only runs, updates"),
        ("/history/secrets/csv", "not-found", "There is no list 'secrets'"),
        ("/history/runs/xlsx", "bad-request", "format is 'xlsx'"),
        ("/history/runs?limit=0", "bad-request", "limit is 0, expected 1 to 1000"),
        ("/history/runs?cursor=x", "bad-request", "cursor is 'x'"),
        ("/history/runs?since=-1", "bad-request", "since is -1"),
        ("/history/runs?colour=red", "bad-request", "Unknown field colour"),
        ("/history/runs/csv?device=pico", "bad-request", "cannot be narrowed to a device"),
    ],
)
def test_what_makes_no_sense_is_refused(client, bearer, path, code, sentence):
    assert sentence in problem(client.get(f"/api/v1{path}", headers=bearer["vic"]), code)


def test_a_question_is_answered(client, bearer):
    answer = ask(client, bearer, "SELECT id, seed FROM run ORDER BY id").json
    assert answer["columns"] == [{"name": "id", "kind": "text"}, {"name": "seed", "kind": "integer"}]
    assert answer["rows"][1] == {"id": "digits-2", "seed": 1}
    file = ask(client, bearer, "SELECT id FROM run ORDER BY id", "/sql/csv")
    assert file.text == "id\r\ndigits-1\r\ndigits-2\r\nhar-1\r\n"
    file.close()


@pytest.mark.parametrize("path", ["/sql", "/sql/parquet"])
def test_a_question_that_would_write_or_spy_is_refused(client, bearer, path):
    assert "begin with SELECT" in problem(ask(client, bearer, "DELETE FROM run", path), "bad-request")
    assert "not for reading" in problem(ask(client, bearer, "SELECT * FROM api_token", path), "bad-request")
    assert "limit is 0" in problem(ask(client, bearer, "SELECT 1", path, limit=0), "bad-request")
    problem(ask(client, bearer, "SELECT 1", path, who="vic"), "not-allowed")


def test_a_question_that_takes_too_long_is_cut_off(client, bearer, monkeypatch):
    monkeypatch.setattr(lists, "SECONDS", 0.2)
    sql = "SELECT count(*) FROM assignment a, assignment b, assignment c, assignment d, assignment e, assignment f"
    assert "stopped after 0.2 s" in problem(ask(client, bearer, sql), "bad-request")


def test_a_third_question_at_the_same_time_has_to_wait(client, bearer, monkeypatch):
    first, second = (ask(client, bearer, "SELECT id FROM run", "/sql/csv", limit=1) for _ in range(2))
    assert "ask again in a moment" in problem(ask(client, bearer, "SELECT 1"), "busy")
    for response in (first, second):
        response.close()
    assert ask(client, bearer, "SELECT 1 AS one").json["rows"] == [{"one": 1}]
