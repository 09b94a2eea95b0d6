"""What the installer needs of the coordinator: its authority, and the bundle."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import platform
import re
import ssl
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .system import InstallError

MAX_BUNDLE = 512 << 20


def target() -> str:
    """The bundle that fits, e.g. aarch64-cp313. A 32-bit system may run below a 64-bit kernel: the pointers tell."""
    machine = platform.machine()
    if struct.calcsize("P") == 4 and machine in ("aarch64", "armv8l"):
        machine = "armv7l"
    return f"{machine}-cp{sys.version_info.major}{sys.version_info.minor}"


class Coordinator:
    """The coordinator at ``url``, believed once its authority is the one that the token names."""

    def __init__(self, url: str, token: str) -> None:
        parts = token.split(".")
        if len(parts) != 4 or parts[0] != "shoal1":
            raise InstallError("The token is not of the form shoal1.<id>.<secret>.<fingerprint>")
        self._url, self._token = url.rstrip("/"), token
        host = re.fullmatch(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:@]+)(:\d+)?(/[^?#@]*)?", self._url)
        if host is None:
            raise InstallError(f"{url!r} is not of the form https://host:port")
        self._context: ssl.SSLContext | None = None
        if host[1] == "https":
            self._context = self._trusted(parts[3])
        elif parts[3] != "-" or host[2] not in ("localhost", "127.0.0.1", "[::1]"):
            raise InstallError(f"{url} would carry the token in the clear: https is expected")

    def bundle(self) -> tuple[str, Callable[[], bytes]]:
        """The bundle for this board: its sha256, and how to get it."""
        rows = json.loads(self._get("/api/v1/bundles"))
        found = next((row for row in rows if row["target"] == target()), None)
        if found is None:
            raise InstallError(f"The coordinator has no bundle for this board (shoal bundle build {target()})")
        sha256 = str(found["sha256"])
        return sha256, lambda: self._get(f"/api/v1/bundles/{sha256}")

    def release_key(self) -> str:
        """What releases for this board will be signed with: 32 bytes in hexadecimal digits."""
        return str(json.loads(self._get("/api/v1/installer/key"))["release_key"])

    def _trusted(self, fingerprint: str) -> ssl.SSLContext:
        """The authority's certificate comes from anyone, and counts only if the token vouches for it."""
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with self._open("/api/v1/authority", anyone, {}) as answer:
            pem = answer.read(1 << 16).decode("ascii", "replace")
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.strip())
        except ValueError as error:
            raise InstallError(f"{self._url} sent no certificate for its authority") from error
        seal = base64.urlsafe_b64encode(hashlib.sha256(der).digest()[:20]).decode().rstrip("=")
        if not hmac.compare_digest(seal, fingerprint):
            raise InstallError(f"{self._url} is not the coordinator that made this token: nothing was told to it")
        return ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(der))

    def _get(self, path: str) -> bytes:
        with self._open(path, self._context, {"Authorization": f"Bearer {self._token}"}) as answer:
            content: bytes = answer.read(MAX_BUNDLE)
            return content

    def _open(self, path: str, context: ssl.SSLContext | None, headers: dict[str, str]) -> Any:
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        request = urllib.request.Request(self._url + path, headers=headers)  # noqa: S310 - looked at above
        try:
            return urllib.request.build_opener(*handlers).open(request, timeout=60)
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(said)["detail"]
            raise InstallError(f"The coordinator refused: {said[:300]}") from error
        except OSError as error:
            raise InstallError(f"{self._url} cannot be reached or trusted: {error}") from error
