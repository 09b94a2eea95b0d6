"""Releases, and how they reach devices: lists, one of them, the form that begins a rollout, and what may be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from flask import Blueprint, Response, redirect, render_template, url_for
from werkzeug.wrappers import Response as Answer

from coordinator import auth
from coordinator.errors import ShoalError
from coordinator.fleet import orders, releases
from coordinator.fleet.orders import Target
from coordinator.fleet.rules import Rules
from coordinator.services import Services
from coordinator.store import queries
from web import address, live
from web.forms import Form

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ACTIONS: Final = ("pause", "resume", "approve", "abort")
USUAL: Final = {
    "for": "every",
    "waves": "1 %, 10 %, 50 %, 100 %",
    "success": "95",
    "soak": "10",
    "parallel": "10",
    "approval": "no",
    "force": "no",
}


def install(blueprint: Blueprint, services: Services) -> None:
    pages = Rollouts(services)
    viewer, operator, admin = (auth.require(role) for role in ("viewer", "operator", "admin"))
    blueprint.add_url_rule("/releases", "releases", viewer(pages.releases))
    blueprint.add_url_rule("/releases/<int:id>", "release", viewer(pages.release))
    blueprint.add_url_rule("/releases/<int:id>/withdraw", "withdraw", admin(pages.withdraw), methods=["POST"])
    blueprint.add_url_rule("/rollouts", "rollouts", viewer(pages.rollouts))
    blueprint.add_url_rule("/rollouts/new", "new_rollout", operator(pages.new))
    blueprint.add_url_rule("/rollouts/new", "start_rollout", operator(pages.start), methods=["POST"])
    blueprint.add_url_rule("/rollouts/<int:id>", "rollout", viewer(pages.rollout))
    blueprint.add_url_rule("/rollouts/<int:id>/<action>", "act_on_rollout", operator(pages.act), methods=["POST"])


@frozen
class Rollouts:
    services: Services

    def releases(self) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            return {"rows": queries.releases(session)}

        return live.page(self.services, "releases.html", gather)

    def release(self, id: int) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            found = queries.release(session, str(id))
            rollouts = [queries.rollout(session, number).row for number in found.rollouts[:30]]
            return {"found": found, "rollouts": rollouts}

        return live.page(self.services, "release.html", gather)

    def withdraw(self, id: int) -> Answer:
        who, now = auth.admit("admin"), self.services.clock()
        self.services.commands.write(lambda writing: releases.withdraw(writing, id, now, by=who.name))
        return redirect(url_for("web.release", id=id), 303)

    def rollouts(self) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            return {"rows": queries.rollouts(session)}

        return live.page(self.services, "rollouts.html", gather)

    def rollout(self, id: int) -> Response:
        state, order = address.text("state"), address.order("place")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "found": queries.rollout(session, id),
                "page": queries.executions(session, id, order, state),
                "state": state,
            }

        return live.page(self.services, "rollout.html", gather)

    def act(self, id: int, action: str) -> Answer:
        who, now, heartbeat = auth.admit("operator"), self.services.clock(), self.services.settings.heartbeat
        write = self.services.commands.write
        if action == "back":
            id = write(lambda writing: orders.back(writing, id, now, heartbeat, by=who.name).id)
        elif action in ACTIONS:
            write(lambda writing: orders.operate(writing, id, action, now, by=who.name))
        else:
            raise ShoalError("not-found", f"Nothing called {action[:40]!r} can be done to a rollout")
        return redirect(url_for("web.rollout", id=id), 303)

    # -- beginning one -------------------------------------------------------------------------------------------

    def new(self) -> str:
        return self._page(Form({**USUAL, "release": address.text("release"), "devices": address.text("devices")}))

    def start(self) -> Answer | tuple[str, int]:
        form, who, now = Form.sent(), auth.admit("operator"), self.services.clock()
        heartbeat = self.services.settings.heartbeat
        wanted = _read(form)
        if wanted is not None:
            release, target, rules = wanted
            try:
                id = self.services.commands.write(
                    lambda writing: orders.start(writing, release, target, rules, now, heartbeat, by=who.name).id
                )
                return redirect(url_for("web.rollout", id=id), 303)
            except ShoalError as error:
                form.refuse("", error.detail)
        return self._page(form), 400

    def _page(self, form: Form) -> str:
        with self.services.database.read() as session:
            known = [row for row in queries.releases(session) if row.withdrawn_at is None]
            groups = queries.groups(session)
            count = sum(n for status, n in queries.status_counts(session).items() if status not in _NEVER)
        return render_template("new_rollout.html", form=form, releases=known, groups=groups, count=count)


_NEVER: Final = ("pending", "revoked")


def _read(form: Form) -> tuple[int, Target, Rules] | None:
    """Release, devices and rules; None if something is wrong, which stands in the form then."""
    release = form.whole("release", 1, 1 << 50)
    if not release:
        form.refuse("release", "This is needed")
    percent = form.number("success", -1e-9, 100)
    soak = form.number("soak", -1e-9, 7 * 1440)
    rules: dict[str, Any] = {
        "waves": _shares(form),
        "approval": form.chosen("approval", ("no", "yes")) == "yes",
        "parallel": form.whole("parallel", 1, 10_000, 10),
        "force": form.chosen("force", ("no", "yes")) == "yes",
    }
    rules |= {} if percent is None else {"success": max(0.0, percent / 100)}
    rules |= {} if soak is None else {"soak": max(0.0, soak * 60)}
    target = _target(form)
    if form.wrong:
        return None
    try:
        return release, Target(**target), Rules.of(rules)
    except ShoalError as error:
        form.refuse("waves" if "waves" in error.detail else "", error.detail)
        return None


def _target(form: Form) -> Mapping[str, Any]:
    match form.chosen("for", ("every", "group", "tag", "devices")):
        case "every":
            return {"every": True}
        case "devices":
            devices = tuple(form.text("devices", 100_000).replace(",", " ").split())
            if not devices:
                form.refuse("devices", "This is needed")
            return {"devices": devices}
        case kind:
            word = form.text(kind, 80)
            if not word:
                form.refuse(kind, "This is needed")
            return {kind: word}


def _shares(form: Form) -> list[float]:
    """``1 %, 10 %, 100 %`` as parts of one."""
    given = form.text("waves") or USUAL["waves"]
    try:
        return [float(part.strip().removesuffix("%")) / 100 for part in given.split(",")]
    except ValueError:
        form.refuse("waves", f"This is {given[:40]!r}, expected shares such as 1 %, 10 %, 100 %")
        return []
