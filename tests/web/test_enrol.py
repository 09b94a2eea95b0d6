"""Tokens: made once, shown once, revoked."""

from __future__ import annotations

import re

import pytest

from coordinator.fleet import tokens
from coordinator.store.models import Device
from tests.web.conftest import post
from tests.web.fleet import NOW


def held(database):
    with database.read() as session:
        return [(one.id, one.group, one.max_uses, one.expires_at - NOW) for one in tokens.listed(session)]


def test_a_token_is_shown_once_with_the_line_and_its_code(olga, database):
    page = post(olga, "/enrol", group="pi3", uses="5", life="1 day").text
    [(id, group, uses, life)] = held(database)

    text = re.search(r"shoal1\.[\w.-]+", page)[0]
    assert f"shoal-agent enrol --url http://127.0.0.1:8750 --token {text} --data train.npz" in page
    assert "<svg" in page
    assert (group, uses, life) == ("pi3", 5, 86_400.0)
    with database.read() as session:
        assert tokens.find(session, text).id == id
    assert text not in olga.get("/enrol").text
    assert id in olga.get("/enrol").text


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"uses": "0"}, "uses"),
        ({"uses": "many"}, "uses"),
        ({"life": "for ever"}, "life"),
        ({"group": "g" * 81}, "group"),
    ],
)
def test_what_is_wrong_is_told_beside_its_field(olga, database, fields, wrong):
    answer = post(olga, "/enrol", **{"group": "", "uses": "1", "life": "1 day", **fields})

    assert answer.status_code == 400
    assert f'id="wrong-{wrong}"' in answer.text
    assert held(database) == []


def test_a_revoked_token_says_so_and_has_no_button(olga, database):
    post(olga, "/enrol", uses="1", life="1 hour")
    [(id, *_)] = held(database)

    assert post(olga, f"/enrol/{id}/revoke").location == "/enrol"
    page = olga.get("/enrol").text
    assert 'class="is is-revoked"' in page
    assert f"/enrol/{id}/revoke" not in page
    assert post(olga, f"/enrol/{id}/revoke").status_code == 409


def test_devices_that_wait_to_be_adopted_are_pointed_at(olga, database):
    assert "adopted" not in olga.get("/enrol").text
    with database.write() as session:
        session.get(Device, "d0003").status = "pending"
    page = olga.get("/enrol").text

    assert "1 device waits" in page
    assert "/devices?status=pending" in page


def test_a_viewer_sees_tokens_and_makes_none(vic, database):
    page = vic.get("/enrol")

    assert page.status_code == 200
    assert "Make the token" not in page.text
    assert post(vic, "/enrol", uses="1", life="1 day").status_code == 403
    assert post(vic, "/enrol/x/revoke").status_code == 403
    assert held(database) == []


def test_a_form_from_elsewhere_is_refused(olga, database):
    assert olga.post("/enrol", data={"uses": "1"}).status_code == 403
    assert held(database) == []


def test_a_hostile_group_stays_text(olga):
    page = post(olga, "/enrol", group="<b>x</b>", uses="1", life="1 day").text

    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x</b>" not in page
