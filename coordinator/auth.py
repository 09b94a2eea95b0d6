"""Who may do what over HTTP: sessions and bearer tokens of operators, the secrets of devices.

Pages use :func:`require`, the API uses :func:`admit` and :func:`admit_device`; both hold cookies to a CSRF token.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, Final, TypeVar, cast

from flask import Blueprint, Flask, current_app, g, redirect, render_template_string, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug.datastructures import Authorization
from werkzeug.wrappers import Response

from coordinator import operators
from coordinator.broker.security import verifier
from coordinator.errors import ShoalError
from coordinator.operators import Visitor
from coordinator.services import Services
from coordinator.store import credentials

SESSION_DAYS: Final = 14
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

View = TypeVar("View", bound=Callable[..., Any])

_doors = Blueprint("auth", __name__)


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:
        """A session that was opened by an encrypted way never takes another, also where a proxy encrypts."""
        return request.is_secure or super().get_cookie_secure(app)


def install(app: Flask, given: Services) -> None:
    """Give an application its services, its session cookie, and the pages to log in and out."""
    app.extensions["shoal"] = given
    app.secret_key = operators.ensure_secret_key(given.settings.home)
    app.config.update(
        SESSION_COOKIE_NAME="shoal_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=given.settings.encrypted,
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=timedelta(days=SESSION_DAYS),
    )
    app.session_interface = _Sessions()
    app.register_blueprint(_doors)
    app.context_processor(lambda: {"visitor": visitor(), "csrf_token": csrf_token})


def services() -> Services:
    """The services of the application that answers this request."""
    return cast(Services, current_app.extensions["shoal"])


def visitor() -> Visitor | None:
    """The operator who is asking, by bearer token or else by session cookie."""
    if "visitor" not in g:
        g.visitor = _identify()
    return cast(Visitor | None, g.visitor)


def csrf_token() -> str:
    """What a form or script of ours has to send back, as field ``csrf`` or header ``X-CSRF``."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return cast(str, session["csrf"])


def admit(role: str) -> Visitor:
    """The visitor, if they have ``role`` or more; ShoalError not-authenticated, not-allowed or csrf otherwise."""
    g.challenge = 'Bearer realm="shoal"'
    who = visitor()
    if who is None:
        raise ShoalError("not-authenticated", "Nobody is logged in, and no valid token was sent")
    if not who.may(role):
        raise ShoalError("not-allowed", f"This needs the role {role}; {who.name} is {who.role}")
    if request.method not in SAFE and not _by_token():
        sent = request.headers.get("X-CSRF") or request.form.get("csrf", "")
        if not hmac.compare_digest(sent.encode(), session.get("csrf", "").encode()) or not sent:
            raise ShoalError("csrf", "The page that sent this was loaded before the login: load it again")
    return who


def require(role: str) -> Callable[[View], View]:
    """Decorate a page: only for visitors with ``role`` or more; who is not logged in is shown the login page."""

    def guard(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            # Only a page that a person goes to turns into the login page; a script is told with 401.
            navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
            if visitor() is None and navigates:
                return redirect(url_for("auth.login"))
            admit(role)
            return view(*args, **kwargs)

        return cast(View, guarded)

    return guard


def admit_device() -> str:
    """The id of the device that is asking, by Basic authentication with its id and its secret, which
    is ``g.secret`` then."""
    g.challenge = 'Basic realm="shoal"'
    sent = _authorization()
    if sent is not None and sent.type == "basic" and sent.username and sent.password is not None:
        with services().database.read() as reading:
            known = credentials.secret_matches(reading, sent.username, sent.password)
            lacking = known and credentials.unverified(reading, sent.username)
        if lacking:
            _complete(sent.username, sent.password)
        if known:
            g.secret = sent.password
            return sent.username
    raise ShoalError("not-authenticated", "This needs the id and the secret of a device that is not revoked")


def _complete(device: str, secret: str) -> None:
    """A secret that was kept before there were brokers with accounts of their own gets a verifier: from now on the
    device gets in there too."""
    checked = verifier(secret)
    if services().commands.write(lambda writing: credentials.complete(writing, device, secret, checked)):
        services().admit(device, secret)


def require_device(view: View) -> View:
    """Decorate a view: only for devices; ``g.device`` is the id of the one that asks."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        g.device = admit_device()
        return view(*args, **kwargs)

    return cast(View, guarded)


def _by_token() -> bool:
    """Whoever sends an Authorization header is judged by it alone, however broken it is."""
    return "Authorization" in request.headers


def _authorization() -> Authorization | None:
    try:
        return request.authorization
    except ValueError:  # letters outside ASCII where base64 belongs
        return None


def _identify() -> Visitor | None:
    with services().database.read() as reading:
        if _by_token():
            sent = _authorization()
            given = sent.token if sent is not None and sent.type == "bearer" else None
            return operators.bearer(reading, given, services().clock()) if given else None
        token = session.get("login")
        return operators.logged_in(reading, token) if token else None


@_doors.get("/login")
def login() -> tuple[str, int] | Response:
    if visitor() is not None:
        return redirect("/")
    return _login_page("Your session has ended: log in again" if "login" in session else ""), 200


@_doors.get("/login/<token>")
def open_link(token: str) -> tuple[str, int] | Response:
    if request.method == "HEAD":  # programs that preview links must not use them up
        return Response(status=204)
    now = services().clock()
    try:
        who = services().commands.write(lambda writing: operators.redeem_login(writing, token, now))
    except ShoalError as error:
        return _login_page(error.detail), error.entry.status
    session.clear()
    session["login"] = who.token
    session.permanent = True
    csrf_token()
    return redirect("/")


@_doors.post("/logout")
def logout() -> Response:
    who = visitor()
    if who is not None and not _by_token():
        admit("viewer")
        now = services().clock()
        services().commands.write(lambda writing: operators.log_out(writing, who.token, now))
    session.clear()
    return redirect(url_for("auth.login"))


@_doors.after_request
def _harden(response: Response) -> Response:
    """Neither a login link nor the session it opens may be kept or passed on."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response


def _login_page(problem: str = "") -> str:
    return render_template_string(_LOGIN_PAGE, problem=problem, minutes=int(operators.LOGIN_LIFE // 60))


_LOGIN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Log in · Shoal</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0 1rem; }
main { max-width: 32rem; }
code { font-size: 1.1em; padding: .3em .6em; border: 1px solid; border-radius: .3em; }
</style>
<main>
<h1>Log in to Shoal</h1>
{% if problem %}<p role="alert"><strong>{{ problem }}.</strong></p>{% endif %}
<p>There are no passwords here. On the machine where the coordinator runs, type</p>
<pre><code>shoal login-link</code></pre>
<p>and open the link it prints, in this browser. A link works once, within {{ minutes }} minutes.
Somebody without access to that machine asks an administrator for a link.</p>
</main>
</html>
"""
