"""Promoting a version of a run to a release that devices can use, from a form."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from flask import Blueprint, redirect, render_template, url_for
from werkzeug.wrappers import Response

from coordinator import auth
from coordinator.errors import ShoalError
from coordinator.fleet import model_release, promotion
from coordinator.fleet.model_release import Limits
from coordinator.services import Services
from coordinator.store import queries
from web import address
from web.forms import Form

_FIELDS: Final = {"not-found": "version", "conflict": "name"}


def install(blueprint: Blueprint, services: Services) -> None:
    page = Promote(services)
    guard = auth.require("operator")
    blueprint.add_url_rule("/runs/<id>/promote", "promote", guard(page.show))
    blueprint.add_url_rule("/runs/<id>/promote", "promote_version", guard(page.promote), methods=["POST"])


@frozen
class Promote:
    services: Services

    def show(self, id: str) -> str:
        """The form, for ``version`` or the newest."""
        return self._page(id, Form({"version": address.text("version") or model_release.NEWEST}))

    def promote(self, id: str) -> Response | tuple[str, int]:
        form = Form.sent()
        wanted = _read(form)
        if not form.wrong:
            try:
                made = promotion.promote(self.services, id, **wanted, by=auth.admit("operator").name)
                return redirect(url_for("web.release", id=made.release), 303)
            except ShoalError as error:
                form.refuse(_FIELDS.get(error.code, ""), error.detail)
        return self._page(id, form), 400

    def _page(self, id: str, form: Form) -> str:
        with self.services.database.read() as session:
            model = queries.model_of(session, id)
        return render_template("promote.html", form=form, id=id, model=model)


def _read(form: Form) -> dict[str, Any]:
    """The arguments of a promotion; what is wrong stands in the form then."""
    drop = form.number("accuracy_drop", -1e-9, 1)
    return {
        "which": form.text("version", 20) or model_release.NEWEST,
        "name": form.text("name", 40),
        "notes": form.text("notes", 2000),
        "widths": _widths(form),
        "limits": Limits(
            None if drop is None else max(drop, 0.0),
            form.number("milliseconds", 0, 1e9),
            form.whole("memory", 1, 1 << 50) or None,
        ),
    }


def _widths(form: Form) -> list[float]:
    try:
        return [float(part) for part in form.text("widths").replace(",", " ").split()]
    except ValueError:
        form.refuse("widths", f"This is {form['widths'][:40]!r}, expected numbers such as 1, 0.5")
        return []
