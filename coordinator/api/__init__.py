"""The HTTP API below ``/api/v1``: JSON over queries and commands, one table of endpoints, one shape of errors."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Flask, request
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Response

from coordinator.api import (
    access,
    alerting,
    fleet,
    health,
    history,
    installing,
    joining,
    lists,
    metrics,
    problems,
    promoting,
    releases,
    rollouts,
    steering,
    training,
)
from coordinator.api.endpoint import Endpoint, json_response
from coordinator.api.openapi import document
from coordinator.api.throttle import Throttle
from coordinator.auth import services
from coordinator.errors import ShoalError

PREFIX: Final = "/api/v1"

ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *health.ENDPOINTS,
    *access.ENDPOINTS,
    *joining.ENDPOINTS,
    *installing.ENDPOINTS,
    *fleet.ENDPOINTS,
    *steering.ENDPOINTS,
    *releases.ENDPOINTS,
    *rollouts.ENDPOINTS,
    *training.ENDPOINTS,
    *promoting.ENDPOINTS,
    *history.ENDPOINTS,
    *lists.ENDPOINTS,
    *alerting.ENDPOINTS,
)

_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_KNOWN: Final = Map([Rule(f"{PREFIX}{one.path}", endpoint=one.name, methods=[one.method]) for one in ENDPOINTS])


def install(app: Flask) -> None:
    """Give the API to an application that has its services already (see :func:`coordinator.auth.install`)."""
    with app.app_context():
        app.extensions["shoal-started"] = services().clock()
    app.extensions["shoal-throttle"] = Throttle(joining.FAILURES, joining.FAILURE_WINDOW)
    blueprint = Blueprint("api", __name__, url_prefix=PREFIX)
    for one in ENDPOINTS:
        blueprint.add_url_rule(one.path, one.name, one.respond, methods=[one.method])
    description = document(ENDPOINTS, PREFIX)
    blueprint.add_url_rule("/openapi.json", "openapi", lambda: json_response(description))
    blueprint.add_url_rule("/", "nothing", _nothing, methods=_METHODS, defaults={"rest": ""})
    blueprint.add_url_rule("/<path:rest>", "nothing", _nothing, methods=_METHODS)
    blueprint.after_request(_harden)
    app.register_blueprint(blueprint)
    metrics.install(app)
    installing.install(app)


def _harden(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _nothing(rest: str) -> Response:
    """Whatever is no endpoint gets a problem document too, not a page."""
    allowed = sorted(_KNOWN.bind("").allowed_methods(request.path))
    if not allowed:
        return problems.answer(ShoalError("not-found", f"There is nothing at {PREFIX}/{rest[:120]}"))
    detail = f"{PREFIX}/{rest[:120]} takes {', '.join(allowed)}, not {request.method}"
    response = problems.answer(ShoalError("method-not-allowed", detail))
    response.headers["Allow"] = ", ".join(allowed)
    return response
