"""The deployed model at work in the agent: the endpoint where programs on this board ask it, over HTTP.

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

from attrs import frozen
from numpy.typing import NDArray

from . import __version__
from .data import unlabelled
from .duty import Duty
from .errors import DataError, ModelError, NoModel
from .inference import Prediction
from .model_kind import Model
from .settings import Serve, Settings
from .shelf import InUse, Shelf

ROWS = 256  # samples of one request
AT_ONCE = 8  # requests
SECONDS = 10  # for which a connection may be silent
WAITING = 1.0  # seconds for which one waits for another to end
_DIGITS = 32  # bytes of a number in JSON, at most

log = logging.getLogger(__name__)


class Serving:
    """``kind`` is how models come in, the endpoint how they are asked; there is none without a port."""

    def __init__(self, settings: Settings, duty: Duty) -> None:
        in_use = InUse(Shelf(settings.home), duty.backend, settings.threads)
        self.kind = Model(in_use, lambda: duty.loaded)
        labels = settings.data.classes if settings.data else None
        self._endpoint = Endpoint(settings.serve, in_use, labels)

    def open(self) -> None:
        self._endpoint.open()

    def close(self) -> None:
        self._endpoint.close()


class Refusal(Exception):
    """The answer is an error: HTTP status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@frozen
class Teller:
    """What is answered. ``labels`` name the classes in the order of the model's class numbers."""

    in_use: InUse
    labels: tuple[str, ...] | None = None

    def about(self) -> dict[str, Any]:
        """The model in use and how it does; NoModel or ModelError."""
        predictor, tally = self.in_use.predictor, self.in_use.tally
        card = predictor.card
        return {
            "version": predictor.manifest.version,
            "model": card.model,
            "input": list(card.input),
            "outputs": card.outputs,
            "answers": card.answers,
            "labels": list(self.labels) if self._named(card.outputs) and self.labels else None,
            "width": predictor.width,
            "run": card.run,
            "model_version": card.version,
            "backend": predictor.backend,
            "answered": tally.answered,
            "failed": tally.failed,
            "milliseconds": tally.milliseconds,
        }

    def told(self, found: Prediction) -> dict[str, Any]:
        """A prediction as JSON tells it."""
        scores = [float(f"{score:.6g}") for score in found.scores]
        told: dict[str, Any] = {"scores": scores, "milliseconds": round(found.milliseconds, 3)}
        if found.label is not None:
            named = self.labels[found.label] if self.labels and self._named(len(scores)) else None
            told = {"class": found.label, "label": named, **told}
        return told

    def answers(self, x: NDArray[Any]) -> list[dict[str, Any]]:
        """To one sample or several; DataError if they are not the model's."""
        rows = unlabelled.shaped(x, self.in_use.predictor.card.input)
        return [self.told(self.in_use.answer(row)) for row in rows]

    def _named(self, classes: int) -> bool:
        return self.labels is not None and len(self.labels) == classes


class Endpoint:
    """The server on ``[serve]``'s address. A port that is taken is logged; the agent goes on without."""

    def __init__(self, where: Serve, in_use: InUse, labels: tuple[str, ...] | None = None) -> None:
        self._where = where
        self._teller = Teller(in_use, labels)
        self._server: _Server | None = None

    @property
    def port(self) -> int | None:
        return None if self._server is None else self._server.server_port

    def open(self) -> None:
        if self._where.port is not None:
            self.listen(self._where.host, self._where.port)

    def listen(self, host: str, port: int) -> None:
        """Answer from now on; ``port`` 0 takes a free one."""
        try:
            self._server = _Server((host, port), _handler(self._teller))
        except (OSError, OverflowError) as error:
            log.warning("serving-not host=%s port=%d cause=%r", host, port, str(error))
            return
        log.info("serving host=%s port=%d", host, self._server.server_port)
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="serving", daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, handler)

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


def _handler(teller: Teller) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = SECONDS
        server_version = f"shoal-agent/{__version__}"
        sys_version = ""

        def do_GET(self) -> None:
            self._respond(self._about)

        def do_POST(self) -> None:
            self._respond(self._infer)

        def _about(self) -> dict[str, Any]:
            self._expect("/model", "/infer", "POST")
            return teller.about()

        def _infer(self) -> dict[str, Any]:
            self._expect("/infer", "/model", "GET")
            read, most = self._reader(math.prod(teller.in_use.predictor.card.input))
            x = read(self._body(most))
            if x.ndim and len(x) > ROWS and x.shape != teller.in_use.predictor.card.input:
                raise Refusal(413, f"x has {len(x)} samples, expected at most {ROWS}")
            found = teller.answers(x)
            return {"version": teller.in_use.predictor.manifest.version, "answers": found}

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

    return Handler


def _local(host: str) -> bool:
    """Whether a request's Host is an address or localhost: a name in a web page may lead anywhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False

