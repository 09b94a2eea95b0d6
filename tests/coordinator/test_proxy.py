"""Behind a reverse proxy: its word is taken, nobody else's, and everything passes a real nginx."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve
from sqlalchemy import select

from coordinator import operators
from coordinator.app import create_app
from coordinator.fleet import authority
from coordinator.proxy import Forwarded, networks
from coordinator.store.models import Event
from protocol.wire import encode
from tests.coordinator.people import START, add_assignment, add_run, basic, request_of
from tests.coordinator.test_cli import listening

__all__ = ["listening"]

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def heard(sender, trusted, **headers):
    """Address, scheme and host of a request as the application sees it."""
    seen = {}
    environ = {"REMOTE_ADDR": sender, "wsgi.url_scheme": "http", "HTTP_HOST": "127.0.0.1:8750"}
    environ |= {f"HTTP_X_FORWARDED_{name.upper()}": value for name, value in headers.items()}
    Forwarded(lambda environ, _: seen.update(environ) or [], networks(trusted))(environ, lambda *_: None)
    assert not [name for name in seen if name.startswith("HTTP_X_FORWARDED")]
    return seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["HTTP_HOST"]


ELSEWHERE = {"for": "192.0.2.7", "proto": "https", "host": "shoal.example.org"}


def test_the_proxy_says_who_asks_and_how():
    assert heard("127.0.0.1", "127.0.0.1", **ELSEWHERE) == ("192.0.2.7", "https", "shoal.example.org")
    assert heard("::ffff:10.1.2.3", "10.0.0.0/8, ::1", **ELSEWHERE)[0] == "192.0.2.7"


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
def test_from_anybody_else_it_means_nothing(trusted):
    assert heard("127.0.0.1", trusted, **ELSEWHERE) == ("127.0.0.1", "http", "127.0.0.1:8750")


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("127.0.0.1, 192.0.2.7", "192.0.2.7"),
        ("192.0.2.7, 10.0.0.5", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7, 10.0.0.5", "192.0.2.7"),
        ("10.0.0.9, 10.0.0.5", "10.0.0.9"),
        ("nonsense", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_what_a_visitor_puts_in_front_of_the_chain_does_not_count(chain, address):
    assert heard("10.0.0.1", "10.0.0.0/8", **{**ELSEWHERE, "for": chain})[0] == address


def test_a_scheme_or_host_that_is_none_is_left_out():
    assert heard("127.0.0.1", "127.0.0.1", proto="gopher", host="a b/c") == ("127.0.0.1", "http", "127.0.0.1:8750")


@pytest.fixture
def behind(home, services, boards, listening, tmp_path):
    """A connection to nginx with the configuration of the page, in front of a coordinator."""
    if NGINX is None:
        if os.environ.get("CI") == "true":
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed (apt-get install nginx)")
    settings = evolve(services.settings, proxy="127.0.0.1")
    authority.establish(home, now=datetime.now(UTC))
    files = authority.lend(home, "shoal.example.org", tmp_path / "lent")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    block = PAGE.split("```nginx\n")[1].split("```")[0]
    for shown, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/shoal.example.org.pem", str(files.certificate)),
        ("/etc/ssl/shoal.example.org.key", str(files.key)),
        ("http://127.0.0.1:8750", f"http://127.0.0.1:{listening(create_app(evolve(services, settings=settings)))}"),
    ):
        assert shown in block
        block = block.replace(shown, here)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    top = f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; events {{}}"
    (tmp_path / "nginx.conf").write_text(f"{top} http {{ access_log off; {paths} {block} }}")
    words = [NGINX, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", "stderr"]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as nginx:
        context = ssl.create_default_context(cafile=str(files.ca))
        try:
            while nginx.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    pass
            assert nginx.poll() is None, nginx.stderr.read()
            yield lambda source="127.0.0.1": _To(port, context, source)
        finally:
            nginx.terminate()


class _To(http.client.HTTPSConnection):
    """To the proxy under the name that its certificate is for."""

    def __init__(self, port, context, source):
        super().__init__("shoal.example.org", port, timeout=60, context=context)
        self._ours, self._from = context, source

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.port), 60, (self._from, 0))
        self.sock = self._ours.wrap_socket(plain, server_hostname=self.host)


def answer(connection, method, path, body=None, **headers):
    with closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()


def test_through_nginx_a_session_is_for_encrypted_connections_only(behind, services):
    with services.database.write() as session:
        secret = operators.mint_login(session, START, name="ada", role="admin", by="ada")
    opened, _ = answer(behind(), "GET", f"/login/{secret}")
    assert opened.status == 302
    assert "; Secure;" in f"{opened.headers['Set-Cookie']};"


def test_through_nginx_large_downloads_pass_in_ranges(behind, services):
    content = os.urandom(3 << 20)
    sha256 = services.blobs.put(content)
    with services.database.write() as session:
        add_run(session, "run-1", START)
        add_assignment(session, "a-1", "pico", START, weights=sha256)
    path = f"/api/v1/device/blobs/{sha256}"
    whole, got = answer(behind(), "GET", path, **basic("pico"))
    assert (whole.status, got == content) == (200, True)
    part, got = answer(behind(), "GET", path, Range="bytes=2000000-", **basic("pico"))
    assert (part.status, got == content[2_000_000:]) == (206, True)
    assert part.headers["Content-Range"] == f"bytes 2000000-{len(content) - 1}/{len(content)}"


def test_through_nginx_nobody_can_pretend_to_be_somebody_else(behind, services):
    request = request_of("eve", f"shoal1.{'0' * 12}.{'x' * 43}.-")
    pretended = {"X-Forwarded-For": "192.0.2.7"}
    refused, _ = answer(behind("127.0.0.2"), "POST", "/api/v1/enrol", encode(request), **pretended)
    assert refused.status == 401
    with services.database.read() as session:
        (line,) = session.scalars(select(Event.text).where(Event.kind == "enrolment-refused"))
    assert line.startswith("eve at 127.0.0.2 tried to join")
