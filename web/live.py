"""Pages that stay fresh: a cursor of the store is the ETag, and a page that is polled sends its living part only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from flask import Blueprint, Response, current_app, make_response, render_template, request

from coordinator import auth
from coordinator.services import Services
from coordinator.store import queries
from web.answers import Answer, Answers
from web.memory import Memory

if TYPE_CHECKING:
    from flask.blueprints import BlueprintSetupState
    from sqlalchemy.orm import Session

DRIFT: Final = 30
"""Seconds after which a page counts as changed though nothing happened: rates and spans move with the clock."""
_ANSWERS: Final = "shoal-answers"


def install(blueprint: Blueprint, answers: Answers, memory: Memory) -> None:
    """Pages find the answers that they share, and programs that measure them the figures, among the extensions."""

    def share(state: BlueprintSetupState) -> None:
        state.app.extensions |= {_ANSWERS: answers, "shoal-figures": memory}

    blueprint.record(share)


def page(
    services: Services,
    template: str,
    gather: Callable[[Session, float], dict[str, Any]],
    *,
    telemetry: bool = False,
    pieces: Callable[[Session, float], Mapping[str, str]] = lambda _session, _now: {},
) -> Response:
    """Render a template with what ``gather(session, now)`` returns, or answer 304 if nothing has changed.

    With ``telemetry`` every heartbeat of the fleet counts as a change. The living part is shared by all who have the
    same role: it must not depend on who asks. ``pieces(session, now)`` is {name: JSON} that goes with it.
    """

    def render(session: Session, tag: str, now: float, layout: str) -> str:
        told = {"layout": layout, "now": now, "etag": f'"{tag}"', "url": services.settings.url}
        return render_template(template, **told, **gather(session, now))

    def take(session: Session, tag: str, now: float) -> Answer:
        return Answer(tag, render(session, tag, now, "live.html"), pieces(session, now))

    if polled():
        return shared(services, take, telemetry=telemetry)
    now = services.clock()
    with services.database.read() as session:
        tag = etag(queries.cursor(session, telemetry=telemetry), now)
        response = make_response(render(session, tag, now, "layout.html"))
    _answers().forget(_key())
    response.set_etag(tag)
    response.headers["X-Now"] = f"{now:.3f}"
    return response


def shared(
    services: Services,
    take: Callable[[Session, str, float], Answer],
    *,
    telemetry: bool = False,
    mimetype: str = "text/html",
) -> Response:
    """What ``take(session, tag, now)`` makes of the store, made once for all who ask within a moment."""
    answers, key = _answers(), _key()
    answer = answers.fresh(key)
    if answer is None:
        last = answers.last(key)
        with answers.turn(key, wait=last is None) as ours:
            # While somebody makes the next one, the others have the last once more.
            answer = (answers.fresh(key) or _made(services, answers, key, take, telemetry)) if ours else last
    if answer is None or unchanged(answer.tag):
        return not_modified(request.if_none_match.to_header() if answer is None else f'"{answer.tag}"')
    # The living part holds no CSRF token, so its length gives none away.
    packed = bool(request.accept_encodings["gzip"])
    known = request.headers.get("X-Known", "").split(",")
    response = Response(answer.body(known, packed), mimetype=mimetype)
    response.headers["Vary"] = "Accept-Encoding"
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.set_etag(answer.tag)
    response.headers["X-Now"] = f"{services.clock():.3f}"
    return response


def _made(
    services: Services,
    answers: Answers,
    key: tuple[str, str],
    take: Callable[[Session, str, float], Answer],
    telemetry: bool,
) -> Answer | None:
    """The newest answer if nothing has happened since, else a new one; None if the reader has the newest already."""
    now = services.clock()
    with services.database.read() as session:
        tag = etag(queries.cursor(session, telemetry=telemetry), now)
        last = answers.last(key)
        if last is not None and last.tag == tag:
            answers.renew(key)
            return last
        if unchanged(tag):
            return None
        return answers.make(key, lambda: take(session, tag, now))


def polled() -> bool:
    """Whether our script asks, for the living part only."""
    return "X-Live" in request.headers


def etag(cursor: str, now: float) -> str:
    """What identifies an answer: the store's cursor, the address, the role that asks, and the coarse time."""
    parts = (cursor, *_key(), str(int(now // DRIFT)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def unchanged(tag: str) -> bool:
    return polled() and request.if_none_match.contains_weak(tag)


def not_modified(header: str) -> Response:
    return Response(status=304, headers={"ETag": header})


def _answers() -> Answers:
    return cast(Answers, current_app.extensions[_ANSWERS])


def _key() -> tuple[str, str]:
    """What an answer depends on beside the store."""
    visitor = auth.visitor()
    return request.full_path, visitor.role if visitor else ""
