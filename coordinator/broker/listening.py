"""Whether an address of this machine can be listened on, and why not."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING

from coordinator.broker.driver import AddressInUse, BrokerError

if TYPE_CHECKING:
    from coordinator.fleet.authority import TlsFiles


def check(host: str, port: int, *, patience: float = 0.0) -> None:
    """Nothing if this process may listen there. AddressInUse while somebody else does, even after ``patience``
    seconds; BrokerError for an address this machine has not, or a port that takes more rights."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return listener(host, port).close()
        except AddressInUse:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def listener(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A socket that listens; the errors of :func:`check`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except (OSError, OverflowError, ValueError) as error:
        sentence = f"Shoal cannot listen on {host} port {port}: {reason(error)}"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{sentence}.") from error
        if isinstance(error, PermissionError):
            sentence += "; ports below 1024 take the right CAP_NET_BIND_SERVICE"
        raise BrokerError(f"{sentence}.") from error


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with listener(host, 0) as found:
        return int(found.getsockname()[1])


def reason(error: Exception) -> str:
    """Without the address or path that some system calls repeat in their message."""
    if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, socket.gaierror)) and error.errno:
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error)


def reachable(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """What a server encrypts by; BrokerError for files that are none, or do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        files = f"{tls.certificate} with {tls.key}"
        raise BrokerError(f"The broker cannot use {files}: {reason(error)}.") from error
    return context
