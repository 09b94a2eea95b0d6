"""Which certificate a visitor is shown, and how it is renewed."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coordinator.app import Coordinator
from coordinator.certificate import Public
from coordinator.errors import ShoalError
from coordinator.settings import Settings


def issue(folder, *names):
    """A certificate as of a public authority; its serial number."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    (folder / "fullchain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made.serial_number


def shown(port, name):
    """The serial number of the certificate that who asks for a name is shown, and the connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30), server_hostname=name)
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number, connection


def test_who_asks_for_its_name_is_shown_it_and_a_renewal_drops_nobody(tmp_path):
    first = issue(tmp_path, "shoal.example.org", "*.fleet.example.org")
    pair = {"certificate": str(tmp_path / "fullchain.pem"), "certificate_key": str(tmp_path / "key.pem")}
    settings = Settings(home=tmp_path / "home", port=0, mqtt_port=0, broker="embedded", tls="on", **pair)
    with Coordinator(settings) as coordinator:
        port = coordinator.settings.port
        own, device = shown(port, "localhost")
        serial, browser = shown(port, "shoal.example.org")
        assert (serial == first, own == first) == (True, False)
        assert shown(port, "a.fleet.example.org")[0] == first
        assert shown(port, "a.b.fleet.example.org")[0] == own
        second = issue(tmp_path, "shoal.example.org")
        assert shown(port, "shoal.example.org")[0] == second
        assert shown(port, "localhost")[0] == own
        (tmp_path / "key.pem").write_text("half a k")
        assert shown(port, "shoal.example.org")[0] == second, "the one before stays"
        for connection in (device, browser):
            connection.sendall(b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_a_certificate_for_the_name_that_devices_use_is_refused(tmp_path):
    issue(tmp_path, "shoal.example.org")
    pair = {"certificate": str(tmp_path / "fullchain.pem"), "certificate_key": str(tmp_path / "key.pem")}
    ports = {"port": 0, "mqtt_port": 0, "broker": "embedded"}
    settings = Settings(home=tmp_path / "home", name="shoal.example.org", tls="on", **ports, **pair)
    with pytest.raises(ShoalError, match="by which devices reach the coordinator") as refused:
        Coordinator(settings).start()
    assert refused.value.code == "bad-request"


def test_a_pair_that_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ShoalError, match=r"fullchain.pem cannot be read: No such file"):
        Public(tmp_path / "fullchain.pem", tmp_path / "key.pem")
    issue(tmp_path, "shoal.example.org")
    (tmp_path / "kept.pem").write_bytes((tmp_path / "key.pem").read_bytes())
    issue(tmp_path, "shoal.example.org")
    with pytest.raises(ShoalError, match="certificate and key do not fit together"):
        Public(tmp_path / "fullchain.pem", tmp_path / "kept.pem")
