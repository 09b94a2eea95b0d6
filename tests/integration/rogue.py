"""A device made by hand: it joins like any other, and then says whatever the test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from protocol import tensors, topics
from protocol.messages import (
    PROTOCOL,
    Assignment,
    Capability,
    CheckIn,
    EnrolmentReply,
    EnrolmentRequest,
    Lineage,
    Message,
    Receipt,
    Timings,
    Update,
)
from protocol.wire import decode, encode, frame
from tests.broker.client import Client
from tests.integration.fleet import CLASSES, INPUT, Server, until

CAPABILITY = Capability(machine="by hand", system="Linux", python="3", runtimes=(), memory=1 << 30, cores=1)


def ask(request: Request) -> tuple[int, str, bytes]:
    """Status, content type and body, whatever the status."""
    try:
        with urlopen(request, timeout=10) as reply:
            return reply.status, reply.headers["Content-Type"], reply.read()
    except HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def enrol(server: Server, token: str, name: str, secret: str) -> tuple[int, str, bytes]:
    body = encode(EnrolmentRequest(token=token, secret=secret, name=name, capability=CAPABILITY))
    headers = {"Content-Type": "application/json"}
    return ask(Request(f"{server.api.url}/api/v1/enrol", body, headers))


class Rogue:
    """Enrolled when made, connected when entered."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.secret = secrets.token_urlsafe(32)
        status, _, body = enrol(server, server.token("small"), name, self.secret)
        assert status == 200, body
        reply = decode(EnrolmentReply, body)
        self.id, self.port = reply.device, reply.broker_port
        self.client = self.connection()
        self._asked = 0

    def connection(self, password: str | None = None) -> Client:
        return Client(self.port, self.id, password=password or self.secret, client_id=secrets.token_hex(4))

    def __enter__(self) -> Self:
        self.client.__enter__()
        assert self.client.code == 0
        self.client.subscribe(*(pattern for pattern, _ in topics.subscriptions("down", self.id)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.__exit__(kind, error, trace)

    def say(self, leaf: str, payload: bytes, device: str | None = None) -> None:
        topic = topics.device_topic(device or self.id, leaf)
        self.client.publish(topic, payload, topics.CHANNELS[leaf].qos)

    def heard(self, leaf: str) -> list[Message]:
        topic = topics.device_topic(self.id, leaf)
        return [decode(topics.CHANNELS[leaf].message, payload) for to, payload in self.client.received if to == topic]

    def take(self) -> Assignment:
        """Check in and be given work."""
        self._asked += 1
        name = f"by-hand.{self._asked}"
        offer = CheckIn(
            id=name,
            protocol=PROTOCOL,
            agent="by-hand",
            runtime="none",
            features=("train",),
            samples=100,
            input=(INPUT,),
            classes=CLASSES,
            held=None,
            unsent=(),
        )
        self.say("check-in", encode(offer))
        found = until(lambda: self._given(name), "it has work")
        assert isinstance(found, Assignment)
        return found

    def _given(self, check_in: str) -> Assignment | None:
        work = [message for message in self.heard("assignment") if isinstance(message, Assignment)]
        return next((one for one in work if one.check_in == check_in), None)

    def fetch(self, sha256: str) -> tuple[int, str, bytes]:
        login = base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()
        url = f"{self.server.api.url}/api/v1/device/blobs/{sha256}"
        return ask(Request(url, headers={"Authorization": f"Basic {login}"}))

    def nothing_learnt(self, work: Assignment) -> dict[str, np.ndarray[Any, Any]]:
        """The difference of an update that changes nothing, in the shapes of the assignment's weights."""
        status, _, body = self.fetch(work.weights.sha256)
        assert status == 200, body
        return {name: np.zeros_like(value) for name, value in tensors.decode(body)[0].items()}

    def deliver(self, work: Assignment, difference: Mapping[str, np.ndarray[Any, Any]], **announced: Any) -> Receipt:
        """Send an update and wait for the answer to it; ``announced`` are fields that are told otherwise."""
        body = tensors.encode(dict(difference))
        fields = {
            "assignment": work.id,
            "commit": 1,
            "run": work.run,
            "lineage": Lineage(version=work.version, shape_epoch=0),
            "samples": work.plan.steps * work.plan.batch,
            "steps": work.plan.steps,
            "loss": 1.0,
            "accuracy": 0.5,
            "squared_gradient": {},
            "squared_gradient_peak": {},
            "timings": Timings(download=0.1, train=0.1, upload=None),
            "bytes_down": 0,
            "coding": "float32",
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "chunk": 0,
        }
        before = len(self.heard("receipt"))
        update = Update(**{**fields, **announced})
        self.say("update", frame(update, b"" if update.chunk else body))
        answers = until(lambda: self.heard("receipt")[before:], "the update is answered")
        assert isinstance(answers[0], Receipt)
        return answers[0]


def problem(answer: tuple[int, str, bytes]) -> tuple[int, str, str]:
    """Status, code and sentence of an RFC 9457 document."""
    status, kind, body = answer
    assert kind == "application/problem+json"
    document = json.loads(body)
    assert document["status"] == status
    return status, document["code"], document["detail"]
