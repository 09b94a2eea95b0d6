"""Everything encrypted: the token's fingerprint lets a device tell its coordinator from an impostor."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.broker.packets import frame
from coordinator.demo.fleet import Agent
from coordinator.fleet.authority import establish
from tests.broker.client import text
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, Server, clouds, until


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as closing:
        server = Server(tmp_path_factory.mktemp("coordinator"), ("--tls", "on"))
        closing.callback(server.kill)
        server.start()
        yield Fleet(server, closing)


def test_an_agent_trains_over_tls_to_a_new_version(encrypted: Fleet) -> None:
    server = encrypted.server
    assert server.api.url == f"https://127.0.0.1:{server.port}"
    run = server.start_run(RECIPE.replace("goal = 3", "goal = 2"))
    small, large = encrypted.join((TIERS[0], TIERS[2]))
    small.run()
    large.run()
    server.advances(run, by=2)
    identity = json.loads((small.home / "identity.json").read_text())
    assert identity["broker_tls"] is True
    assert identity["url"].startswith("https://")
    assert (small.home / identity["authority"]).read_text() == (server.home / "tls" / "ca.pem").read_text()
    assert accounts.check(server, [small, large], run)["applied"] >= 4


def test_nothing_is_spoken_in_the_clear(encrypted: Fleet) -> None:
    connect = text("MQTT") + bytes([4, 2, 0, 60]) + text("plain")
    for port, hello in (
        (encrypted.server.mqtt_port, frame(0x10, connect)),
        (encrypted.server.port, b"GET /api/v1/authority HTTP/1.1\r\nHost: x\r\n\r\n"),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(hello)
            try:
                answer = plain.recv(1024)
            except ConnectionError:
                answer = b""
        assert b"200 OK" not in answer
        assert not answer.startswith(b"\x20\x02")  # CONNACK


def test_a_token_with_another_fingerprint_is_refused(encrypted: Fleet, tmp_path: Path) -> None:
    token = encrypted.server.token("small")
    url = encrypted.server.api.url
    agent = Agent("wary", TIERS[0], tmp_path / "wary")
    data = clouds(tmp_path / "data.npz", 50, seed=5)
    forged = token.rpartition(".")[0] + "." + "A" * len(token.rpartition(".")[2])
    assert _outcome(agent, url, forged, data) == 4
    assert "is not the coordinator that issued this token" in agent.log.read_text()
    assert not (agent.home / "enrolment.json").exists(), "a secret was made for nobody"
    assert _outcome(agent, url, token, data) == 0  # the token is still good


@pytest.mark.parametrize("shows", ["own", "stolen"])
def test_an_impostor_never_hears_the_secret(encrypted: Fleet, tmp_path: Path, shows: str) -> None:
    """It answers at the coordinator's address, with an authority of its own or with the real one's certificate."""
    real = (encrypted.server.home / "tls" / "ca.pem").read_bytes()
    agent = Agent("wary", TIERS[0], tmp_path / "wary")
    data = clouds(tmp_path / "data.npz", 50, seed=5)
    with impostor(tmp_path / "impostor", real if shows == "stolen" else None) as (url, asked):
        assert _outcome(agent, url, encrypted.server.token("small"), data) == 4
    assert asked == ["GET /api/v1/authority"]
    said = agent.log.read_text()
    assert ("another fingerprint" if shows == "own" else "no certificate of its own authority") in said


@contextmanager
def impostor(folder: Path, certificate: bytes | None) -> Iterator[tuple[str, list[str]]]:
    """An HTTPS server with keys of its own that hands out ``certificate`` and notes what it is asked."""
    folder.mkdir()
    files = establish(folder, {"127.0.0.1"}, now=datetime.now(UTC))
    shown, asked = certificate or files.ca.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(shown)))
            self.end_headers()
            self.wfile.write(shown)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # it hangs up in the handshake
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            serving.join()


def _outcome(agent: Agent, url: str, token: str, data: Path) -> int:
    """The exit code of an attempt to enrol."""
    joining = agent.enrol(url, token, data)
    try:
        return until(lambda: joining.poll() is not None, "it has enrolled or given up") and joining.returncode
    finally:
        joining.kill()
        joining.wait()
