"""Every error a person or program may meet: one catalogue of codes, with HTTP status and public title."""

from __future__ import annotations

import errno
from typing import Final

from attrs import frozen


@frozen
class Entry:
    status: int
    title: str


CATALOGUE: Final[dict[str, Entry]] = {
    "bad-request": Entry(400, "The request is malformed"),
    "bad-recipe": Entry(400, "The recipe cannot be used"),
    "bad-model": Entry(400, "The model cannot be used"),
    "bad-dataset": Entry(400, "The data set cannot be used"),
    "not-authenticated": Entry(401, "Log in, or send a valid token"),
    "token-invalid": Entry(401, "The enrolment token is not valid"),
    "not-allowed": Entry(403, "This is not allowed"),
    "csrf": Entry(403, "The form has expired: load the page again"),
    "not-found": Entry(404, "There is no such thing"),
    "method-not-allowed": Entry(405, "The method is not allowed here"),
    "conflict": Entry(409, "This contradicts the present state"),
    "too-large": Entry(413, "The request is too large"),
    "range-not-satisfiable": Entry(416, "The range lies outside the file"),
    "too-many-requests": Entry(429, "Too many requests"),
    "internal": Entry(500, "Something went wrong in the coordinator"),
    "busy": Entry(503, "The coordinator is busy: try again"),
    "broker-unusable": Entry(503, "The broker cannot be used"),
    "database-unusable": Entry(503, "The database cannot be used"),
    "home-unusable": Entry(503, "The home folder cannot be used"),
    "port-in-use": Entry(503, "The port is already in use"),
    "port-unusable": Entry(503, "The port cannot be used"),
}


NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says when nothing can be written there."""


class ShoalError(Exception):
    """An error of the catalogue with a sentence for this case: what was wrong, and what was expected."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail

    @property
    def entry(self) -> Entry:
        return CATALOGUE[self.code]
