"""What a person may do to devices and runs: forms that are posted, and a page that says what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flask import Blueprint, redirect, request, url_for
from werkzeug.wrappers import Response

from coordinator import auth
from coordinator.errors import ShoalError
from coordinator.fleet import steering
from coordinator.fleet.steering import Deed
from coordinator.operators import Visitor
from coordinator.services import Services

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

RUN_ACTIONS: Final = ("pause", "resume", "stop")


def install(blueprint: Blueprint, services: Services) -> None:
    @blueprint.post("/devices/<id>/<action>")
    @auth.require("operator")
    def act_on_device(id: str, action: str) -> Response:
        if action not in steering.ACTIONS:
            raise ShoalError("not-found", f"Nothing called {action[:40]!r} can be done to a device")
        deed, by = Deed(action=action, value=request.form.get("value", "").strip()), _name(auth.visitor())
        if action == "command":
            auth.admit("admin" if deed.value == "decommission" else "operator")
            services.commands.command(id, deed.value, life=deed.life, by=by)
        else:
            change = steering.change(services, deed, by)

            def write(session: Session) -> None:
                change(session, id)

            services.commands.write(write)
        if action == "revoke":
            services.commands.disconnect(id)
        return redirect(url_for("web.device", id=id), 303)

    @blueprint.post("/runs/<id>/<action>")
    @auth.require("operator")
    def act_on_run(id: str, action: str) -> Response:
        if action not in RUN_ACTIONS:
            raise ShoalError("not-found", f"Nothing called {action[:40]!r} can be done to a run")
        services.commands.operate(id, action, _name(auth.visitor()))
        return redirect(url_for("web.run", id=id), 303)


def _name(visitor: Visitor | None) -> str:
    return visitor.name if visitor is not None else ""
