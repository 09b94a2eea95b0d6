"""Mosquitto's dynamic security: its file, written before the broker starts, and its control topic, for live changes.

Every device has an account and a role of its own (patterns with the user's name came with Mosquitto 2.1 only), and a
role that all share. All default access is denied but leaving a subscription. Mosquitto writes its whole file at every
change: what a role leaves out is not written a thousand times for a thousand devices.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import threading
from collections.abc import Iterable
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from coordinator.broker.access import COORDINATOR, STATUS
from coordinator.broker.driver import BrokerError, Door

CONTROL: Final = "coordinator.control"
"""Who changes accounts; no device can have this name, for ids have no dots."""

TOPIC: Final = "$CONTROL/dynamic-security/v1"
PATIENCE: Final = 5.0
"""Seconds the broker may take to answer, or to be there again."""

_ITERATIONS: Final = 101  # as Mosquitto itself; the secrets are random and long
_SALT: Final = 12  # bytes, neither more nor less
_OURS: Final = "device of Shoal"
_DEFAULTS: Final = {"publishClientSend": False, "publishClientReceive": False, "subscribe": False, "unsubscribe": True}

Acl = tuple[str, str]
"""Kind and topic of one permission."""


def device_acls(device: str) -> list[Acl]:
    """What one device may do: everything below its own topic."""
    own = f"shoal/v1/d/{device}/#"
    return [
        ("publishClientSend", own),
        ("publishClientReceive", own),
        ("subscribePattern", own),
    ]


SHARED: Final = "device.every"
"""The role of all devices: to hear the coordinator's status. No device can have this name either."""
_SHARED_ACLS: Final[list[Acl]] = [("subscribeLiteral", STATUS), ("publishClientReceive", STATUS)]


def _everything_below(topic: str) -> list[Acl]:
    return [(kind, topic) for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")]


def verifier(password: str) -> str:
    """A password as Mosquitto stores it, ``$7$<iterations>$<salt>$<hash>``: PBKDF2 with HMAC-SHA512."""
    salt = secrets.token_bytes(_SALT)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def document(devices: Iterable[tuple[str, str]], coordinator: str, control: str) -> str:
    """The plugin's file: ``devices`` as (id, verifier), and the passwords of the coordinator's own accounts."""
    clients = [_client(COORDINATOR, verifier(coordinator)), _client(CONTROL, verifier(control))]
    roles = [_role(COORDINATOR, _everything_below("shoal/#")), _role(CONTROL, _everything_below(f"{TOPIC}/#"))]
    roles.append(_role(SHARED, _SHARED_ACLS))
    for device, stored in devices:
        clients.append(_client(device, stored, SHARED))
        roles.append(_role(device, device_acls(device)))
    whole = {"clients": clients, "groups": [], "roles": roles, "defaultACLAccess": _DEFAULTS}
    return json.dumps(whole, separators=(",", ":"))


def _client(name: str, stored: str, *roles: str) -> dict[str, Any]:
    _, _, iterations, salt, digest = stored.split("$")
    known = {"username": name, "password": digest, "salt": salt, "iterations": int(iterations)}
    return {**known, "roles": _roles(name, *roles)}


def _roles(*names: str) -> list[dict[str, str]]:
    return [{"rolename": name} for name in names]


def _role(name: str, acls: Iterable[Acl]) -> dict[str, Any]:
    return {"rolename": name, "acls": [{"acltype": kind, "topic": topic, "allow": True} for kind, topic in acls]}


class Control:
    """A connection to the control topic, kept up until closed. Any thread may ask."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._ready = threading.Event()
        self._waiting: dict[str, _Answer] = {}
        self.refused: str | None = None
        client = mqtt.Client(CallbackAPIVersion.VERSION2, f"{door.user}.{secrets.token_hex(4)}")
        client.username_pw_set(door.user, door.password)
        if door.ca is not None:
            client.tls_set(str(door.ca))
        client.reconnect_delay_set(1, 2)
        client.on_socket_open = without_delay
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: self._ready.set()
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client

    def open(self) -> None:
        """Returns when the broker listens to us. BrokerError if it does not."""
        try:
            self._client.connect(self._door.host, self._door.port, 60)
        except OSError as error:
            where = f"{self._door.host} port {self._door.port}"
            raise BrokerError(f"There is no broker at {where}: {error}.") from error
        self._client.loop_start()
        if not self._ready.wait(PATIENCE):
            self.close()
            raise BrokerError(f"The broker does not let {self._door.user} control it: {self.refused or 'no answer'}.")
        try:
            self._ask({"command": "createRole", **_role(SHARED, _SHARED_ACLS)}, unless="already exists")
        except BrokerError:
            self.close()
            raise

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def admit(self, device: str, secret: str) -> None:
        """Make a device's account, or give the one there is this password; both end its present sessions."""
        acls = _role(device, device_acls(device))
        account = {"username": device, "password": secret, "textname": _OURS, "roles": _roles(device, SHARED)}
        made = self._ask(
            {"command": "createRole", **acls}, {"command": "createClient", **account}, unless="already exists"
        )
        if "error" in made[1]:
            self._ask({"command": "setClientPassword", "username": device, "password": secret})

    def remove(self, device: str) -> None:
        """End a device's sessions and its account; nothing if it has none."""
        ended = ({"command": "deleteClient", "username": device}, {"command": "deleteRole", "rolename": device})
        self._ask(*ended, unless="not found")

    def accounts(self) -> set[str]:
        """The devices that have an account; those of other people are left out."""
        (answer,) = self._ask({"command": "listClients", "verbose": True, "count": -1, "offset": 0})
        there = answer.get("data", {}).get("clients", [])
        return {str(one["username"]) for one in there if one.get("textname") == _OURS}

    def _ask(self, *commands: dict[str, Any], unless: str = "\0") -> list[dict[str, Any]]:
        """The broker's answers. BrokerError if one is missing, or is a refusal that does not say ``unless``."""
        if not self._ready.wait(PATIENCE):
            raise BrokerError("The broker is away.")
        asked = {secrets.token_hex(8): command for command in commands}
        answers = {name: _Answer() for name in asked}
        self._waiting.update(answers)
        try:
            named = [{**command, "correlationData": name} for name, command in asked.items()]
            self._client.publish(TOPIC, json.dumps({"commands": named}), 1)
            for name, answer in answers.items():
                if not answer.came.wait(PATIENCE):
                    raise BrokerError(f"The broker does not answer {asked[name]['command']}.")
                if (problem := str(answer.value.get("error", ""))) and unless not in problem:
                    raise BrokerError(f"The broker refused {asked[name]['command']}: {problem}.")
        finally:
            for name in asked:
                del self._waiting[name]
        return [answer.value for answer in answers.values()]

    def _on_connect(self, client: mqtt.Client, _: Any, __: Any, reason: ReasonCode, ___: Any) -> None:
        self.refused = str(reason) if reason.is_failure else None
        if not reason.is_failure:
            client.subscribe(f"{TOPIC}/response", 1)

    def _on_disconnect(self, *_: Any) -> None:
        self._ready.clear()

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        for one in json.loads(message.payload).get("responses", []):
            if (answer := self._waiting.get(one.get("correlationData", ""))) is not None:
                answer.value = one
                answer.came.set()


class _Answer:
    def __init__(self) -> None:
        self.came = threading.Event()
        self.value: dict[str, Any] = {}


def without_delay(_: mqtt.Client, __: Any, connection: Any) -> None:
    """With Nagle's algorithm a question and its answer may cost 40 ms more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
