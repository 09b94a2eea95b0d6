"""The same for many devices: those chosen on the page, or all that pass its filter; confirmed by name, and undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen
from flask import Blueprint, render_template, request

from coordinator import auth
from coordinator.errors import ShoalError
from coordinator.fleet import steering
from coordinator.fleet.steering import Deed
from coordinator.services import Services
from coordinator.store import queries
from web import address
from web.forms import Form

MOST: Final = 10_000
"""Devices in one form."""


@frozen
class Way:
    """One thing to do with devices. ``label`` is what a button says, ``done`` what has become of the devices then,
    ``note`` what it means, ``asks`` what else must be told. ``value`` is the kind of a command."""

    label: str
    done: str
    note: str
    action: str
    value: str = ""
    asks: str = ""
    bad: bool = False

    def deed(self, given: str) -> Deed:
        return Deed(action=self.action, value=given if self.asks else self.value)


_ONCE: Final = "A device that is away hears of it when it comes back within the hour. The answers stand on its page."
WAYS: Final[dict[str, Way]] = {
    "pause": Way(
        "Pause",
        "paused",
        "They get no more work until they are resumed; what they train now may still arrive.",
        "pause",
    ),
    "resume": Way("Resume", "resumed", "They get work again.", "resume"),
    "adopt": Way("Adopt", "adopted", "Those that wait for adoption may work from now on.", "adopt"),
    "release": Way("Release", "released", "Those in quarantine get work again.", "release"),
    "tag": Way("Tag", "tagged", "One more word to find them by.", "tag", asks="Tag"),
    "untag": Way("Take a tag away", "no longer tagged", "They are not found by it any more.", "untag", asks="Tag"),
    "group": Way(
        "Move to a group",
        "moved",
        "Recipes tell boards apart by it. Left empty: to none.",
        "group",
        asks="Group",
    ),
    "identify": Way("Identify", "told to show themselves", _ONCE, "command", "identify"),
    "restart": Way("Restart the agent", "told to restart", _ONCE, "command", "restart"),
    "collect-logs": Way("Collect logs", "told to send their logs", _ONCE, "command", "collect-logs"),
    "revoke": Way(
        "Revoke",
        "revoked",
        "Their secrets count no more and they are cut off at once. They can only come back with a new token, as new "
        "devices. This cannot be undone.",
        "revoke",
        bad=True,
    ),
}


def install(blueprint: Blueprint, services: Services) -> None:
    page = Steering(services)
    guard = auth.require("operator")
    blueprint.add_url_rule("/devices/choose", "choose", guard(page.choose), methods=["POST"])
    blueprint.add_url_rule("/devices/steer", "steer", guard(page.steer), methods=["POST"])


@frozen
class Steering:
    services: Services

    def choose(self) -> str:
        """Ask once more, with the number and the names of the devices."""
        form = Form.sent()
        with self.services.database.read() as session:
            if form["every"]:
                chosen = queries.device_ids(session, address.device_filter())
            else:
                chosen = request.form.getlist("device")
            names = queries.device_names(session, _few(chosen))
        return self._asked(form, _way(form), names)

    def steer(self) -> str | tuple[str, int]:
        form = Form.sent()
        way, ids, value = _way(form), _few(form["ids"].split()), form.text("value", 80)
        with self.services.database.read() as session:
            names = queries.device_names(session, ids)
        if way.asks == "Tag" and not value:
            form.refuse("value", "A tag is missing")
        try:
            done = None if form.wrong else steering.steer(self.services, way.deed(value), list(names), _by())
        except ShoalError as error:
            if error.code != "bad-request":
                raise
            form.refuse("value", error.detail)
            done = None
        if done is None:
            return self._asked(form, way, names), 400
        back = way.deed(value).undone
        undo = next((key for key, other in WAYS.items() if back and other.action == back.action), "")
        return render_template(
            "steering.html", form=form, way=way, names=names, done=done, undo=undo, ways=WAYS, value=value, asked=False
        )

    def _asked(self, form: Form, way: Way, names: dict[str, str]) -> str:
        if not names:
            raise ShoalError("bad-request", "No device is chosen, expected at least one that is not revoked")
        with self.services.database.read() as session:
            known = queries.tags(session) if way.asks == "Tag" else queries.groups(session)
        return render_template("steering.html", form=form, way=way, names=names, known=known, ways=WAYS, asked=True)


def _way(form: Form) -> Way:
    way = WAYS.get(form["way"])
    if way is None:
        raise ShoalError("bad-request", f"way is {form['way'][:40]!r}, expected one of {', '.join(WAYS)}")
    return way


def _few(ids: Sequence[str]) -> list[str]:
    if len(ids) > MOST:
        raise ShoalError("bad-request", f"These are {len(ids):,} devices, expected at most {MOST:,} at once")
    return list(dict.fromkeys(ids))


def _by() -> str:
    return auth.admit("operator").name
