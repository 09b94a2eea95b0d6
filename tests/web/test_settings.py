"""What administrators do: operators, API tokens, and what they are told of the coordinator."""

from __future__ import annotations

import re

import pytest

from coordinator import operators
from tests.web.conftest import log_in, post
from tests.web.fleet import NOW


def people(database):
    with database.read() as session:
        return {one.name: (one.role, one.disabled_at is not None) for one in operators.listed(session)}


def test_somebody_new_gets_a_link_that_logs_them_in(ada, app, database):
    page = post(ada, "/settings/operators", name="vera", role="operator").text
    link = re.search(r"/login/[\w.-]+", page)[0]

    assert people(database)["vera"] == ("operator", False)
    browser = app.test_client()
    assert browser.get(link).status_code == 302
    assert "vera · operator" in browser.get("/").text
    assert link not in ada.get("/settings").text


def test_a_role_is_changed_at_once(ada, app, database):
    vic = log_in(app, database, "vic")
    assert vic.get("/runs/new").status_code == 403
    post(ada, "/settings/operators/vic/role", role="operator")

    assert people(database)["vic"] == ("operator", False)
    assert vic.get("/runs/new").status_code == 200


def test_who_is_disabled_is_out_at_once_and_enabled_without_the_old_session(ada, app, database):
    vic = log_in(app, database, "vic")
    post(ada, "/settings/operators/vic/disable")
    assert vic.get("/").location == "/login"

    post(ada, "/settings/operators/vic/enable")
    assert people(database)["vic"] == ("viewer", False)
    assert vic.get("/").location == "/login"
    link = re.search(r"/login/[\w.-]+", post(ada, "/settings/operators/vic/link").text)[0]
    assert app.test_client().get(link).status_code == 302


@pytest.mark.parametrize("action", ["role", "disable"])
def test_nobody_shuts_themselves_out(ada, database, action):
    answer = post(ada, f"/settings/operators/ada/{action}", role="viewer")

    assert answer.status_code == 409
    assert "somebody else" in answer.text
    assert people(database)["ada"] == ("admin", False)


def test_the_machines_own_operator_stays(ada, database):
    with database.write() as session:
        operators.mint_api(session, NOW, name="local", role="admin", by="local")

    assert post(ada, "/settings/operators/local/disable").status_code == 409
    assert people(database)["local"] == ("admin", False)


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/settings/operators", {"name": "", "role": "viewer"}, 400),
        ("/settings/operators", {"name": "<b>", "role": "viewer"}, 400),
        ("/settings/operators", {"name": "eve", "role": "king"}, 400),
        ("/settings/operators/nobody/disable", {}, 404),
        ("/settings/operators/ada/explode", {}, 404),
        ("/settings/tokens", {"name": "", "role": "viewer"}, 400),
        ("/settings/tokens", {"name": "bot", "role": "viewer", "life": "for ever"}, 400),
        ("/settings/tokens/nothing/revoke", {}, 404),
    ],
)
def test_what_cannot_be_done_is_explained(ada, database, path, fields, status):
    answer = post(ada, path, **fields)

    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert "<b>" not in answer.text.partition("<main")[2]
    assert set(people(database)) == {"ada"}


def test_an_api_token_is_shown_once_and_revoked(ada, app, database):
    page = post(ada, "/settings/tokens", name="dashboard", role="viewer", life="30 days").text
    text = re.search(r"shoal-api\.[\w.-]+", page)[0]
    bearer = {"Authorization": f"Bearer {text}"}
    assert app.test_client().get("/api/v1/runs", headers=bearer).status_code == 200
    assert text not in ada.get("/settings").text

    post(ada, f"/settings/tokens/{text.split('.')[1]}/revoke")
    assert app.test_client().get("/api/v1/runs", headers=bearer).status_code == 401


def test_only_administrators_come_in_and_see_the_way(olga, vic, ada):
    assert "/settings" in ada.get("/").text
    for client in (olga, vic):
        assert client.get("/settings").status_code == 403
        assert post(client, "/settings/operators", name="eve", role="admin").status_code == 403
        assert post(client, "/settings/tokens", name="eve", role="admin").status_code == 403
        assert "/settings" not in client.get("/").text


def test_a_form_from_elsewhere_is_refused(ada, database):
    assert ada.post("/settings/operators", data={"name": "eve", "role": "admin"}).status_code == 403
    assert set(people(database)) == {"ada"}


def test_it_says_what_is_kept_for_how_long_and_where_devices_connect(ada):
    page = ada.get("/settings").text

    for words in ("48 hours", "365 days, at most 1,000,000 lines", "port 8883", "the newest 2 snapshots"):
        assert words in page
