"""The authority and its server certificate, checked by real TLS handshakes."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.fleet.authority import AuthorityError, TlsFiles, establish, fingerprint

NOW = datetime.now(UTC).replace(microsecond=0)


def handshake(files: TlsFiles, name: str, ca: Path | None = None) -> None:
    """A TLS handshake in memory: a client that trusts `ca` only calls the server `name`."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.certificate, files.key)
    client_side = ssl.create_default_context(cafile=str(ca or files.ca))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    finished: set[ssl.SSLObject] = set()
    while len(finished) < 2:
        for side in (client, server):
            try:
                side.do_handshake()
                finished.add(side)
            except ssl.SSLWantReadError:
                pass


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "tls").iterdir()}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fleet.example.org", "10.1.2.3", "fd00::7"])
def test_devices_reach_the_server_by_all_its_names(tmp_path: Path, name: str) -> None:
    handshake(establish(tmp_path, ["Fleet.example.org", "10.1.2.3", "fd00::7"], now=NOW), name)


def test_the_machines_own_name_is_among_them(tmp_path: Path) -> None:
    host = socket.gethostname().lower()
    server = load(establish(tmp_path, now=NOW).certificate)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        "localhost",
        host,
        host if "." in host else f"{host}.local",
    }
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_another_name_or_another_authority_is_refused(tmp_path: Path) -> None:
    files = establish(tmp_path / "one", now=NOW)
    other = establish(tmp_path / "two", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files, "fleet.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, "localhost", ca=other.ca)


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    files = establish(tmp_path, now=NOW)
    assert mode(tmp_path / "tls") == 0o700
    assert mode(files.key) == mode(tmp_path / "tls" / "ca-key.pem") == 0o600
    files.key.chmod(0o644)
    establish(tmp_path, now=NOW)
    assert mode(files.key) == 0o600


def test_the_authority_lasts_ten_years_and_began_two_days_ago(tmp_path: Path) -> None:
    ca = load(establish(tmp_path, now=NOW).ca)
    assert ca.not_valid_before_utc == NOW - timedelta(hours=48)
    assert ca.not_valid_after_utc == NOW + timedelta(days=3652)
    assert ca.public_key().key_size == 256  # type: ignore[union-attr]


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    files = establish(tmp_path, ["b.example", "a.example"], now=NOW)
    before = contents(tmp_path)
    assert set(before) == {"ca.pem", "ca-key.pem", "server.pem", "server-key.pem"}
    assert establish(tmp_path, ["a.example", "b.example"], now=NOW + timedelta(days=700)) == files
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change", ["near the end", "other names", "certificate lost", "key lost", "new authority"]
)
def test_the_server_certificate_is_issued_again(tmp_path: Path, change: str) -> None:
    files = establish(tmp_path, ["a.example"], now=NOW)
    before = contents(tmp_path)
    if change == "certificate lost":
        files.certificate.unlink()
    if change == "key lost":
        files.key.unlink()
    if change == "new authority":
        files.ca.unlink()
        (tmp_path / "tls" / "ca-key.pem").unlink()
    names = ["b.example"] if change == "other names" else ["a.example"]
    later = NOW + timedelta(days=800) if change == "near the end" else NOW
    establish(tmp_path, names, now=later)
    after = contents(tmp_path)
    assert after["server.pem"] != before["server.pem"]
    assert (after["server-key.pem"] == before["server-key.pem"]) == (change != "key lost")
    assert (after["ca.pem"] == before["ca.pem"]) == (change != "new authority")
    if change != "near the end":  # that one is not valid yet
        handshake(files, names[0])


def test_near_the_authoritys_end_a_certificate_is_not_issued_anew_at_every_start(tmp_path: Path) -> None:
    files = establish(tmp_path, now=NOW)
    late = NOW + timedelta(days=3640)
    establish(tmp_path, now=late)
    before = contents(tmp_path)
    assert load(files.certificate).not_valid_after_utc == load(files.ca).not_valid_after_utc
    establish(tmp_path, now=late + timedelta(days=1))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_file_is_an_error_and_nothing_is_overwritten(
    tmp_path: Path, name: str, damage: bytes
) -> None:
    establish(tmp_path, now=NOW)
    (tmp_path / "tls" / name).write_bytes(damage)
    before = contents(tmp_path)
    with pytest.raises(AuthorityError, match=rf"tls/{re.escape(name)} is damaged: it should be"):
        establish(tmp_path, ["new.example"], now=NOW)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("lost", ["ca.pem", "ca-key.pem"])
def test_half_an_authority_is_not_replaced(tmp_path: Path, lost: str) -> None:
    establish(tmp_path, now=NOW)
    (tmp_path / "tls" / lost).unlink()
    before = contents(tmp_path)
    with pytest.raises(AuthorityError, match=rf"tls/{re.escape(lost)} is missing beside"):
        establish(tmp_path, now=NOW)
    assert contents(tmp_path) == before


def test_an_authority_of_two_halves_or_past_its_time_is_an_error(tmp_path: Path) -> None:
    establish(tmp_path / "one", now=NOW)
    establish(tmp_path / "two", now=NOW)
    with pytest.raises(AuthorityError, match="expired on"):
        establish(tmp_path / "one", now=NOW + timedelta(days=3653))
    (tmp_path / "one/tls/ca-key.pem").write_bytes((tmp_path / "two/tls/ca-key.pem").read_bytes())
    with pytest.raises(AuthorityError, match="do not belong together"):
        establish(tmp_path / "one", now=NOW)


@pytest.mark.parametrize(
    "name", ["", "a b", "gerät.local", "-x.example", "a..b", "x" * 64, "10.0.0.0/8", "http://a"]
)
def test_an_impossible_name_is_an_error_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(AuthorityError, match="neither an IP address nor a host name"):
        establish(tmp_path, [name], now=NOW)
    assert not (tmp_path / "tls").exists()


def test_a_home_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("a file where the folder should be")
    with pytest.raises(AuthorityError, match="tls cannot be made: File exists"):
        establish(tmp_path, now=NOW)


def test_the_fingerprint_is_27_characters_of_the_certificates_hash(tmp_path: Path) -> None:
    pem = establish(tmp_path, now=NOW).ca.read_bytes()
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    mark = fingerprint(pem)
    assert mark == fingerprint(pem.decode())
    assert len(mark) == 27
    assert base64.urlsafe_b64decode(mark + "=") == hashlib.sha256(der).digest()[:20]
    with pytest.raises(AuthorityError, match="not in PEM form"):
        fingerprint("no certificate")
