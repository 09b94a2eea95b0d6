"""The pages people see: a Flask blueprint that reads queries and sends commands."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, g, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from coordinator.api import problems
from coordinator.services import Services
from web import (
    actions,
    assets,
    bulk,
    chart_views,
    compare,
    enrol,
    history,
    live,
    models,
    new_run,
    pages,
    promote,
    rollouts,
    settings,
    wording,
)
from web.answers import Answers
from web.memory import Memory

__all__ = ["create_blueprint"]

RETRY: Final = 5
"""Seconds after which a page that could not be made is tried again."""


def create_blueprint(services: Services) -> Blueprint:
    """All pages, actions, charts and static files. The application must have ``coordinator.auth`` installed."""
    blueprint = Blueprint(
        "web", __name__, template_folder="templates", static_folder="static", static_url_path="/static/web"
    )
    assets.install(blueprint)
    wording.install(blueprint)
    memory = Memory()
    live.install(blueprint, Answers(services.clock), memory)
    for page in (pages, chart_views, compare):
        page.install(blueprint, services, memory)
    for part in (new_run, models, promote, rollouts, history, enrol, settings, bulk, actions):
        part.install(blueprint, services)
    blueprint.app_errorhandler(Exception)(_explain)
    return blueprint


def _explain(error: Exception) -> ResponseReturnValue:
    """A page that says what is wrong. If the store is in trouble it is made without it, and looks again by itself."""
    if isinstance(error, HTTPException) and error.code not in (404, 405):
        return error
    told = problems.known(error)
    if "visitor" not in g:
        g.visitor = None
    again = RETRY if told.entry.status == 503 and request.method == "GET" else 0
    return render_template("error.html", error=told, again=again), told.entry.status
