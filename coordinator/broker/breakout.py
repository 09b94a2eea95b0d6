"""An attempt to break out of a device's topics: what a broker lets a device do beyond what it may.

Every attempt is followed by one that must succeed, on the same connection: what has not arrived by then never will.
"""

from __future__ import annotations

import secrets
import threading
from typing import Any, Final, Self

import paho.mqtt.client as mqtt
from attrs import evolve
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from coordinator.broker.access import STATUS
from coordinator.broker.driver import BrokerError, Door
from coordinator.broker.security import without_delay

PROBE: Final = "shoal-probe"
"""The account that tries it; no device may have this id."""

PATIENCE: Final = 10.0
"""Seconds that what must succeed may take."""


def foreign(device: str) -> dict[str, tuple[str, ...]]:
    """Topics that a device may not publish to, and filters that it may get nothing by."""
    other = f"shoal/v1/d/{device}-2"
    names = (f"{other}/check-in", f"shoal/v1/d/{device}x/check-in", STATUS, "shoal/v1/x/group/1", "shoal")
    filters = ("#", "+/#", "shoal/#", "shoal/v1/d/+/assignment", "shoal/v1/d/#", f"{other}/#", f"{other}/assignment")
    return {"publish": names, "subscribe": (*filters, "shoal/v1/x/#", "$share/all/shoal/#")}


def escapes(coordinator: Door, device: str, secret: str) -> list[str]:
    """What a device could do that it may not, a sentence each; nothing if the broker confines it.

    ``coordinator`` is who may do everything. BrokerError if the broker does not let either do what it may.
    """
    door = evolve(coordinator, user=device, password=secret)
    with _Client(coordinator) as all_ears, _Client(door) as prisoner:
        all_ears.subscribe("shoal/#")
        return [*_written(all_ears, prisoner, device), *_read(all_ears, prisoner, device)]


def _written(all_ears: _Client, prisoner: _Client, device: str) -> list[str]:
    mark = secrets.token_bytes(12)
    for topic in foreign(device)["publish"]:
        prisoner.publish(topic, mark)
        if prisoner.gone.wait(0.02):  # some brokers show the door to who tries
            prisoner.come_back()
    fence = f"shoal/v1/d/{device}/event"
    prisoner.publish(fence, mark)
    heard = all_ears.until(fence, mark)
    return [f"it may publish to {topic}" for topic in heard if topic != fence]


def _read(all_ears: _Client, prisoner: _Client, device: str) -> list[str]:
    mark, own = secrets.token_bytes(12), f"shoal/v1/d/{device}/receipt"
    for pattern in foreign(device)["subscribe"]:
        prisoner.subscribe(pattern, granted=False)
        if prisoner.gone.wait(0.02):
            prisoner.come_back()
    prisoner.subscribe(own)
    for topic in (f"shoal/v1/d/{device}-2/assignment", "shoal/v1/x/group/1", "shoal/v1/control", own):
        all_ears.publish(topic, mark)
    heard = prisoner.until(own, mark)
    return [f"it hears {topic}" for topic in heard if topic != own]


class _Client:
    def __init__(self, door: Door) -> None:
        self._door = door
        self.gone = threading.Event()
        self._changed = threading.Condition()
        self._heard: list[tuple[str, bytes]] = []
        self._answers: dict[str, bool] = {}
        client = mqtt.Client(CallbackAPIVersion.VERSION2, f"{door.user}.{secrets.token_hex(4)}")
        client.username_pw_set(door.user, door.password)
        if door.ca is not None:
            client.tls_set(str(door.ca))
        client.on_socket_open = without_delay
        client.on_connect = self._on_connect
        client.on_subscribe = lambda _, __, mid, reasons, ___: self._answer(f"sub {mid}", not reasons[0].is_failure)
        client.on_publish = lambda _, __, mid, ___, ____: self._answer(f"pub {mid}", True)
        client.on_message = self._on_message
        client.on_disconnect = lambda *_: self.gone.set()
        client.reconnect_delay_set(1, 1)
        self._client = client

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._door.host, self._door.port, 60)
        except OSError as error:
            raise BrokerError(f"There is no broker at {self._door.host}:{self._door.port}: {error}.") from error
        self._client.loop_start()
        if not self._wait("connect"):
            self.__exit__()
            raise BrokerError(f"The broker does not let {self._door.user} in.")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def come_back(self) -> None:
        if not self._wait("connect"):
            raise BrokerError(f"The broker does not let {self._door.user} in again.")

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, 1)

    def subscribe(self, pattern: str, *, granted: bool = True) -> None:
        """``granted``: it must be. A filter that is refused is as good as one by which nothing comes."""
        _, mid = self._client.subscribe(pattern, 1)
        if granted and not self._wait(f"sub {mid}"):
            raise BrokerError(f"The broker does not let {self._door.user} subscribe to {pattern}.")

    def until(self, topic: str, mark: bytes) -> list[str]:
        """Topics on which the mark was heard until it came on this one, which it must."""
        with self._changed:
            if not self._changed.wait_for(lambda: (topic, mark) in self._heard, PATIENCE):
                raise BrokerError(f"What is published to {topic} does not reach {self._door.user}.")
            return [heard for heard, payload in self._heard if payload == mark]

    def _wait(self, what: str) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: what in self._answers, PATIENCE)
            return self._answers.get(what, False)

    def _answer(self, what: str, fine: bool) -> None:
        with self._changed:
            self._answers[what] = fine
            self._changed.notify_all()

    def _on_connect(self, _: mqtt.Client, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        self.gone.clear()
        self._answer("connect", not reason.is_failure)

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self._heard.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()
