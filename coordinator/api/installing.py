"""A board that runs already gets its agent: the installer's text, and the bundles for whoever holds a claim token."""

from __future__ import annotations

import hashlib
from math import ceil

from attrs import frozen
from flask import Flask, current_app, g, request, send_file
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from coordinator.api.endpoint import Endpoint, File
from coordinator.api.throttle import Throttle
from coordinator.auth import services
from coordinator.errors import ShoalError
from coordinator.fleet import board, bundles, tokens
from coordinator.fleet.bundles import Bundle
from coordinator.fleet.releases import ReleaseKey


@frozen(kw_only=True)
class Installer:
    """``sha256`` of /install.sh; ``targets`` there are bundles for."""

    sha256: str
    targets: tuple[str, ...]


@frozen(kw_only=True)
class BundleRow:
    """The newest bundle for one target, e.g. aarch64-cp313; ``size`` in bytes."""

    target: str
    version: str
    sha256: str
    size: int


@frozen(kw_only=True)
class InstallerKey:
    """The key that boards check releases with: 32 bytes of an Ed25519 public key in hexadecimal digits."""

    release_key: str


def install(app: Flask) -> None:
    """``/install.sh``, which says nothing that not everybody may know."""
    app.add_url_rule("/install.sh", "installer-script", _script)


def show_installer() -> Installer:
    """What the installer's text must hash to, and which boards it can serve."""
    sha256 = hashlib.sha256(board.script().encode()).hexdigest()
    return Installer(sha256=sha256, targets=tuple(sorted(_newest())))


def show_installer_key() -> InstallerKey:
    """What a board is to trust releases by, for the holder of a claim token."""
    _admit()
    return InstallerKey(release_key=ReleaseKey.of(services().settings.home).public)


def list_bundles() -> tuple[BundleRow, ...]:
    """The newest bundle of every target, for the holder of a claim token."""
    _admit()
    return tuple(
        BundleRow(target=one.target, version=one.version, sha256=one.sha256, size=one.size)
        for _, one in sorted(_newest().items())
    )


def bundle(sha256: str) -> Response:
    """The bytes of a bundle, for the holder of a claim token; may be asked for in ranges."""
    _admit()
    found = next((one for one in _newest().values() if one.sha256 == sha256), None)
    if found is None:
        raise ShoalError("not-found", f"There is no bundle {sha256[:80]!r}")
    return send_file(found.path.absolute(), mimetype="application/x-xz", etag=sha256, max_age=0)


def _script() -> Response:
    response = Response(board.script(), content_type="text/x-shellscript; charset=utf-8")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _newest() -> dict[str, Bundle]:
    return bundles.newest(services().settings.home / bundles.FOLDER)


def _admit() -> None:
    """Whoever holds a token that has not ended may have the agent, also one that has been used: an installer that was
    interrupted comes again. The token is not used up by this."""
    now, address = services().clock(), request.remote_addr or ""
    throttle: Throttle = current_app.extensions["shoal-throttle"]
    if (wait := throttle.wait(address, now)) > 0:
        g.retry_after = ceil(wait)
        raise ShoalError("too-many-requests", f"Too many wrong tokens: try again in {ceil(wait)} seconds")
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    try:
        with services().database.read() as reading:
            _check(reading, text if kind == "Bearer" else "", now)
    except ShoalError:
        throttle.failed(address, now)
        raise


def _check(reading: Session, text: str, now: float) -> None:
    status = tokens.status(tokens.find(reading, text), now)
    if status not in ("valid", "used"):
        raise ShoalError("token-invalid", f"This token is {status}: ask for a new one")


ENDPOINTS = (
    Endpoint(method="GET", path="/installer", call=show_installer, access="viewer", answer=Installer),
    Endpoint(method="GET", path="/installer/key", call=show_installer_key, access="open", answer=InstallerKey),
    Endpoint(method="GET", path="/bundles", call=list_bundles, access="open", answer=tuple[BundleRow, ...]),
    Endpoint(method="GET", path="/bundles/<sha256>", call=bundle, access="open", answer=File("application/x-xz")),
)
