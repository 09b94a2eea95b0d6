"""The API: what each side may do, how it refuses, and that its numbers are those of the database."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from coordinator import api, auth
from coordinator.fleet import tokens
from coordinator.fleet.authority import establish, fingerprint
from coordinator.store.models import Assignment, Device, EnrolmentToken, Event, Refresh
from coordinator.store.segments import Segments
from coordinator.training.steward import Steward
from protocol.messages import EnrolmentReply
from protocol.wire import decode, unstructure
from tests.coordinator.people import (
    HEARTBEAT,
    START,
    add_assignment,
    add_run,
    add_update,
    basic,
    request_of,
)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def token(services):
    with services.database.write() as session:
        return tokens.create(session, START, group="kitchen", uses=2, by="ada")


@pytest.fixture
def worked(services, boards):
    """One run in which pico has sent three updates, one of them refused."""
    with services.database.write() as session:
        add_run(session, "run-1", START)
        add_assignment(session, "a-1", "pico", START, state="closed")
        for commit, outcome in enumerate(("applied", "applied", "refused"), start=1):
            reason = "=HYPERLINK(1), it said" if outcome == "refused" else ""
            add_update(session, "a-1", "pico", START + commit, commit=commit, outcome=outcome, reason=reason)


def problem(response, code, status):
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    assert response.json["type"] == f"urn:shoal:error:{code}"
    assert response.json["code"] == code
    assert response.json["status"] == status
    assert response.json["title"]
    return response.json["detail"]


def joins(client, board, token, **changes):
    return client.post("/api/v1/enrol", json=unstructure(request_of(board, token, **changes)))


class TestJoining:
    def test_a_device_joins_and_is_told_where_the_broker_is(self, client, token):
        answer = joins(client, "pico", token)
        reply = decode(EnrolmentReply, answer.data)
        assert (reply.device, reply.broker_host, reply.broker_port) == ("pico", "localhost", 1883)
        assert (reply.broker_tls, reply.heartbeat) == (False, HEARTBEAT)
        assert joins(client, "pico", token).json == answer.json

    @pytest.mark.parametrize(
        ("host", "told"),
        [("10.0.0.7:8750", "10.0.0.7"), ("shoal.local", "shoal.local"), ("[fd00::1]:8750", "fd00::1")],
    )
    def test_the_broker_is_at_the_host_that_the_device_has_reached(self, client, token, host, told):
        body = unstructure(request_of("pico", token))
        assert client.post("/api/v1/enrol", json=body, headers={"Host": host}).json["broker_host"] == told

    def test_a_wrong_token_is_refused_in_one_sentence(self, client, boards):
        detail = problem(joins(client, "eve", "shoal1.made.up.-"), "token-invalid", 401)
        assert "mistyped" in detail

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"color": "red"}, "missing or unknown fields: 'color'"),
            ({"secret": "short"}, "secret"),
            ({"secret": 7}, "secret"),
            ({"name": None}, "name"),
            ({"name": "../../etc"}, "name"),
        ],
    )
    def test_a_malformed_request_is_refused_by_the_name_of_its_field(self, client, token, change, sentence):
        body = {**unstructure(request_of("pico", token)), **change}
        assert sentence in problem(client.post("/api/v1/enrol", json=body), "bad-request", 400)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
    def test_what_is_not_the_expected_json_is_refused(self, client, data):
        problem(client.post("/api/v1/enrol", data=data), "bad-request", 400)

    def test_a_large_body_is_refused(self, client):
        problem(client.post("/api/v1/enrol", data=b"x" * ((1 << 20) + 1)), "too-large", 413)

    def test_a_coordinator_that_is_starting_or_stopping_is_not_held_against_the_device(self, services, token, home):
        resting = Steward(
            services.database, services.blobs, Segments(home / "segments"), heartbeat=10.0,
            send=lambda *_: None, cut_off=lambda _: None,
        )  # fmt: skip
        app = Flask("shoal")
        auth.install(app, evolve(services, commands=resting))
        api.install(app)
        for _ in range(25):
            problem(joins(app.test_client(), "pico", token), "busy", 503)

    def test_an_address_that_fails_20_times_waits_10_minutes(self, client, token, clock):
        for _ in range(20):
            problem(joins(client, "eve", "shoal1.made.up.-"), "token-invalid", 401)
        refused = joins(client, "pico", token)
        assert "600 seconds" in problem(refused, "too-many-requests", 429)
        assert refused.headers["Retry-After"] == "600"
        elsewhere = client.post(
            "/api/v1/enrol",
            json=unstructure(request_of("tre", token)),
            environ_base={"REMOTE_ADDR": "192.0.2.7"},
        )
        assert elsewhere.json["device"] == "tre"
        clock.later(600)
        assert joins(client, "pico", token).json["device"] == "pico"

    def test_without_encryption_there_is_no_authority(self, client):
        problem(client.get("/api/v1/authority"), "not-found", 404)

    def test_the_authority_is_open_to_everybody_and_named_in_new_tokens(self, services, bearer, clock):
        pem = establish(services.settings.home, now=datetime.fromtimestamp(START, UTC)).ca.read_bytes()
        app = Flask("encrypted")
        auth.install(app, evolve(services, settings=evolve(services.settings, tls="on")))
        api.install(app)
        client = app.test_client()
        assert client.get("/api/v1/authority").data == pem
        made = client.post("/api/v1/tokens", json={}, headers=bearer["olga"]).json
        assert made["token"].endswith("." + fingerprint(pem))


class TestBlobs:
    @pytest.fixture
    def content(self):
        return bytes(range(256)) * 40

    @pytest.fixture
    def url(self, services, boards, content):
        sha256 = services.blobs.put(content)
        with services.database.write() as session:
            add_run(session, "run-1", START)
            add_assignment(session, "a-1", "pico", START, artifact=sha256)
            add_assignment(session, "a-2", "cinque", START, weights=sha256, state="closed")
        return f"/api/v1/device/blobs/{sha256}"

    def test_a_device_gets_what_its_open_assignment_names(self, client, url, content):
        got = client.get(url, headers=basic("pico"))
        assert got.status_code == 200
        assert got.data == content
        assert got.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert got.headers["Accept-Ranges"] == "bytes"

    def test_a_device_gets_the_fresh_models_it_was_sent_in_mid_training(self, client, url, services):
        sha256 = services.blobs.put(b"fresh")
        sent = {"merge": 1.0, "keep": 1.0, "weights_sha256": sha256, "bytes_down": 5, "at": START}
        with services.database.write() as session:
            session.add(Refresh(assignment_id="a-1", version=3, **sent))
        fresh = f"/api/v1/device/blobs/{sha256}"
        assert client.get(fresh, headers=basic("pico")).data == b"fresh"
        problem(client.get(fresh, headers=basic("tre")), "not-allowed", 403)

    def test_the_home_may_be_a_relative_path(self, client, url, content, services, home, monkeypatch):
        monkeypatch.chdir(home)
        monkeypatch.setattr(services.blobs, "folder", Path("blobs"))
        assert client.get(url, headers=basic("pico")).data == content

    def test_a_broken_download_goes_on_where_it_stopped(self, client, url, content):
        tag = client.get(url, headers=basic("pico")).headers["ETag"]
        rest = client.get(url, headers={**basic("pico"), "Range": "bytes=10000-", "If-Range": tag})
        assert rest.status_code == 206
        assert rest.data == content[10000:]
        assert rest.headers["Content-Range"] == f"bytes 10000-10239/{len(content)}"
        changed = client.get(url, headers={**basic("pico"), "Range": "bytes=10000-", "If-Range": '"other"'})
        assert (changed.status_code, changed.data) == (200, content)

    def test_what_the_device_has_is_not_sent_again(self, client, url):
        tag = client.get(url, headers=basic("pico")).headers["ETag"]
        again = client.get(url, headers={**basic("pico"), "If-None-Match": tag})
        assert (again.status_code, again.data) == (304, b"")

    def test_a_range_behind_the_end_is_refused_with_the_length(self, client, url, content):
        refused = client.get(url, headers={**basic("pico"), "Range": f"bytes={len(content)}-"})
        problem(refused, "range-not-satisfiable", 416)
        assert refused.headers["Content-Range"] == f"bytes */{len(content)}"

    def test_a_foreign_device_is_refused(self, client, url):
        problem(client.get(url, headers=basic("tre")), "not-allowed", 403)

    def test_for_a_device_whose_assignment_is_closed_it_is_gone(self, client, url):
        gone = problem(client.get(url, headers=basic("cinque")), "not-found", 404)
        assert gone == "The assignment that names this blob is closed"

    def test_whether_an_unassigned_blob_exists_is_nobodys_business(self, client, url):
        unknown = problem(client.get(f"/api/v1/device/blobs/{'0' * 64}", headers=basic("tre")), "not-allowed", 403)
        assert unknown == problem(client.get(url, headers=basic("tre")), "not-allowed", 403)

    def test_operators_and_strangers_get_no_blobs(self, client, url, bearer):
        for headers in (bearer["ada"], {}, basic("pico", "wrong")):
            refused = client.get(url, headers=headers)
            problem(refused, "not-authenticated", 401)
            assert refused.headers["WWW-Authenticate"] == 'Basic realm="shoal"'

    def test_a_name_that_is_no_hash_is_not_looked_for(self, client, boards):
        problem(client.get("/api/v1/device/blobs/shoal.db", headers=basic("pico")), "not-found", 404)

    def test_a_blob_that_is_gone_from_disk_is_not_found(self, client, url, services):
        services.blobs.remove(url.rpartition("/")[2])
        problem(client.get(url, headers=basic("pico")), "not-found", 404)


class TestDevices:
    def test_the_list_is_paged_and_sorted(self, client, boards, bearer):
        page = client.get("/api/v1/devices?sort=-name&size=2", headers=bearer["vic"]).json
        assert [row["id"] for row in page["rows"]] == ["tre", "pico"]
        assert (page["total"], page["page"], page["size"]) == (3, 1, 2)

    @pytest.mark.parametrize(
        ("query", "sentence"),
        [
            ("sort=color", "sort is 'color'"),
            ("status=sleepy", "status is 'sleepy'"),
            ("size=x", "size is 'x', expected a whole number"),
            ("size=9999", "size is 9999"),
            ("page=1&page=2", "page is given 2 times"),
            ("colour=red", "Unknown field colour: expected status, group"),
        ],
    )
    def test_a_query_that_makes_no_sense_is_refused(self, client, bearer, query, sentence):
        assert sentence in problem(client.get(f"/api/v1/devices?{query}", headers=bearer["vic"]), "bad-request", 400)

    def test_one_device_in_full(self, client, boards, bearer):
        shown = client.get("/api/v1/devices/pico", headers=bearer["vic"]).json
        assert shown["row"]["group"] == "kitchen"
        assert shown["capability"]["machine"] == "aarch64"
        assert "eve" in problem(client.get("/api/v1/devices/eve", headers=bearer["vic"]), "not-found", 404)

    def test_an_operator_pauses_and_resumes_a_device(self, client, boards, bearer):
        assert client.post("/api/v1/devices/pico/pause", headers=bearer["olga"]).json["row"]["status"] == "paused"
        again = client.post("/api/v1/devices/pico/pause", headers=bearer["olga"])
        assert "already paused" in problem(again, "conflict", 409)
        assert client.post("/api/v1/devices/pico/resume", headers=bearer["olga"]).json["row"]["status"] == "new"

    def test_a_revoked_device_is_shut_out_at_once(self, client, boards, bearer, services):
        sha256 = services.blobs.put(b"weights")
        with services.database.write() as session:
            add_run(session, "run-1", START)
            add_assignment(session, "a-1", "pico", START, weights=sha256)
        url = f"/api/v1/device/blobs/{sha256}"
        assert client.get(url, headers=basic("pico")).data == b"weights"
        assert client.post("/api/v1/devices/pico/revoke", headers=bearer["olga"]).json["row"]["status"] == "revoked"
        problem(client.get(url, headers=basic("pico")), "not-authenticated", 401)
        with services.database.read() as session:
            assert session.get(Assignment, "a-1").state == "cancelled"

    def test_a_viewer_changes_nothing(self, client, boards, bearer, services):
        for action in ("pause", "resume", "revoke"):
            refused = client.post(f"/api/v1/devices/pico/{action}", headers=bearer["vic"])
            assert "role operator; vic is viewer" in problem(refused, "not-allowed", 403)
        with services.database.read() as session:
            assert session.get(Device, "pico").status == "new"

    def test_strangers_see_nothing(self, client, boards):
        refused = client.get("/api/v1/devices")
        problem(refused, "not-authenticated", 401)
        assert refused.headers["WWW-Authenticate"] == 'Bearer realm="shoal"'
        problem(client.get("/api/v1/devices", headers=basic("pico")), "not-authenticated", 401)


class TestTokens:
    def test_a_token_is_told_once_and_lets_a_device_in(self, client, bearer):
        made = client.post("/api/v1/tokens", json={"group": "attic", "ttl": 60}, headers=bearer["olga"])
        assert made.status_code == 201
        assert made.json["token"].endswith(".-")
        assert joins(client, "pico", made.json["token"]).status_code == 200
        (row,) = client.get("/api/v1/tokens", headers=bearer["vic"]).json
        assert (row["id"], row["status"], row["uses"], row["created_by"]) == (made.json["id"], "used", 1, "olga")
        assert "secret" not in str(row)

    def test_a_revoked_token_lets_nobody_in(self, client, bearer, token):
        token_id = token.split(".")[1]
        revoked = client.post(f"/api/v1/tokens/{token_id}/revoke", headers=bearer["olga"]).json
        assert revoked["status"] == "revoked"
        assert "revoked" in problem(joins(client, "pico", token), "token-invalid", 401)
        problem(client.post("/api/v1/tokens/zzz/revoke", headers=bearer["olga"]), "not-found", 404)

    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            ({"uses": "3"}, "uses is '3', expected a whole number"),
            ({"uses": True}, "uses is 'True', expected a whole number"),
            ({"uses": 0}, "uses is 0, expected 1 to 10000"),
            ({"ttl": "60"}, "ttl is '60', expected a finite number"),
            ({"use": 1, "tll": 2}, "Unknown field tll, use: expected group, uses, manual, ttl"),
            ([], "expected an object"),
        ],
    )
    def test_a_body_is_taken_literally(self, client, bearer, body, sentence, services):
        refused = client.post("/api/v1/tokens", json=body, headers=bearer["olga"])
        assert sentence in problem(refused, "bad-request", 400)
        with services.database.read() as session:
            assert session.scalars(select(EnrolmentToken)).all() == []

    def test_a_viewer_makes_no_tokens(self, client, bearer):
        problem(client.post("/api/v1/tokens", json={}, headers=bearer["vic"]), "not-allowed", 403)


class TestRuns:
    body = {"model": "mlp", "recipe": "fedbuff", "dataset": "test.npz", "target": 1, "seed": 7}

    def test_a_run_is_started_steered_and_stopped(self, client, bearer):
        started = client.post("/api/v1/runs", json=self.body, headers=bearer["olga"])
        assert started.status_code == 201
        assert started.json["row"]["created_by"] == "olga"
        assert (started.json["seed"], started.json["row"]["target"]) == (7, 1.0)
        states = [
            client.post(f"/api/v1/runs/run-1/{action}", headers=bearer["olga"]).json["row"]["state"]
            for action in ("pause", "resume", "stop")
        ]
        assert states == ["paused", "running", "stopped"]
        problem(client.post("/api/v1/runs/run-1/stop", headers=bearer["olga"]), "conflict", 409)
        problem(client.post("/api/v1/runs/run-9/stop", headers=bearer["olga"]), "not-found", 404)
        (row,) = client.get("/api/v1/runs", headers=bearer["vic"]).json["rows"]
        assert (row["id"], row["state"]) == ("run-1", "stopped")

    @pytest.mark.parametrize(
        ("change", "code", "sentence"),
        [
            ({"recipe": "nonsense"}, "bad-recipe", "no recipe 'nonsense'"),
            ({"seed": -1}, "bad-request", "seed is -1"),
            ({"target": 1.5}, "bad-request", "target is 1.5"),
            ({"target": "high"}, "bad-request", "target is 'high', expected a finite number or null"),
            ({"colour": "red"}, "bad-request", "Unknown field colour"),
        ],
    )
    def test_a_run_that_does_not_fit_is_refused(self, client, bearer, change, code, sentence):
        refused = client.post("/api/v1/runs", json={**self.body, **change}, headers=bearer["olga"])
        assert sentence in problem(refused, code, 400)

    def test_missing_fields_are_named(self, client, bearer):
        refused = client.post("/api/v1/runs", json={"model": "mlp"}, headers=bearer["olga"])
        assert problem(refused, "bad-request", 400) == "Missing field recipe"

    def test_the_curve_of_a_run_that_was_not_evaluated_is_empty(self, client, worked, bearer):
        assert client.get("/api/v1/runs/run-1/metrics", headers=bearer["vic"]).json == []
        problem(client.get("/api/v1/runs/run-9/metrics", headers=bearer["vic"]), "not-found", 404)

    def test_models_and_recipes_are_listed(self, client, worked, bearer):
        models = client.get("/api/v1/models", headers=bearer["vic"]).json
        assert {"mlp", "cnn"} <= {row["name"] for row in models if row["builtin"]}
        assert [row["name"] for row in models if not row["builtin"]] == ["mlp"]
        recipes = client.get("/api/v1/recipes", headers=bearer["vic"]).json
        assert "fedbuff" in {row["name"] for row in recipes}
        shown = client.get("/api/v1/recipes/fedbuff", headers=bearer["vic"]).json
        assert "lease = 900.0" in shown["toml"]
        problem(client.get("/api/v1/recipes/nonsense", headers=bearer["vic"]), "not-found", 404)


class TestHistory:
    def test_updates_can_be_filtered(self, client, worked, bearer):
        page = client.get("/api/v1/updates?device=pico&outcome=applied&sort=at", headers=bearer["vic"]).json
        assert [row["commit"] for row in page["rows"]] == [1, 2]
        since = client.get(f"/api/v1/updates?since={START + 2.5}", headers=bearer["vic"]).json
        assert [row["outcome"] for row in since["rows"]] == ["refused"]

    def test_the_csv_file_has_all_rows_and_no_formulas(self, client, worked, bearer):
        answer = client.get("/api/v1/updates.csv", headers=bearer["vic"])
        assert answer.content_type == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["outcome"] for row in rows] == ["applied", "applied", "refused"]
        assert rows[0]["at"] == "2023-11-14T22:13:21.000Z"
        assert rows[2]["reason"] == "'=HYPERLINK(1), it said"
        assert rows[0]["loss"] == "0.5"

    @pytest.mark.parametrize("path", ["updates", "updates.csv"])
    @pytest.mark.parametrize("query", ["outcome=lost", "since=1e300", "until=-1", "since=nan", "width=wide"])
    def test_a_filter_that_makes_no_sense_is_refused(self, client, bearer, path, query):
        problem(client.get(f"/api/v1/{path}?{query}", headers=bearer["vic"]), "bad-request", 400)

    def test_events_are_read_from_cursor_to_cursor_without_a_gap(self, client, worked, bearer, services):
        with services.database.read() as session:
            expected = session.scalars(select(Event.seq).order_by(Event.seq)).all()
        cursor, read = 0, []
        while True:
            page = client.get(f"/api/v1/events?after={cursor}&limit=2", headers=bearer["vic"]).json
            if not page["rows"]:
                break
            read += [row["seq"] for row in page["rows"]]
            cursor = page["cursor"]
        assert read == expected
        assert len(read) > 4
        only = client.get("/api/v1/events?device=pico", headers=bearer["vic"]).json["rows"]
        assert {row["device"] for row in only} == {"pico"}

    @pytest.mark.parametrize("query", ["after=-1", f"after={1 << 70}", "limit=0", "limit=1001"])
    def test_a_cursor_out_of_bounds_is_refused(self, client, bearer, query):
        problem(client.get(f"/api/v1/events?{query}", headers=bearer["vic"]), "bad-request", 400)


class TestApiTokens:
    def test_an_administrator_gives_a_program_a_token_and_takes_it_back(self, client, bearer, clock):
        body = {"name": "grafana", "role": "viewer", "ttl": 60}
        made = client.post("/api/v1/api-tokens", json=body, headers=bearer["ada"])
        assert (made.status_code, made.json["expires_at"]) == (201, START + 60)
        program = {"Authorization": f"Bearer {made.json['token']}"}
        assert client.get("/api/v1/devices", headers=program).status_code == 200
        problem(client.get("/api/v1/api-tokens", headers=program), "not-allowed", 403)
        url = f"/api/v1/api-tokens/{made.json['id']}/revoke"
        assert client.post(url, headers=bearer["ada"]).json["revoked_at"] == START
        problem(client.get("/api/v1/devices", headers=program), "not-authenticated", 401)
        problem(client.post(url, headers=bearer["ada"]), "conflict", 409)

    def test_the_list_names_no_secrets_and_no_login_links(self, client, bearer):
        client.post("/api/v1/login-links", json={"name": "ada", "role": "admin"}, headers=bearer["ada"])
        rows = client.get("/api/v1/api-tokens", headers=bearer["ada"]).json
        assert sorted(row["name"] for row in rows) == ["ada", "olga", "vic"]
        assert set(rows[0]) == {"id", "name", "created_at", "expires_at", "revoked_at"}

    @pytest.mark.parametrize("change", [{"ttl": 0}, {"ttl": 1e12}, {"role": "root"}, {"name": "a b"}])
    def test_a_token_that_makes_no_sense_is_not_made(self, client, bearer, change):
        body = {"name": "grafana", "role": "viewer", **change}
        problem(client.post("/api/v1/api-tokens", json=body, headers=bearer["ada"]), "bad-request", 400)


class TestHealth:
    def test_everybody_may_ask_whether_the_coordinator_is_well(self, client):
        assert client.get("/api/v1/healthz").json == {"status": "ok"}

    def test_a_broken_database_is_no_health(self, client, services):
        services.database.close()
        (services.settings.home / "shoal.db").write_bytes(b"not a database " * 100)
        detail = problem(client.get("/api/v1/healthz"), "database-unusable", 503)
        assert "not a database" not in detail

    def test_the_status_counts_what_waits(self, client, worked, bearer, clock, services):
        with services.database.write() as session:
            add_assignment(session, "a-2", "pico", START)
            add_update(session, "a-2", "pico", START, outcome="stored")
        clock.later(90)
        status = client.get("/api/v1/status", headers=bearer["vic"]).json
        assert status["uptime"] == 90
        assert status["devices"] == {"new": 3}
        assert (status["running"], status["open_assignments"], status["waiting_updates"]) == (1, 1, 1)

    def test_an_administrator_makes_login_links_nobody_else_does(self, client, bearer):
        made = client.post("/api/v1/login-links", json={"name": "nino", "role": "viewer"}, headers=bearer["ada"])
        path = made.json["url"].removeprefix("http://127.0.0.1:8750")
        assert client.get(path).status_code == 302
        assert client.get("/api/v1/status").json["running"] == 0
        for name in ("olga", "vic"):
            refused = client.post("/api/v1/login-links", json={"name": "x", "role": "admin"}, headers=bearer[name])
            problem(refused, "not-allowed", 403)

    def test_a_browser_that_is_logged_in_needs_its_csrf_token(self, client, bearer, boards):
        made = client.post("/api/v1/login-links", json={"name": "olga", "role": "operator"}, headers=bearer["ada"])
        client.get(made.json["url"].removeprefix("http://127.0.0.1:8750"))
        problem(client.post("/api/v1/devices/pico/pause"), "csrf", 403)
        with client.session_transaction() as session:
            token = session["csrf"]
        assert client.post("/api/v1/devices/pico/pause", headers={"X-CSRF": token}).status_code == 200


KEYS = st.sampled_from([
    "token", "secret", "name", "capability", "group", "uses", "ttl", "model", "recipe", "dataset",
    "target", "seed", "role", "x",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("fedbuff"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = st.sampled_from([
    "status", "group", "text", "flag", "sort", "page", "size", "state", "after", "run", "device",
    "outcome", "width", "since", "until", "limit", "x",
])  # fmt: skip
WORDS = st.integers().map(str) | st.floats().map(str) | st.text(max_size=12) | st.sampled_from(["-at", "name", "idle"])


class TestAnything:
    """Whatever is sent, the answer is an answer or a refusal that names its reason, never a failure."""

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        path=st.sampled_from(["enrol", "tokens", "runs", "login-links", "api-tokens"]),
        body=st.dictionaries(KEYS, VALUES, max_size=5) | VALUES,
    )
    def test_any_json_in_a_body(self, client, bearer, path, body):
        data = json.dumps(body).encode("utf-8", "surrogatepass")
        answer = client.post(f"/api/v1/{path}", data=data, headers=bearer["ada"])
        assert answer.status_code < 500, answer.text

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        path=st.sampled_from(["devices", "runs", "updates", "updates.csv", "events", "runs/run-1/metrics"]),
        query=st.dictionaries(PARAMETERS, WORDS, max_size=2),
    )
    def test_any_parameter_in_a_query(self, client, worked, bearer, path, query):
        answer = client.get(f"/api/v1/{path}", query_string=query, headers=bearer["ada"])
        assert answer.status_code in (200, 400), answer.text

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(header=st.text(max_size=60), kind=st.sampled_from(["Basic ", "Bearer ", "Bearer shoal-api.", ""]))
    def test_any_authorization(self, client, header, kind):
        value = (kind + header).encode("latin-1", "replace").decode("latin-1")
        value = "".join(character for character in value if character.isprintable())
        for path in ("devices", f"device/blobs/{'0' * 64}"):
            assert client.get(f"/api/v1/{path}", headers={"Authorization": value}).status_code == 401


class TestProblems:
    def test_an_unknown_address_below_the_api_is_a_problem_document(self, client):
        assert "/api/v1/nothing" in problem(client.get("/api/v1/nothing"), "not-found", 404)
        problem(client.get("/api/v1/"), "not-found", 404)

    def test_a_wrong_method_is_told_the_right_ones(self, client):
        refused = client.delete("/api/v1/runs")
        assert "takes GET, HEAD, POST, not DELETE" in problem(refused, "method-not-allowed", 405)
        assert refused.headers["Allow"] == "GET, HEAD, POST"

    def test_what_was_not_foreseen_says_nothing_about_itself(self, app, client, bearer, caplog, monkeypatch):
        def explode():
            raise RuntimeError("the secret of pico is 1234")

        with app.app_context():
            monkeypatch.setitem(app.extensions, "shoal", evolve(auth.services(), clock=explode))
        detail = problem(client.get("/api/v1/devices", headers=bearer["vic"]), "internal", 500)
        assert "1234" not in detail
        assert "1234" in caplog.text

    def test_what_takes_no_body_refuses_one(self, client, boards, bearer):
        refused = client.post("/api/v1/devices/pico/pause", json={"for": 60}, headers=bearer["olga"])
        assert "takes no body" in problem(refused, "bad-request", 400)
        assert client.post("/api/v1/devices/pico/pause", json={}, headers=bearer["olga"]).status_code == 200
