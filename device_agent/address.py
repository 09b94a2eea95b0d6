"""The coordinator's HTTP address, and connections to it that trust its own authority and no other."""

from __future__ import annotations

import http.client
import ipaddress
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

from .errors import HomeError, UsageError

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for

log = logging.getLogger(__name__)


@frozen
class Address:
    """``authority``: PEM file of the one CA an https coordinator's certificate may come from."""

    host: str
    port: int
    tls: bool
    prefix: str = ""
    authority: Path | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def connect(self, timeout: float = 20.0, verify: bool = True) -> http.client.HTTPConnection:
        """An unopened connection. Without ``verify`` nothing secret may be sent over it."""
        if not self.tls:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        context = trust(self.authority) if verify else _trust_anyone()
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)


def parse(url: str, authority: Path | None = None) -> Address:
    """``https://host[:port][/prefix]`` or ``http://...``; UsageError for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the URL {url!r} is not valid: {error}") from error
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise UsageError(f"the URL {url!r} is not of the form https://host:port")
    tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"), authority)


def trust(authority: Path | None, now: Callable[[], float] = time.time) -> ssl.SSLContext:
    """A context that accepts certificates of ``authority`` only; None means the system's authorities.

    A board without a clock battery believes it is 1970 until it has asked somebody, and to ask it needs TLS. Where the
    clock says that the authority does not exist yet, the clock is wrong: dates of certificates count for nothing then,
    signatures and names as ever.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
    except (OSError, ssl.SSLError) as error:
        raise HomeError(f"the coordinator's authority {authority} cannot be read: {error}") from error
    if authority is not None:
        made = [ssl.cert_time_to_seconds(str(known["notBefore"])) for known in context.get_ca_certs()]
        if made and now() < min(made):
            log.warning("clock-behind now=%.0f authority_made=%.0f", now(), min(made))
            context.verify_flags |= _NO_CHECK_TIME
    return context


def _trust_anyone() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
