"""Pages that stay fresh: a cursor of the store is the ETag, and a page that is polled sends its living part only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from flask import Response, make_response, render_template, request

from coordinator import auth
from coordinator.services import Services
from coordinator.store import queries
from web.assets import pack

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

DRIFT: Final = 30
"""Seconds after which a page counts as changed though nothing happened: rates and spans move with the clock."""


def page(
    services: Services,
    template: str,
    gather: Callable[[Session, float], dict[str, Any]],
    *,
    telemetry: bool = False,
) -> Response:
    """Render a template with what ``gather(session, now)`` returns, or answer 304 if nothing has changed.

    With ``telemetry`` every heartbeat of the fleet counts as a change.
    """
    now = services.clock()
    with services.database.read() as session:
        tag = etag(queries.cursor(session, telemetry=telemetry), now)
        if unchanged(tag):
            return not_modified(tag)
        layout = "live.html" if polled() else "layout.html"
        found = gather(session, now)
        response = make_response(
            render_template(template, layout=layout, now=now, etag=f'"{tag}"', url=services.settings.url, **found)
        )
    response.set_etag(tag)
    response.headers["X-Now"] = f"{now:.3f}"
    # The living part holds no CSRF token, so its length gives none away.
    return pack(response) if polled() else response


def polled() -> bool:
    """Whether our script asks, for the living part only."""
    return "X-Live" in request.headers


def etag(cursor: str, now: float) -> str:
    """What identifies an answer: the store's cursor, the address, who asks, and the coarse time."""
    visitor = auth.visitor()
    who = f"{visitor.name} {visitor.role}" if visitor else ""
    parts = (cursor, request.full_path, who, str(int(now // DRIFT)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def unchanged(tag: str) -> bool:
    return polled() and request.if_none_match.contains_weak(tag)


def not_modified(tag: str) -> Response:
    response = Response(status=304)
    response.set_etag(tag)
    return response
