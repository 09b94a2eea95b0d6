"""The devices' side: joining the fleet, the authority's certificate, and the bytes an assignment names."""

from __future__ import annotations

import re
from math import ceil
from typing import Final
from urllib.parse import urlsplit

from flask import current_app, g, request, send_file
from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from coordinator.api.endpoint import Endpoint, File
from coordinator.api.throttle import Throttle
from coordinator.auth import services
from coordinator.broker.security import verifier
from coordinator.errors import ShoalError
from coordinator.fleet import enrolment
from coordinator.fleet.releases import ReleaseKey
from coordinator.store import credentials, ledger
from coordinator.store.ledger import OPEN
from coordinator.store.models import Assignment, Refresh
from protocol.commands import Accepted, NextSecret
from protocol.errors import ProtocolError
from protocol.messages import EnrolmentReply, EnrolmentRequest

FAILURES: Final = 20
FAILURE_WINDOW: Final = 600.0
"""Seconds. A room full of boards behind one address may fumble, a guesser gets nowhere."""

OUR_FAULT: Final = ("broker-unusable", "busy", "database-unusable", "home-unusable", "internal")
"""What a device can do nothing about, and is not blamed for."""


def enrol(body: EnrolmentRequest) -> EnrolmentReply:
    """Claim a token and register a device's own secret; the same pair may ask again."""
    now, address = services().clock(), request.remote_addr or ""
    throttle: Throttle = current_app.extensions["shoal-throttle"]
    if (wait := throttle.wait(address, now)) > 0:
        g.retry_after = ceil(wait)
        raise ShoalError("too-many-requests", f"Too many failed enrolments: try again in {ceil(wait)} seconds")
    settings = services().settings
    host = urlsplit(f"//{request.host}").hostname or settings.address

    def join(writing: Session) -> EnrolmentReply:
        key = ReleaseKey.of(settings.home).public
        return enrolment.reply(enrolment.enrol(writing, body, now), settings, host, key)

    try:
        reply = services().commands.write(join)
    except (ShoalError, ProtocolError) as error:
        if not (isinstance(error, ShoalError) and error.code in OUR_FAULT):
            throttle.failed(address, now)
            _audit(body, address, str(error), now)
        raise
    services().admit(reply.device, body.secret)  # not admitted: it asks again, and is who it was
    return reply


def _audit(body: EnrolmentRequest, address: str, reason: str, now: float) -> None:
    """Who was refused, and why; the throttle bounds how often. What was sent as a token may be half a secret."""
    named = re.match(r"shoal1\.([0-9a-f]{12})\.", body.token)
    text = f"{body.name} at {address} tried to join with {f'token {named[1]}' if named else 'no token'}: {reason}"
    services().commands.write(lambda writing: ledger.note(writing, now, "enrolment-refused", text[:500]))


def propose_secret(body: NextSecret) -> Accepted:
    """Take the secret that will follow a device's present one; both are good until it is proved."""
    device, now = g.device, services().clock()
    checked = verifier(body.secret)
    services().commands.write(lambda writing: credentials.propose(writing, device, body.secret, checked, now))
    return Accepted(device=device)


def prove_secret() -> Accepted:
    """Called with the new secret: from now on it is the only one."""
    device, now, secret = g.device, services().clock(), g.secret
    services().commands.write(lambda writing: credentials.prove(writing, device, secret, now))
    services().admit(device, secret)
    return Accepted(device=device)


def authority() -> Response:
    """The certificate of the coordinator's authority, to be checked against the token's fingerprint."""
    path = services().settings.home / "tls" / "ca.pem"
    if not path.is_file():
        raise ShoalError("not-found", "This coordinator has no authority: it is not encrypted")
    return send_file(path.absolute(), mimetype="application/x-pem-file")


def blob(sha256: str) -> Response:
    """Bytes that an open assignment of this device names, or that it was refreshed with; may be asked for in ranges."""
    path = services().blobs.path(sha256)
    fresh = exists().where(Refresh.assignment_id == Assignment.id, Refresh.weights_sha256 == sha256)
    named = select(Assignment.id).where(
        Assignment.device_id == g.device,
        or_(Assignment.artifact_sha256 == sha256, Assignment.weights_sha256 == sha256, fresh),
    )
    with services().database.read() as reading:
        if reading.scalar(named.where(Assignment.state.in_(OPEN)).limit(1)) is None:
            # What was closed while its device was on the way is gone; it was never a thing the device might not have.
            if reading.scalar(named.limit(1)) is None:
                raise ShoalError("not-allowed", "No assignment of this device names this blob")
            raise ShoalError("not-found", "The assignment that names this blob is closed")
    if not path.is_file():
        raise ShoalError("not-found", f"Blob {sha256} is gone from the coordinator's disk")
    # Flask takes a relative path as one of the package's folder.
    response = send_file(path.absolute(), mimetype="application/octet-stream", etag=sha256, max_age=0)
    response.headers["Cache-Control"] = "private, no-cache"
    return response


ENDPOINTS = (
    Endpoint(method="POST", path="/enrol", call=enrol, access="open", body=EnrolmentRequest, answer=EnrolmentReply),
    Endpoint(
        method="GET", path="/authority", call=authority, access="open", answer=File("application/x-pem-file")
    ),
    Endpoint(
        method="POST", path="/device/secret", call=propose_secret, access="device", body=NextSecret, answer=Accepted
    ),
    Endpoint(method="POST", path="/device/secret/proof", call=prove_secret, access="device", answer=Accepted),
    Endpoint(
        method="GET", path="/device/blobs/<sha256>", call=blob, access="device", answer=File("application/octet-stream")
    ),
)
