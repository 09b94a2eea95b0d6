"""The endpoint where programs on this board ask the deployed model, over HTTP.

``GET /model`` tells what it is. ``POST /infer`` takes samples, as JSON ``{"x": [...]}`` or as an array in NumPy's
format (``application/x-npy``; uint8 is scaled to 0..1), and gives what the model makes of each. Errors are JSON with a
sentence in ``error``. A body must say what it is, and requests must name the host by its address or as localhost: web
pages in a browser on the board can do neither.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from numpy.typing import NDArray

from . import __version__
from .data import unlabelled
from .errors import DataError, ModelError, NoModel
from .serving import Teller

ROWS = 256  # samples of one request
AT_ONCE = 8  # requests
SECONDS = 10  # for which a connection may be silent
WAITING = 1.0  # seconds for which one waits for another to end
_DIGITS = 32  # bytes of a number in JSON, at most

log = logging.getLogger(__name__)


class Endpoint:
    """The server; OSError if the address cannot be had. ``port`` 0 takes a free one."""

    def __init__(self, host: str, port: int, teller: Teller) -> None:
        self._server = _Server((host, port), teller)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="serving", daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Refusal(Exception):
    """The answer is an error: HTTP status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], teller: Teller) -> None:
        self.teller = teller
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Asked)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would ask the name service who we are
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(timeout=WAITING):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        broken = sys.exception()
        if not isinstance(broken, OSError):  # who asked has hung up
            log.error("serving-broke", exc_info=broken)


class _Asked(BaseHTTPRequestHandler):
    timeout = SECONDS
    server_version = f"shoal-agent/{__version__}"
    sys_version = ""

    @property
    def _teller(self) -> Teller:
        assert isinstance(self.server, _Server)
        return self.server.teller

    def do_GET(self) -> None:
        self._respond(self._about)

    def do_POST(self) -> None:
        self._respond(self._infer)

    def _about(self) -> dict[str, Any]:
        self._expect("/model", "/infer", "POST")
        return self._teller.about()

    def _infer(self) -> dict[str, Any]:
        self._expect("/infer", "/model", "GET")
        card = self._teller.in_use.model.predictor.card
        read, most = self._reader(math.prod(card.input))
        x = read(self._body(most))
        if x.ndim and len(x) > ROWS and x.shape != card.input:
            raise Refusal(413, f"x has {len(x)} samples, expected at most {ROWS}")
        return self._teller.answers(x)

    def _expect(self, path: str, other: str, method: str) -> None:
        if not _local(self.headers.get("Host", "")):
            raise Refusal(403, "name this board by its address or as localhost")
        found = self.path.partition("?")[0]
        if found == other:
            raise Refusal(405, f"{other} takes {method}")
        if found != path:
            raise Refusal(404, "there is GET /model and POST /infer")

    def _reader(self, size: int) -> tuple[Callable[[bytes], NDArray[Any]], int]:
        """What reads a body of this type, and the bytes it may have for samples of ``size`` numbers."""
        kind = self.headers.get_content_type()
        if kind == "application/json":
            return unlabelled.listed, 1024 + ROWS * size * _DIGITS
        if kind in ("application/x-npy", "application/octet-stream"):
            return unlabelled.array, 1024 + ROWS * size * 8
        raise Refusal(415, "the body must be application/json or application/x-npy")

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise Refusal(411, "the request must say how long its body is")
        if len(length) > 15 or int(length) > most:
            raise Refusal(413, f"the body has {length[:20]} bytes, expected at most {most}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refusal(400, f"the body ends after {len(body)} of {length} bytes")
        return body

    def _respond(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            status, answer = 200, work()
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        except DataError as error:
            status, answer = 422, {"error": str(error)}
        except NoModel as error:
            status, answer = 404, {"error": str(error)}
        except ModelError as error:
            status, answer = 503, {"error": str(error)}
        except (MemoryError, ArithmeticError) as error:
            status, answer = 503, {"error": f"the model could not answer: {type(error).__name__}"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("asked %s", format % args)


def _local(host: str) -> bool:
    """Whether a request's Host is an address or localhost: a name in a web page may lead anywhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
