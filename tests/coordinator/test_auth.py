"""Operators come in by one-time links or bearer tokens, and may do what their role says."""

from __future__ import annotations

import re
import stat
from datetime import timedelta

import pytest
from attrs import evolve
from flask import Flask, g

from coordinator import auth, operators
from coordinator.errors import ShoalError
from coordinator.store.models import ApiToken, Operator
from tests.coordinator.people import OPERATORS, START, basic


@pytest.fixture
def pages(services):
    """An application with one page for every role, and one for devices."""
    app = Flask("pages")
    auth.install(app, services)
    app.register_error_handler(ShoalError, lambda error: (error.code, error.entry.status))
    for role in operators.ROLES:
        app.add_url_rule(
            f"/{role}", role, auth.require(role)(lambda: auth.visitor().name), methods=["GET", "POST"]
        )
    app.add_url_rule("/csrf", "csrf", auth.require("viewer")(auth.csrf_token))
    app.add_url_rule("/device", "device", auth.require_device(lambda: g.device))
    return app


def link(services, name, role):
    with services.database.write() as session:
        secret = operators.mint_login(session, services.clock(), name=name, role=role, by="ada")
    return f"/login/{secret}"


def logged_in(pages, services, name, role):
    client = pages.test_client()
    assert client.get(link(services, name, role)).status_code == 302
    return client


def test_a_login_link_opens_a_session_for_its_owner(pages, services):
    client = logged_in(pages, services, "olga", "operator")
    assert client.get("/viewer").text == "olga"


def test_a_login_link_works_once(pages, services):
    url = link(services, "olga", "operator")
    assert pages.test_client().get(url).status_code == 302
    eve = pages.test_client()
    refused = eve.get(url)
    assert refused.status_code == 401
    assert "used before" in refused.text
    assert eve.get("/viewer").status_code == 302


def test_looking_at_a_link_without_opening_it_does_not_use_it_up(pages, services):
    url = link(services, "olga", "operator")
    assert pages.test_client().head(url).status_code == 204
    assert pages.test_client().get(url).status_code == 302


def test_a_login_link_ends_after_15_minutes(pages, services, clock):
    url = link(services, "olga", "operator")
    clock.later(900)
    assert pages.test_client().get(url).status_code == 401


@pytest.mark.parametrize("secret", ["x", "000000000000." + "A" * 43, "%00", "a" * 5000])
def test_a_made_up_link_is_refused(pages, secret):
    assert pages.test_client().get(f"/login/{secret}").status_code == 401


def test_an_api_token_is_no_login_link_and_a_login_link_no_api_token(pages, services):
    with services.database.write() as session:
        token = operators.mint_api(session, START, name="ada", role="admin", by="ada")
    assert pages.test_client().get("/login/" + token.removeprefix("shoal-api.")).status_code == 401
    secret = link(services, "ada", "admin").rpartition("/")[2]
    headers = {"Authorization": f"Bearer shoal-api.{secret}"}
    assert pages.test_client().post("/viewer", headers=headers).status_code == 401


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("needed", operators.ROLES)
def test_a_role_may_do_what_the_lesser_roles_may(pages, services, name, needed):
    client = logged_in(pages, services, name, OPERATORS[name])
    enough = operators.ROLES.index(OPERATORS[name]) >= operators.ROLES.index(needed)
    assert client.get(f"/{needed}").status_code == (200 if enough else 403)


def test_a_person_without_a_session_is_shown_how_to_log_in_and_a_script_is_told_401(pages):
    client = pages.test_client()
    page = client.get("/viewer", follow_redirects=True)
    assert page.request.path == "/login"
    assert "shoal login-link" in page.text
    assert client.get("/viewer", headers={"Sec-Fetch-Mode": "cors"}).status_code == 401
    assert client.post("/viewer").status_code == 401


def test_a_post_with_a_cookie_needs_the_token_of_its_session(pages, services):
    client = logged_in(pages, services, "olga", "operator")
    csrf = client.get("/csrf").text
    assert client.post("/operator").text == "csrf"
    assert client.post("/operator", data={"csrf": "x" + csrf[1:]}).status_code == 403
    assert client.post("/operator", data={"csrf": csrf}).text == "olga"
    assert client.post("/operator", headers={"X-CSRF": csrf}).text == "olga"
    other = logged_in(pages, services, "vic", "viewer")
    assert other.post("/viewer", headers={"X-CSRF": csrf}).status_code == 403


