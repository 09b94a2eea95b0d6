"""A web server and a mail server that take what they are sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from attrs import define, field


@define
class Hook:
    """``answers`` are the codes of the next answers; then it is 204."""

    url: str = ""
    answers: list[int] = field(factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(factory=list)


@contextmanager
def hook() -> Iterator[Hook]:
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((dict(self.headers), body))
            self.send_response(made.answers.pop(0) if made.answers else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}/T0/swordfish"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


@define
class Post:
    port: int = 0
    got: list[tuple[str, list[str], str]] = field(factory=list)
    logins: list[tuple[str, str]] = field(factory=list)


class _Taker:
    def __init__(self, made: Post) -> None:
        self.made = made

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802 - aiosmtpd's name
        self.made.got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content.decode()))
        return "250 taken"


class _AnyPort(Controller):
    """Takes a free port and tells which."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def post() -> Iterator[Post]:
    """A mail server on loopback that lets ada in with the password tuna."""
    made = Post()

    def authenticate(_server, _session, _envelope, _mechanism, given):
        made.logins.append((given.login.decode(), given.password.decode()))
        return AuthResult(success=made.logins[-1] == ("ada", "tuna"), handled=False)

    controller = _AnyPort(
        _Taker(made), hostname="127.0.0.1", port=0, authenticator=authenticate, auth_require_tls=False
    )
    controller.start()
    made.port = controller.port
    yield made
    controller.stop()
