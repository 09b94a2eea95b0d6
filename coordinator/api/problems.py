"""Errors as RFC 9457 problem documents: one shape for whatever goes wrong below /api."""

from __future__ import annotations

import json
import logging
from typing import Final

from flask import g, request
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, RequestedRangeNotSatisfiable
from werkzeug.wrappers import Response

from coordinator.errors import CATALOGUE, ShoalError
from protocol.errors import ProtocolError

MEDIA_TYPE: Final = "application/problem+json"

_log = logging.getLogger(__name__)

_OF_STATUS: Final = {
    400: ("bad-request", "The request could not be read"),
    404: ("not-found", "There is nothing at this address"),
    405: ("method-not-allowed", "This address takes other methods"),
    413: ("too-large", "The body is larger than 1 MiB"),
    416: ("range-not-satisfiable", "The file ends before the range begins"),
}


def answer(error: Exception) -> Response:
    """The response for any exception; what was not foreseen is logged and says nothing about itself."""
    told = known(error)
    entry = CATALOGUE[told.code]
    body = {
        "type": f"urn:shoal:error:{told.code}",
        "title": entry.title,
        "status": entry.status,
        "detail": told.detail,
        "code": told.code,
    }
    response = Response(json.dumps(body, ensure_ascii=False), entry.status, content_type=MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-store"
    if entry.status == 401 and "challenge" in g:
        response.headers["WWW-Authenticate"] = g.challenge
    if "retry_after" in g:
        response.headers["Retry-After"] = str(g.retry_after)
    if isinstance(error, RequestedRangeNotSatisfiable) and error.length is not None:
        response.headers["Content-Range"] = f"{error.units} */{error.length}"
    return response


def known(error: Exception) -> ShoalError:
    """Any exception as one of the catalogue; what was not foreseen goes to the log."""
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, ProtocolError):
        return ShoalError("bad-request", str(error))
    if isinstance(error, HTTPException) and error.code in _OF_STATUS:
        return ShoalError(*_OF_STATUS[error.code])
    if isinstance(error, DBAPIError):
        _log.error("%s %s: the database failed: %s", request.method, request.path, error.orig)
        return ShoalError("database-unusable", "The database did not answer as it should: see the coordinator's log")
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return ShoalError("internal", "This was not foreseen: see the coordinator's log")