def test_a_program_needs_no_csrf_token_and_its_wrong_bearer_is_not_saved_by_a_cookie(pages, services, bearer):
    client = logged_in(pages, services, "ada", "admin")
    assert client.post("/operator", headers=bearer["olga"]).text == "olga"
    assert client.get("/viewer", headers={"Authorization": "Bearer nonsense"}).status_code == 302
    assert client.post("/viewer", headers={"Authorization": "Bearer nonsense"}).status_code == 401


def test_logging_out_ends_the_session_even_for_a_copied_cookie(pages, services):
    client = logged_in(pages, services, "olga", "operator")
    csrf = client.get("/csrf").text
    copied = client.get_cookie("shoal_session").value
    assert client.post("/logout").text == "csrf"
    assert client.post("/logout", data={"csrf": csrf}).headers["Location"] == "/login"
    assert client.get("/viewer").status_code == 302
    thief = pages.test_client()
    thief.set_cookie("shoal_session", copied)
    assert thief.get("/viewer").status_code == 302


def test_a_disabled_operator_and_a_changed_role_take_effect_at_once(pages, services):
    client = logged_in(pages, services, "olga", "operator")
    with services.database.write() as session:
        session.get(Operator, "olga").role = "viewer"
    assert client.get("/operator").status_code == 403
    with services.database.write() as session:
        session.get(Operator, "olga").disabled_at = START
    assert client.get("/viewer").status_code == 302
    with services.database.write() as session, pytest.raises(ShoalError, match="olga is disabled"):
        operators.mint_login(session, START, name="olga", role="viewer", by="ada")


def test_the_session_cookie_is_out_of_reach_of_scripts_and_foreign_sites(pages, services):
    cookie = pages.test_client().get(link(services, "ada", "admin")).headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    assert pages.config["PERMANENT_SESSION_LIFETIME"] == timedelta(days=14)


def test_over_tls_the_cookie_stays_there(services):
    app = Flask("encrypted")
    auth.install(app, evolve(services, settings=evolve(services.settings, tls="on")))
    assert app.config["SESSION_COOKIE_SECURE"] is True


def test_a_device_comes_in_with_its_own_secret_only(pages, boards):
    client = pages.test_client()
    assert client.get("/device", headers=basic("pico")).text == "pico"
    for headers in ({}, basic("pico", "wrong"), basic("eve"), {"Authorization": "Bearer x"}):
        assert client.get("/device", headers=headers).status_code == 401


def test_an_expired_or_revoked_api_token_is_nobodys(database):
    with database.write() as session:
        short = operators.mint_api(session, START, name="ada", role="admin", by="ada", ttl=60)
        lasting = operators.mint_api(session, START, name="ada", role="admin", by="ada")
        assert operators.bearer(session, short, START + 59).name == "ada"
        assert operators.bearer(session, short, START + 60) is None
        session.get(ApiToken, lasting.split(".")[1]).revoked_at = START
        session.flush()
        assert operators.bearer(session, lasting, START) is None


@pytest.mark.parametrize(("name", "role"), [("", "viewer"), ("-x", "viewer"), ("a b", "viewer"), ("ada", "root")])
def test_an_operator_has_a_plain_name_and_a_known_role(database, name, role):
    with database.write() as session, pytest.raises(ShoalError) as caught:
        operators.mint_login(session, START, name=name, role=role, by="ada")
    assert caught.value.code == "bad-request"


def test_nothing_keeps_or_passes_on_a_login_link(pages, services):
    for answer in (pages.test_client().get(link(services, "ada", "admin")), pages.test_client().get("/login")):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_coordinators_own_machine_stays_admin(database, home):
    with database.write() as session:
        operators.ensure_local_token(session, home, START)
        with pytest.raises(ShoalError, match="stays admin"):
            operators.mint_login(session, START, name="local", role="viewer", by="ada")


def test_the_two_secret_files_are_made_once_and_for_their_owner_only(database, home):
    with database.write() as session:
        token = operators.ensure_local_token(session, home, START)
        assert operators.ensure_local_token(session, home, START + 1) == token
        assert operators.bearer(session, token, START).role == "admin"
    key = operators.ensure_secret_key(home)
    assert operators.ensure_secret_key(home) == key
    assert re.fullmatch("[0-9a-f]{64}", key)
    for name in ("api.token", "secret.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_a_local_token_that_the_database_does_not_know_is_replaced(database, home):
    (home / "api.token").write_text("shoal-api.of-another-database")
    with database.write() as session:
        token = operators.ensure_local_token(session, home, START)
        assert operators.bearer(session, token, START).name == "local"
    assert (home / "api.token").read_text().strip() == token


def test_a_damaged_key_is_not_used(home):
    (home / "secret.key").write_text("short")
    with pytest.raises(ShoalError, match=r"secret\.key is damaged"):
        operators.ensure_secret_key(home)
