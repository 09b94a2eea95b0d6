"""The private certificate authority, made on the first start: it signs the server's certificate.

Everything lies under ``<home>/tls/``: ``ca.pem``, ``ca-key.pem``, ``server.pem``, ``server-key.pem``.
Devices learn the authority's fingerprint with their claim token, so the authority is never renewed by itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
import re
import secrets
import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BACKDATED = timedelta(hours=48)  # boards without a clock battery start in the past
_AUTHORITY_LIFE = timedelta(days=3652)
_SERVER_LIFE = timedelta(days=825)  # what Apple's clients accept at most
_RENEWAL = timedelta(days=30)

_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?({_LABEL}\.)*{_LABEL}")


class AuthorityError(Exception):
    """A certificate, a key or a host name cannot be used. No existing file has been changed."""


class NameRefused(AuthorityError):
    """What the server is to be reached by is no host name."""


@frozen
class TlsFiles:
    """Paths of PEM files: the authority's certificate, the server's certificate and its private key."""

    ca: Path
    certificate: Path
    key: Path


def establish(home: Path, names: Iterable[str] = (), *, now: datetime) -> TlsFiles:
    """The TLS files under `home`, made or renewed where needed.

    `names`: host names and IP addresses the server is reached by, beside localhost, 127.0.0.1 and this
    machine's own name. The server certificate is issued again when it ends within 30 days, when the names
    have changed or when it belongs to another key or authority; the server's key stays. `now` has a
    time zone.

    Raises AuthorityError for a file that cannot be read as what it should be, half an authority, an
    authority that has expired, or an impossible name.
    """
    folder = home / "tls"
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")
    wanted = _subject_names(names)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuthorityError(f"{folder} cannot be made: {error.strerror}.") from error
    server = _load_certificate(files.certificate) if files.certificate.exists() else None
    server_key = _load_key(files.key) if files.key.exists() else None
    ca, ca_key = _authority(files.ca, folder / "ca-key.pem", now)
    if server_key is None:
        server_key = ec.generate_private_key(ec.SECP256R1())
        _write(files.key, _key_pem(server_key), mode=0o600)
    if server is None or not _serves(server, server_key, ca, wanted, now):
        issued = _issue(ca, ca_key, server_key.public_key(), wanted, now)
        _write(files.certificate, issued.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return files


def lend(home: Path, name: str, folder: Path) -> TlsFiles:
    """A certificate and a new key for a broker called `name`, signed by the authority under `home`, in `folder`."""
    now, own = datetime.now(UTC), home / "tls"
    if not (own / "ca.pem").exists():
        raise AuthorityError(f"There is no authority in {own}: start the coordinator with TLS once.")
    ca, ca_key = _authority(own / "ca.pem", own / "ca-key.pem", now)
    key = ec.generate_private_key(ec.SECP256R1())
    issued = _issue(ca, ca_key, key.public_key(), _subject_names([name]), now)
    files = TlsFiles(folder / "ca.pem", folder / "broker.pem", folder / "broker-key.pem")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuthorityError(f"{folder} cannot be made: {error.strerror}.") from error
    _write(files.key, _key_pem(key), mode=0o600)
    for file, certificate in ((files.certificate, issued), (files.ca, ca)):
        _write(file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return files


def fingerprint(ca_pem: str | bytes) -> str:
    """What a device checks the authority by: base64url of the first 20 bytes of sha256(DER), 27
    characters."""
    text = ca_pem.decode("ascii", "replace") if isinstance(ca_pem, bytes) else ca_pem
    try:
        der = ssl.PEM_cert_to_DER_cert(text)
    except (ValueError, binascii.Error):
        raise AuthorityError("The authority's certificate is not in PEM form.") from None
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()[:20]).rstrip(b"=").decode()


def _authority(
    certificate_file: Path, key_file: Path, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    present = [file for file in (certificate_file, key_file) if file.exists()]
    if not present:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _found(key, now)
        _write(key_file, _key_pem(key), mode=0o600)
        _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return certificate, key
    if len(present) == 1:
        missing = key_file if present == [certificate_file] else certificate_file
        raise AuthorityError(
            f"{missing} is missing beside {present[0].name}. Restore it from a backup; or remove "
            f"{present[0].name} as well for a new authority, which every device must then be told of."
        )
    certificate, key = _load_certificate(certificate_file), _load_key(key_file)
    if certificate.public_key() != key.public_key():
        raise AuthorityError(f"{certificate_file} and {key_file.name} do not belong together.")
    if certificate.not_valid_after_utc <= now:
        end = certificate.not_valid_after_utc
        raise AuthorityError(f"The authority {certificate_file} expired on {end:%Y-%m-%d}.")
    return certificate, key


def _found(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = _common_name(f"Shoal authority {secrets.token_hex(4)}")
    public = key.public_key()
    return (
        _builder(name, name, public, now, now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _issue(
    ca: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    names: list[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    until = min(now + _SERVER_LIFE, ca.not_valid_after_utc)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        _builder(_common_name("Shoal coordinator"), ca.subject, public, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _BACKDATED)
        .not_valid_after(until.astimezone(UTC))
    )


def _serves(
    server: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: list[x509.GeneralName],
    now: datetime,
) -> bool:
    """Whether a server certificate may stay in use."""
    try:
        server.verify_directly_issued_by(ca)
        has = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    fresh = server.not_valid_before_utc <= now and now + _RENEWAL < server.not_valid_after_utc
    # Near its own end the authority cannot give more time than the certificate has.
    fresh = fresh or now < server.not_valid_after_utc == ca.not_valid_after_utc
    return fresh and set(has) == set(names) and server.public_key() == key.public_key()


def _subject_names(extra: Iterable[str]) -> list[x509.GeneralName]:
    host = socket.gethostname().lower()
    own = [host, host if "." in host else f"{host}.local"]
    names = ["localhost", "127.0.0.1", *(name for name in own if _HOST.fullmatch(name))]
    names += [name.strip().lower() for name in extra]
    return [_subject_name(name) for name in dict.fromkeys(names)]


def _subject_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name):
        raise NameRefused(
            f"{name!r} is neither an IP address nor a host name in ASCII (letters, digits, '-', '_', '.')."
        )
    return x509.DNSName(name)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise AuthorityError(f"{path} is damaged: it should be a certificate in PEM form.") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path} is damaged: it should be an unencrypted ECDSA key in PEM form.")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)  # a backup may have restored it readable by others
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AuthorityError(f"{path} cannot be read: {error.strerror}.") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> None:
    """Writes durably and in one step; no moment at which a key can be read by others."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise AuthorityError(f"{path} cannot be written: {error.strerror}.") from error
