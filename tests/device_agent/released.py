"""Releases as a coordinator would sign them, for tests."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.deployments import Deploy, Manifest, ReleaseFile
from protocol.wire import encode

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = PRIVATE.public_key().public_bytes_raw().hex()


def signed(text: str) -> str:
    return PRIVATE.sign(text.encode()).hex()


def manifest(kind: str, number: int = 1, files: dict[str, bytes] | None = None, **more: Any) -> str:
    """The text of one; ``files`` by name."""
    rows = tuple(
        ReleaseFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for name, data in (files or {}).items()
    )
    now = time.time()
    given = {"version": f"{number}.0", "created_at": now, "expires_at": now + 1e6, "files": rows, **more}
    return encode(Manifest(kind=kind, number=number, **given)).decode()


def deploy(text: str, id: str = "e1", lock: float = 0, trial: float = 60, **more: Any) -> Deploy:
    """The order to put it to use, with a good signature unless ``more`` says otherwise."""
    given = {"signature": signed(text), "seconds": 600, **more}
    return Deploy(id=id, manifest=text, lock=lock, trial=trial, **given)
