"""What an endpoint is: one row of the table that routes, guards and documents the API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Literal

from attrs import frozen
from flask import g, request
from werkzeug.wrappers import Response

from coordinator import auth
from coordinator.api import problems, shapes

MAX_BODY: Final = 1 << 20
"""Bytes of a request's body."""


@frozen
class File:
    """An answer that is not JSON."""

    media_type: str


@frozen(kw_only=True)
class Endpoint:
    """``call`` gets the parts of the path, and ``query`` and ``body`` where these have a class.

    ``access`` is the least role, ``device`` for the devices' side, or ``open`` for everybody. ``answer`` is the class
    of what ``call`` returns.
    """

    method: Literal["GET", "POST"]
    path: str
    call: Callable[..., Any]
    access: Literal["open", "device", "viewer", "operator", "admin"]
    answer: Any
    query: type[Any] | None = None
    body: type[Any] | None = None
    status: int = 200

    @property
    def name(self) -> str:
        return self.call.__name__

    @property
    def summary(self) -> str:
        return (self.call.__doc__ or "").partition("\n")[0].rstrip(".")

    def respond(self, **parts: Any) -> Response:
        """Answer the present request; whatever goes wrong becomes a problem document."""
        try:
            request.max_content_length = MAX_BODY
            self._admit()
            answer = self.call(**parts, **self._read())
        except Exception as error:
            return problems.answer(error)
        if isinstance(answer, Response):
            return answer
        return json_response(shapes.plain(answer), self.status)

    def _admit(self) -> None:
        if self.access == "device":
            g.device = auth.admit_device()
        elif self.access != "open":
            auth.admit(self.access)

    def _read(self) -> dict[str, Any]:
        read: dict[str, Any] = {}
        given = {name: request.args.getlist(name) for name in request.args}
        if self.query is not None:
            read["query"] = shapes.read_query(self.query, given)
        else:
            shapes.nothing_given("parameters", list(given))
        data = request.get_data()
        if self.body is not None:
            read["body"] = shapes.read_body(self.body, data)
        elif data not in (b"", b"{}"):
            shapes.nothing_given("body", ["a body"])
        return read


def json_response(value: Any, status: int = 200) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    response = Response(text, status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
