"""The pages people see: a Flask blueprint that reads queries and sends commands."""

from __future__ import annotations

from flask import Blueprint, render_template
from flask.typing import ResponseReturnValue

from coordinator.errors import ShoalError
from coordinator.services import Services
from web import (
    actions,
    assets,
    chart_views,
    compare,
    enrol,
    history,
    models,
    new_run,
    pages,
    promote,
    rollouts,
    settings,
    wording,
)
from web.memory import Memory

__all__ = ["create_blueprint"]


def create_blueprint(services: Services) -> Blueprint:
    """All pages, actions, charts and static files. The application must have ``coordinator.auth`` installed."""
    blueprint = Blueprint(
        "web", __name__, template_folder="templates", static_folder="static", static_url_path="/static/web"
    )
    assets.install(blueprint)
    wording.install(blueprint)
    memory = Memory()
    for page in (pages, chart_views, compare):
        page.install(blueprint, services, memory)
    for part in (new_run, models, promote, rollouts, history, enrol, settings, actions):
        part.install(blueprint, services)
    blueprint.register_error_handler(ShoalError, _explain)
    return blueprint


def _explain(error: ShoalError) -> ResponseReturnValue:
    return render_template("error.html", error=error), error.entry.status
