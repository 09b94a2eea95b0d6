"""Who this device is: ``identity.json`` in its home, and the enrolment that makes it.

The device makes its secret itself and has it on disk before it asks. A power cut after the coordinator has
accepted is therefore harmless: the same token with the same secret may ask again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import ssl
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, fields, frozen

from protocol.errors import ProtocolError
from protocol.messages import Capability, EnrolmentReply, EnrolmentRequest
from protocol.wire import decode, encode

from .address import Address, parse
from .errors import HomeError, NotEnrolled, Refused, Unreachable, UsageError

MAX_REPLY = 64 * 1024


@frozen(kw_only=True)
class Identity:
    """``authority``: file name, inside the home, of the coordinator's CA; None on plain HTTP.

    ``release_key``: that of releases (32 bytes in hexadecimal digits), None if this device takes none.
    """

    device: str
    secret: str
    url: str
    broker_host: str
    broker_port: int
    broker_tls: bool
    heartbeat: float
    authority: str | None
    token: str
    release_key: str | None = None

    def __repr__(self) -> str:
        return f"Identity(device={self.device!r}, url={self.url!r})"


@frozen
class Token:
    """Claim token ``shoal1.<id>.<secret>.<fingerprint>``; the fingerprint is None on plain HTTP."""

    text: str
    id: str
    fingerprint: str | None

    def __repr__(self) -> str:
        return f"Token({self.id!r})"


def parse_token(text: str) -> Token:
    parts = text.strip().split(".")
    if len(parts) != 4 or parts[0] != "shoal1" or not all(parts):
        raise UsageError("the token is not of the form shoal1.<id>.<secret>.<fingerprint>")
    return Token(text.strip(), parts[1], None if parts[3] == "-" else parts[3])


def load(home: Path) -> Identity:
    """The identity that lives in ``home``; NotEnrolled if there is none."""
    path = home / "identity.json"
    try:
        saved = json.loads(path.read_text())
        # Another agent may have written it, which knew more of it and has gone since.
        known = {attribute.name for attribute in fields(Identity)}
        return Identity(**{name: value for name, value in saved.items() if name in known})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotEnrolled(
            f"this device is not enrolled: {path} does not exist; run 'shoal-agent enrol'"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise HomeError(
            f"{path} is damaged; restore it, or delete it and enrol again with a new token"
        ) from error
    except OSError as error:
        raise HomeError(f"{path} cannot be read: {error.strerror}") from error


def enrol(home: Path, url: str, token: Token, name: str, capability: Capability) -> Identity:
    """Claim ``token`` at the coordinator and write the identity. Asking again is harmless."""
    address = parse(url)
    if (token.fingerprint is None) == address.tls:
        kind = "plain http" if token.fingerprint is None else "https"
        raise UsageError(f"the token was issued for a coordinator on {kind}, the URL is {address.url}")
    if not address.tls and not address.loopback:
        raise UsageError(
            f"{address.url} would carry the secret in the clear: http is accepted on this machine only"
        )
    known = _already(home, address, token)
    if known is not None:
        return known
    make_home(home)
    if token.fingerprint is not None:
        write_durably(home / "authority.pem", _authority(address, token.fingerprint))
        address = evolve(address, authority=home / "authority.pem")
    secret = _pending_secret(home, token)
    try:
        request = EnrolmentRequest(token=token.text, secret=secret, name=name, capability=capability)
    except ProtocolError as error:
        raise UsageError(f"the enrolment cannot be asked for: {error}") from error
    reply = _claim(address, request)
    identity = Identity(
        device=reply.device,
        secret=secret,
        url=address.url,
        broker_host=reply.broker_host,
        broker_port=reply.broker_port,
        broker_tls=reply.broker_tls,
        heartbeat=reply.heartbeat,
        authority=address.authority.name if address.authority else None,
        token=token.id,
        release_key=reply.release_key,
    )
    write_durably(home / "identity.json", json.dumps(asdict(identity), indent=2).encode())
    (home / "enrolment.json").unlink(missing_ok=True)
    return identity


def forget(home: Path) -> None:
    """Nothing is left of who this device was, of what it trained, and of where; its settings and data stay."""
    for name in ("identity", "enrolment", "rotation", "commands", "deployments", "status"):
        (home / f"{name}.json").unlink(missing_ok=True)
    for path in (home / "authority.pem", home / "paused", *home.glob("spool.*"), *home.glob("fleet.toml*")):
        path.unlink(missing_ok=True)
    for folder in ("blobs", "checkpoint", "models", "releases", "spooled", "update"):
        shutil.rmtree(home / folder, ignore_errors=True)


def make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HomeError(
            f"the home {home} cannot be made: {error.strerror}; choose another with --home"
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise HomeError(f"the home {home} cannot be written by this user; choose another with --home")


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` (mode 0600) so that after a power cut either the old or the new content is there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise HomeError(f"{path} cannot be written: {error.strerror}") from error


def _already(home: Path, address: Address, token: Token) -> Identity | None:
    try:
        known = load(home)
    except NotEnrolled:
        return None
    if known.token != token.id or known.url != address.url:
        raise UsageError(
            f"{home} already belongs to device {known.device} of {known.url}; choose another --home, "
            "or remove this one first if that device was revoked"
        )
    return known


def _pending_secret(home: Path, token: Token) -> str:
    """The secret this token was or will be claimed with, durable before it is used."""
    path = home / "enrolment.json"
    try:
        pending = json.loads(path.read_text())
        if pending["token"] == token.id:
            return str(pending["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing was asked with it: a torn file is never replaced into place
    secret = secrets.token_urlsafe(32)
    write_durably(path, json.dumps({"token": token.id, "secret": secret}).encode())
    return secret


def _authority(address: Address, fingerprint: str) -> bytes:
    """The coordinator's CA as PEM, fetched from anyone and believed only if the token vouches for it."""
    status, body = exchange(address, "GET", "/api/v1/authority", verify=False)
    if status != 200:
        raise Refused(
            f"{address.url} does not hand out its authority (status {status}); is it a Shoal coordinator?"
        )
    try:
        der = ssl.PEM_cert_to_DER_cert(body.decode("ascii").strip())
    except ValueError as error:
        raise Refused(f"{address.url} sent no certificate for its authority") from error
    found = base64.urlsafe_b64encode(hashlib.sha256(der).digest()[:20]).decode().rstrip("=")
    if not hmac.compare_digest(found.encode(), fingerprint.encode()):
        raise Refused(
            f"{address.url} is not the coordinator that issued this token: "
            "its authority has another fingerprint"
        )
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _claim(address: Address, request: EnrolmentRequest) -> EnrolmentReply:
    status, body = exchange(address, "POST", "/api/v1/enrol", encode(request))
    if status >= 500 or status in (408, 429):
        raise Unreachable(
            f"{address.url} cannot enrol devices now (status {status}): {problem(body)}; try again"
        )
    if status not in (200, 201):
        raise Refused(f"{address.url} refused the enrolment (status {status}): {problem(body)}")
    try:
        return decode(EnrolmentReply, body)
    except ProtocolError as error:
        raise Refused(f"{address.url} sent an answer this agent does not understand: {error}") from error


def problem(body: bytes) -> str:
    """The sentence of an RFC 9457 problem."""
    try:
        problem: Any = json.loads(body)
        text = problem.get("detail") or problem["title"]
        return f"{text} [{problem['code']}]" if "code" in problem else str(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it gave no reason"


def exchange(
    address: Address, method: str, path: str, body: bytes | None = None, verify: bool = True, login: str = ""
) -> tuple[int, bytes]:
    """Status and body of one request; ``login`` is for Basic authentication. Unreachable or Refused."""
    connection = address.connect(verify=verify)
    headers = {"Accept": "application/json, application/problem+json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if login:
        headers["Authorization"] = f"Basic {login}"
    try:
        connection.request(method, address.prefix + path, body, headers)
        reply = connection.getresponse()
        data = reply.read(MAX_REPLY + 1)
    except ssl.SSLCertVerificationError as error:
        raise Refused(
            f"{address.url} has no certificate of its own authority: {error.verify_message}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{address.url} cannot be reached: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
    if len(data) > MAX_REPLY:
        raise Refused(f"{address.url} sent more than {MAX_REPLY} bytes; is it a Shoal coordinator?")
    return reply.status, data
