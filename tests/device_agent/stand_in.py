"""A coordinator for one device, with real broker, HTTP and artifacts: hands out work, keeps what comes."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.broker.embedded import EmbeddedBroker
from coordinator.compiler.compile import compile_model
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import ModelSpec
from coordinator.fleet.authority import establish, fingerprint
from protocol import coding, tensors, topics
from protocol.deployments import Deployed, Deployment
from protocol.messages import (
    Ask,
    Assignment,
    Blob,
    CheckIn,
    Chunk,
    DeviceEvent,
    EnrolmentReply,
    EnrolmentRequest,
    Fresh,
    Message,
    Plan,
    Receipt,
    Retry,
    Status,
    Telemetry,
    Update,
)
from protocol.subnetwork import Region, layout_to_json, nested
from protocol.transfer import Receiver
from protocol.weights import Weights
from protocol.wire import decode, encode, unframe

DEVICE = "pi-1"
SECRET = "s" * 43
LIMIT = 64 << 20


class StandIn:
    """Serves ``assignments`` pieces of work of a model, then Retry; with ``tls`` broker and HTTP use it."""

    def __init__(
        self, spec: ModelSpec, plan: Plan, assignments: int, home: Path, tls: bool = False, seed: int = 0
    ) -> None:
        self.plan = plan
        self.layout = layout(spec)
        self.region = Region(self.layout, nested(self.layout, plan.width))
        weights = initial_weights(spec, np.random.default_rng(seed))
        self._metadata = {
            "layout": json.dumps(layout_to_json(self.layout)),
            "channels": json.dumps(dict(self.region.subnetwork.channels)),
        }
        optimiser = Training(momentum=plan.momentum > 0)
        artifact = compile_model(spec, self.region.subnetwork, plan.batch, training=optimiser).content
        self.start = self.region.cut(weights)
        self.blobs = {}
        self.artifact = self._blob(artifact)
        self.weights = self._blob(tensors.encode(self.start, self._metadata))
        self.files = establish(home, now=datetime.now(UTC)) if tls else None
        self.print = fingerprint(self.files.ca.read_bytes()) if self.files else "-"
        self.remaining = assignments
        self.check_ins: list[CheckIn] = []
        self.asks: list[Ask] = []
        self.events: list[DeviceEvent] = []
        self.received: list[str] = []
        self.stored: dict[tuple[str, int], tuple[Update, Weights]] = {}
        self.twofold: list[str] = []  # assignments that came with two different bodies
        self.claimed: dict[str, str] = {}
        self.answer: Callable[[Update], str] = lambda update: "stored"
        self.release_key: str | None = None
        self.deployments: list[Deployment] = []
        self.deployed: list[Deployed] = []
        self.patience = 3600.0  # seconds until a device without work may ask again
        self.ahead = 0.0  # seconds of its clock
        self.deaf = False  # while it is, chunks go unheard
        self.events: list[DeviceEvent] = []
        self.beats: list[Telemetry] = []
        self.changed = threading.Condition()
        self._open: str | None = None  # given out, and nothing heard of it since
        self._receiving: dict[tuple[str, int], Receiver] = {}
        self._passwords = {"coordinator": "c", DEVICE: SECRET}
        self._broker = EmbeddedBroker(self._may, tls=self.files)

    def _blob(self, data: bytes) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return Blob(sha256=sha256, size=len(data))

    def _may(self, username: str, password: str, client_id: str) -> bool:
        return self._passwords.get(username) == password

    @property
    def token(self) -> str:
        return f"shoal1.abc.secret.{self.print}"

    @property
    def url(self) -> str:
        return f"{'https' if self.files else 'http'}://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._broker.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if self.files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.files.certificate, self.files.key)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "coordinator")
        self._client.username_pw_set("coordinator", "c")
        if self.files:
            self._client.tls_set(str(self.files.ca))
        self._client.on_socket_open = lambda _, __, connection: connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", self._broker.port)
        self._client.loop_start()
        self._client.subscribe(topics.subscriptions("up"))
        assert subscribed.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._broker.stop()

    def restart_broker(self) -> None:
        """Every connection breaks, and what was retained is gone."""
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topics.subscriptions("up"))
        self._client.on_subscribe = self._announce
        self._broker.stop()
        self._broker.start()

    def _announce(self, *_: Any) -> None:
        self._client.publish(topics.COORDINATOR_STATUS, encode(Status(state="online")), 1, retain=True)

    def until(self, condition: Callable[[], bool], timeout: float = 30) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, timeout)

    def say(self, leaf: str, message: Message) -> None:
        self._client.publish(topics.device_topic(DEVICE, leaf), encode(message), 1)

    def send_fresh(self, assignment: str, version: int, weights: Weights, merge: float, keep: float) -> None:
        """A fresh model for the device; without its bytes if ``weights`` is empty."""
        blob = self._blob(tensors.encode(weights, self._metadata))
        if not weights:
            del self.blobs[blob.sha256]
        self.say("fresh", Fresh(assignment=assignment, version=version, weights=blob, merge=merge, keep=keep))

    # What the device says.

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        _, channel = topics.parse(message.topic)
        with self.changed:
            self.received.append(channel.leaf)
            if channel.message is CheckIn:
                self._on_check_in(decode(CheckIn, message.payload))
            elif channel.message is Ask:
                self.asks.append(decode(Ask, message.payload))
            elif channel.message is DeviceEvent:
                self.events.append(decode(DeviceEvent, message.payload))
            elif channel.message is Update:
                self._on_update(*unframe(Update, message.payload))
            elif channel.message is DeviceEvent:
                self.events.append(decode(DeviceEvent, message.payload))
            elif channel.message is Deployment:
                self.deployments.append(decode(Deployment, message.payload))
            elif channel.message is Deployed:
                self.deployed.append(decode(Deployed, message.payload))
            elif channel.message is Telemetry:
                self.beats.append(decode(Telemetry, message.payload))
            elif channel.message is Chunk and not self.deaf:
                self._on_chunk(*unframe(Chunk, message.payload))
            self.changed.notify_all()

    def _on_check_in(self, check_in: CheckIn) -> None:
        self.check_ins.append(check_in)
        heard_of = self._open in check_in.unsent or (self._open, 1) in self.stored
        if heard_of and self._open != check_in.held:
            self._open = None
        if self._open is None and self.remaining == 0:
            self.say("retry", Retry(check_in=check_in.id, seconds=self.patience, reason="nothing to do"))
            return
        if self._open is None:
            self._open = f"a{self.remaining}"
            self.remaining -= 1
        assignment = Assignment(
            id=self._open,
            kind="train",
            run="run",
            check_in=check_in.id,
            version=0,
            plan=self.plan,
            lease=600,
            artifact=self.artifact,
            weights=self.weights,
        )
        self.say("assignment", assignment)

    def _on_update(self, update: Update, body: bytes) -> None:
        if update.assignment == self._open and update.last:
            self._open = None
        known = self._receiving.setdefault(update.key, Receiver(update, LIMIT))
        if known.update.sha256 != update.sha256:
            self.twofold.append(update.assignment)
        if body:
            known.whole(body)
        self._reply(known)

    def _on_chunk(self, chunk: Chunk, data: bytes) -> None:
        receiver = self._receiving[chunk.assignment, chunk.commit]
        receiver.chunk(chunk.index, data)
        if not receiver.missing():
            self._reply(receiver)

    def _reply(self, receiver: Receiver) -> None:
        update, missing = receiver.update, receiver.missing()
        state = "missing" if missing else self.answer(update)
        if state == "stored":
            difference = coding.decode(tensors.decode(receiver.body())[0], update.coding, self.region.shapes)
            self.stored[update.key] = update, difference
        receipt = Receipt(
            assignment=update.assignment,
            commit=update.commit,
            state=state,
            sha256=update.sha256,
            missing=missing,
            reason="",
        )
        self.say("receipt", receipt)

    # HTTP.

    def _handler(stand_in) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string((time.time() if timestamp is None else timestamp) + stand_in.ahead)

            def _answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                request = decode(EnrolmentRequest, self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/api/v1/enrol"
                stand_in.capability = request.capability
                known = stand_in.claimed.setdefault(request.token, request.secret)
                if request.token != stand_in.token or known != request.secret:
                    problem = {
                        "title": "Refused",
                        "detail": "the token was used before",
                        "code": "token-used",
                    }
                    self._answer(409, json.dumps(problem).encode(), Content_Type="application/problem+json")
                    return
                stand_in._passwords[DEVICE] = request.secret
                reply = EnrolmentReply(
                    device=DEVICE,
                    broker_host="127.0.0.1",
                    broker_port=stand_in._broker.port,
                    broker_tls=stand_in.files is not None,
                    heartbeat=0.5,
                    release_key=stand_in.release_key,
                )
                self._answer(201, encode(reply))

            def do_GET(self) -> None:
                if self.path == "/api/v1/authority" and stand_in.files:
                    assert "Authorization" not in self.headers
                    self._answer(200, stand_in.files.ca.read_bytes())
                    return
                login = f"{DEVICE}:{stand_in._passwords.get(DEVICE)}".encode()
                if self.headers["Authorization"] != f"Basic {base64.b64encode(login).decode()}":
                    self._answer(401, b"")
                    return
                body = stand_in.blobs.get(self.path.rpartition("/")[2])
                self._answer(404, b"") if body is None else self._answer(200, body)

        return Handler
