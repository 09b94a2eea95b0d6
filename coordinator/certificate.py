"""Which certificate a visitor is shown: the own authority's, or one of a public authority, by the name they ask for.

Devices trust the coordinator's own authority alone. Browsers know nothing of it: for them a certificate of somebody
else's may be given, for names of its own. It is read anew when its files change; connections that are open stay.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from cheroot.ssl.builtin import BuiltinSSLAdapter
from cryptography import x509

from coordinator.errors import ShoalError
from coordinator.fleet.authority import TlsFiles

log = logging.getLogger(__name__)



class Public:
    """A certificate with its chain, and its key, as PEM files. ShoalError bad-request if they cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._stamp: object = self._now()
        try:
            self._context, self.names = self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ShoalError("bad-request", f"Settings certificate and certificate_key: {_why(error)}") from error

    @property
    def context(self) -> ssl.SSLContext:
        """The newest pair that fits together: while a new one is being written, the one before."""
        if (stamp := self._now()) != self._stamp:
            self._stamp = stamp
            try:
                self._context, self.names = self._load()
                log.info("certificate-renewed names=%s", ",".join(sorted(self.names)))
            except (OSError, ValueError) as error:
                log.warning("certificate-unusable reason=%s", _why(error))
        return self._context

    def covers(self, name: str) -> bool:
        """Whether the certificate is for this host name."""
        name = name.lower().rstrip(".")
        return name in self.names or f"*.{name.partition('.')[2]}" in self.names

    def _now(self) -> object:
        try:
            return tuple((found.st_mtime_ns, found.st_ino, found.st_size) for found in (p.stat() for p in self._paths))
        except OSError as error:
            return str(error)

    def _load(self) -> tuple[ssl.SSLContext, frozenset[str]]:
        certificate, key = self._paths
        held = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        try:
            given = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound as error:
            raise ValueError(f"{certificate} is for no name") from error
        return context, frozenset(name.lower() for name in given.get_values_for_type(x509.DNSName))


def adapter(own: TlsFiles, public: Public | None) -> BuiltinSSLAdapter:
    """What the server wraps connections with."""
    made = BuiltinSSLAdapter(str(own.certificate), str(own.key))

    def choose(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.sni = name
        if name and public is not None:
            context = public.context
            if public.covers(name):
                connection.context = context

    made.context.sni_callback = choose
    return made


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"certificate and key do not fit together: {error.reason or error}"
    if isinstance(error, OSError):
        return f"{error.filename} cannot be read: {error.strerror}"
    return str(error)
