"""A new secret in place of the present one, such that a power cut at any moment leaves one that works.

The device makes the next secret and has it on disk before it shows it. The coordinator takes both until the device has
proved the next one; then the present one is gone on both sides.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from attrs import asdict, evolve

from protocol.commands import NextSecret
from protocol.wire import encode

from .address import Address
from .errors import Refused, Unreachable
from .identity import Identity, exchange, problem, write_durably

PENDING = "rotation.json"


def unfinished(home: Path) -> bool:
    """Whether a rotation was begun, and not yet ended as far as this device knows."""
    return (home / PENDING).exists()


def rotate(home: Path, identity: Identity, address: Address) -> Identity:
    """The identity with a new secret, on disk. Asking again after an error goes on where it was.

    Unreachable: not now. Refused: the coordinator takes neither secret, and the present one stays.
    """
    secret = _pending(home, identity)
    status, body = _ask(address, "/api/v1/device/secret", identity.device, identity.secret, NextSecret(secret=secret))
    if status == 409:  # it has been dropped there: a later one was made
        (home / PENDING).unlink(missing_ok=True)
        raise Refused(f"the new secret was refused: {problem(body)}")
    if status not in (200, 401):  # 401: the present one is gone already, if the next one is proved
        raise Refused(f"the new secret was refused (status {status}): {problem(body)}")
    status, body = _ask(address, "/api/v1/device/secret/proof", identity.device, secret)
    if status != 200:
        (home / PENDING).unlink(missing_ok=True)
        raise Refused(f"the new secret could not be proved (status {status}): {problem(body)}")
    changed = evolve(identity, secret=secret)
    write_durably(home / "identity.json", json.dumps(asdict(changed), indent=2).encode())
    (home / PENDING).unlink(missing_ok=True)
    return changed


def appeal(home: Path, identity: Identity, address: Address) -> None:
    """The broker does not let this device in: show the present secret to the coordinator, which tells the broker anew.
    Unreachable or Refused; nothing while a rotation is under way, which does the same."""
    if not unfinished(home):
        status, body = _ask(address, "/api/v1/device/secret/proof", identity.device, identity.secret)
        if status != 200:
            raise Refused(f"the coordinator does not know this device's secret (status {status}): {problem(body)}")


def _pending(home: Path, identity: Identity) -> str:
    """The secret that is to follow, durable before it is used."""
    path = home / PENDING
    try:
        known = json.loads(path.read_text())
        if known["device"] == identity.device and known["secret"] != identity.secret:
            return str(known["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none was begun: a torn file is never replaced into place
    secret = secrets.token_urlsafe(32)
    write_durably(path, json.dumps({"device": identity.device, "secret": secret}).encode())
    return secret


def _ask(
    address: Address, path: str, device: str, secret: str, message: NextSecret | None = None
) -> tuple[int, bytes]:
    login = base64.b64encode(f"{device}:{secret}".encode()).decode()
    body = encode(message) if message is not None else b""
    status, answer = exchange(address, "POST", path, body, login=login)
    if status >= 500 or status in (408, 429):
        raise Unreachable(f"{address.url} cannot change secrets now (status {status}): {problem(answer)}")
    return status, answer
