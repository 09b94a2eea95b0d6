"""Letting devices in: tokens, the one line that a board has to be told, and the same as a QR code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import segno
from attrs import frozen
from flask import Blueprint, redirect, render_template, url_for
from markupsafe import Markup
from werkzeug.wrappers import Response

from coordinator import auth
from coordinator.api.fleet import authority_fingerprint
from coordinator.errors import ShoalError
from coordinator.fleet import tokens
from coordinator.services import Services
from coordinator.store import queries
from web.forms import Form

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

DAY: Final = 86_400.0
LIVES: Final = {"1 hour": 3600.0, "1 day": DAY, "3 days": 3 * DAY, "30 days": 30 * DAY, "1 year": 365 * DAY}
USUAL: Final = {"uses": "1", "life": "3 days"}


def install(blueprint: Blueprint, services: Services) -> None:
    page = Enrol(services)
    blueprint.add_url_rule("/enrol", "enrol", auth.require("viewer")(page.show))
    blueprint.add_url_rule("/enrol", "make_token", auth.require("operator")(page.make), methods=["POST"])
    blueprint.add_url_rule(
        "/enrol/<token>/revoke", "revoke_token", auth.require("operator")(page.revoke), methods=["POST"]
    )


@frozen
class Enrol:
    services: Services

    def show(self) -> str:
        return self._page(Form(USUAL))

    def make(self) -> str | tuple[str, int]:
        """The one answer that holds the token's text; it is stored nowhere."""
        form, who, now = Form.sent(), auth.admit("operator"), self.services.clock()
        group = form.text("group", 80)
        uses = form.whole("uses", 1, tokens.MAX_USES, 1)
        life = LIVES[form.chosen("life", tuple(LIVES))]
        if form.wrong:
            return self._page(form), 400
        seal = authority_fingerprint()

        def create(writing: Session) -> str:
            return tokens.create(writing, now, group=group, uses=uses, ttl=life, by=who.name, fingerprint=seal)

        try:
            return self._page(Form(USUAL), self.services.commands.write(create))
        except ShoalError as error:
            form.refuse("", error.detail)
            return self._page(form), error.entry.status

    def revoke(self, token: str) -> Response:
        who, now = auth.admit("operator"), self.services.clock()
        self.services.commands.write(lambda writing: tokens.revoke(writing, token, now, by=who.name))
        return redirect(url_for("web.enrol"), 303)

    def _page(self, form: Form, token: str = "") -> str:
        now = self.services.clock()
        with self.services.database.read() as session:
            rows = [(one, tokens.status(one, now)) for one in tokens.listed(session)[:100]]
            groups = queries.groups(session)
            waiting = queries.status_counts(session).get("pending", 0)
        command = f"shoal-agent enrol --url {self.services.settings.url} --token {token} --data train.npz"
        return render_template(
            "enrol.html", form=form, token=token, command=command, code=code(command) if token else "", tokens=rows,
            groups=groups, lives=tuple(LIVES), moment=now, waiting=waiting,
        )  # fmt: skip


def code(text: str) -> Markup:
    """A QR code as an element of the page, black on white in both themes."""
    made = segno.make(text, micro=False, error="l")
    return Markup(made.svg_inline(omitsize=True, border=2, dark="#000", light="#fff", title="The command as a QR code"))  # noqa: S704 - made here, of squares
