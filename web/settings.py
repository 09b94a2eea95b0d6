"""What administrators look after: who may log in, the tokens of programs, and how this coordinator is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from flask import Blueprint, redirect, render_template, url_for
from werkzeug.wrappers import Response

from coordinator import auth, operators
from coordinator.api.fleet import authority_fingerprint
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.settings import Settings
from web.forms import Form
from web.wording import number

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

LIVES: Final = {"until it is revoked": None, "1 day": 86_400.0, "30 days": 2_592_000.0, "1 year": 31_536_000.0}
USUAL: Final = {"role": "viewer", "life": "1 year"}


@frozen
class Secret:
    """Something that is shown once: a login link, or a program's token."""

    title: str
    text: str
    note: str


def install(blueprint: Blueprint, services: Services) -> None:
    page = SettingsPage(services)
    guard = auth.require("admin")
    blueprint.add_url_rule("/settings", "settings", guard(page.show))
    for rule, view in (
        ("/settings/operators", page.add),
        ("/settings/operators/<name>/<action>", page.change),
        ("/settings/tokens", page.make_token),
        ("/settings/tokens/<token>/revoke", page.revoke_token),
    ):
        blueprint.add_url_rule(rule, f"settings_{view.__name__}", guard(view), methods=["POST"])


@frozen
class SettingsPage:
    services: Services

    def show(self) -> str:
        return self._page()

    def add(self) -> str | tuple[str, int]:
        """Make somebody known and give them a login link, or another link to somebody who is known."""
        form = Form.sent()
        name, role = form.text("name", 80), form.chosen("role", operators.ROLES)
        if not name:
            form.refuse("name", "A name is missing")
        return self._shown(form, "operator", lambda: self._link(name, role))

    def change(self, name: str, action: str) -> str | tuple[str, int] | Response:
        """Another role, a new login link, or nothing any more."""
        form, who, now = Form.sent(), auth.admit("admin"), self.services.clock()
        if action == "link":
            return self._shown(form, "", lambda: self._link(name, self._role(name)))
        role = form.chosen("role", operators.ROLES)
        changes: dict[str, Callable[[Session], None]] = {
            "role": lambda writing: operators.appoint(writing, name, role, now, by=who.name),
            "disable": lambda writing: operators.disable(writing, name, now, by=who.name),
            "enable": lambda writing: operators.enable(writing, name, now, by=who.name),
        }
        if action not in changes:
            raise ShoalError("not-found", f"Nothing called {action[:40]!r} can be done to an operator")
        if form.wrong:
            raise ShoalError("bad-request", f"role: {form.problems['role']}")
        self.services.commands.write(changes[action])
        return redirect(url_for("web.settings"), 303)

    def make_token(self) -> str | tuple[str, int]:
        form, who, now = Form.sent(), auth.admit("admin"), self.services.clock()
        name, role = form.text("name", 80), form.chosen("role", operators.ROLES)
        life = LIVES[form.chosen("life", tuple(LIVES))]
        if not name:
            form.refuse("name", "A name is missing")

        def make() -> Secret:
            text = self.services.commands.write(
                lambda writing: operators.mint_api(writing, now, name=name, role=role, by=who.name, ttl=life)
            )
            return Secret(f"API token of {name}", text, "Programs send it as: Authorization: Bearer …")

        return self._shown(form, "token", make)

    def revoke_token(self, token: str) -> Response:
        who, now = auth.admit("admin"), self.services.clock()
        self.services.commands.write(lambda writing: operators.revoke_api(writing, token, now, by=who.name).id)
        return redirect(url_for("web.settings"), 303)

    def _link(self, name: str, role: str) -> Secret:
        who, now = auth.admit("admin"), self.services.clock()
        secret = self.services.commands.write(
            lambda writing: operators.mint_login(writing, now, name=name, role=role, by=who.name)
        )
        minutes = int(operators.LOGIN_LIFE // 60)
        url = f"{self.services.settings.pages}/login/{secret}"
        return Secret(f"Login link for {name} ({role})", url, f"It works once, within {minutes} minutes")

    def _role(self, name: str) -> str:
        with self.services.database.read() as session:
            found = next((one for one in operators.listed(session) if one.name == name), None)
        if found is None:
            raise ShoalError("not-found", f"There is no operator {name[:80]!r}")
        return found.role

    def _shown(self, form: Form, about: str, make: Callable[[], Secret]) -> str | tuple[str, int]:
        """The page with what was made, or the form again with what is wrong; ``about`` says which form."""
        if form.wrong:
            return self._page(form, about), 400
        try:
            return self._page(secret=make())
        except ShoalError as error:
            form.refuse("name" if error.code == "bad-request" else "", error.detail)
            return self._page(form, about), error.entry.status

    def _page(self, form: Form | None = None, about: str = "", secret: Secret | None = None) -> str:
        empty = Form(USUAL)
        with self.services.database.read() as session:
            people, programs = operators.listed(session), operators.api_tokens(session)[:100]
        return render_template(
            "settings.html", form=form or empty, adding=form if form and about == "operator" else empty,
            token=form if form and about == "token" else empty, secret=secret, people=people, programs=programs,
            roles=operators.ROLES, lives=tuple(LIVES), facts=facts(self.services.settings), local=operators.LOCAL,
            kept=kept(self.services.settings), moment=self.services.clock(), fingerprint=authority_fingerprint(),
        )  # fmt: skip


def kept(settings: Settings) -> tuple[tuple[str, str], ...]:
    """What is kept, and for how long."""

    def days(value: float, unit: str = "days") -> str:
        return f"{number(value)} {unit}" if value else "for ever"

    def most(value: float, unit: str) -> str:
        return f", at most {number(value)} {unit}" if value else ""

    return (
        ("Heartbeats", days(settings.keep_telemetry, "hours")),
        ("Heartbeats as means of five minutes", days(settings.keep_telemetry_5m)),
        ("Heartbeats as means of an hour", "for ever"),
        ("Journal", days(settings.keep_events) + most(settings.max_events, "lines")),
        ("Inputs and bodies, beyond what recovery needs", days(settings.keep_inputs) + most(settings.max_bodies, "GB")),
        ("Weights of past versions", _snapshots(settings) + most(settings.max_blobs, "GB")),
        ("Updates, versions and metrics", "for ever"),
    )


def facts(settings: Settings) -> dict[str, Any]:
    """Where people and devices reach this coordinator."""
    return {
        "Pages and API": settings.pages,
        "Broker": f"{settings.address}, port {settings.mqtt_port}, MQTT 3.1.1",
        "Encryption": "TLS, with a certificate of our own authority" if settings.encrypted else "none: loopback only",
        "Heartbeat": f"every {settings.heartbeat:g} s",
        "Home folder": str(settings.home),
    }


def _snapshots(settings: Settings) -> str:
    every = f", and one of every {settings.keep_every} versions" if settings.keep_every else ""
    return f"the newest {settings.keep_last} snapshots of a run{every}"
