"""Files the browser keeps: our own, and Bokeh's script out of its Python package."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from flask import Blueprint, Response, request, url_for

from coordinator.errors import ShoalError

YEAR: Final = 365 * 86400
SMALL: Final = 1400
"""Bytes that travel in one packet anyway."""
POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
BOKEH_FILES: Final = ("bokeh.min.js",)


def install(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/static/bokeh/<file>", "bokeh", _bokeh_file)
    blueprint.after_request(_harden)
    blueprint.app_template_global("asset")(asset)
    blueprint.app_template_global("bokeh_script")(bokeh_script)


def asset(name: str) -> str:
    """The address of one of our files; it changes with the content, so that browsers may keep it for ever."""
    return url_for("web.static", filename=name, v=_fingerprint(name))


def bokeh_script() -> str:
    import bokeh

    return url_for("web.bokeh", file=BOKEH_FILES[0], v=bokeh.__version__)


@cache
def _fingerprint(name: str) -> str:
    return hashlib.sha256((files("web") / "static" / name).read_bytes()).hexdigest()[:10]


def pack(response: Response) -> Response:
    """Send an answer compressed, if it is worth it and the browser can unpack it. Not for pages: they hold secrets."""
    response.headers["Vary"] = "Accept-Encoding"
    response.direct_passthrough = False
    data = response.get_data()
    if len(data) > SMALL and request.accept_encodings["gzip"]:
        response.set_data(gzip.compress(data, 5, mtime=0))
        response.headers["Content-Encoding"] = "gzip"
    return response


@cache
def _bokeh_packed(file: str) -> bytes:
    return gzip.compress((files("bokeh") / "server" / "static" / "js" / file).read_bytes(), 9, mtime=0)


def _bokeh_file(file: str) -> Response:
    if file not in BOKEH_FILES:
        raise ShoalError("not-found", f"There is no file {file[:80]!r}, only {', '.join(BOKEH_FILES)}")
    packed = _bokeh_packed(file)
    if not request.accept_encodings["gzip"]:
        return Response(gzip.decompress(packed), mimetype="text/javascript")
    return Response(packed, mimetype="text/javascript", headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})


def _harden(response: Response) -> Response:
    """Only what comes from here is loaded and run; pages are not kept, files with a fingerprint are."""
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if request.endpoint == "web.static" and response.status_code == 200:
        pack(response)
    if request.endpoint in ("web.static", "web.bokeh"):
        kept = "v" in request.args and response.status_code == 200
        response.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable" if kept else "no-cache"
    else:
        response.headers["Cache-Control"] = "no-store"
    return response
