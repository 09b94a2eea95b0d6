"""The MQTT connection, kept up for ever; a new paho client for each, so that nothing old is sent on it.

paho's callbacks only pass on what happened; nothing is decided or stored in its thread.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from random import Random
from typing import Any

import paho.mqtt.client as mqtt
from attrs import evolve, field, frozen
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from protocol import topics
from protocol.errors import ProtocolError
from protocol.messages import Message
from protocol.wire import decode

from .address import trust
from .errors import HomeError
from .identity import Identity

KEEPALIVE = 60  # seconds
FIRST_WAIT, LONGEST_WAIT, REFUSED_WAIT = 1.0, 25.0, 300.0  # seconds between attempts
CONNECT_TIMEOUT = 15.0  # seconds
OUTGOING = 64  # messages paho may queue; the session keeps far fewer in flight

log = logging.getLogger(__name__)


@frozen
class Up:
    """Connected, and the broker has granted the subscriptions."""


@frozen
class Down:
    """There is no connection; ``cause``: why none could be made."""

    cause: str | None = None


@frozen
class Denied:
    """The broker does not let this device in."""

    cause: str


@frozen(eq=False)
class Acked:
    """The broker has acknowledged a message; :meth:`Link.delivered` tells which."""

    connection: object = field(repr=False)
    mid: int


@frozen
class Incoming:
    topic: str
    payload: bytes = field(repr=False)
    retained: bool

    def message(self, device: str) -> Message | None:
        """What it says to ``device``; None, and a line in the log, if that is nothing we could understand."""
        try:
            if self.topic == topics.COORDINATOR_STATUS:
                return decode(topics.STATUS.message, self.payload)
            addressee, channel = topics.parse(self.topic)
            if addressee != device or channel.direction != "down":
                raise ProtocolError(f"topic {self.topic} is not for this device")
            message = decode(channel.message, self.payload)
        except ProtocolError as error:
            log.warning("message-ignored topic=%s cause=%r", self.topic, str(error))
            return None
        log.debug("received %s", message)
        return message


@frozen
class Broker:
    """Where the broker is, and who we are there. ``authority``: PEM file of the CA, if ``tls``."""

    host: str
    port: int
    tls: bool
    authority: Path | None
    device: str
    secret: str = field(repr=False)


def broker(identity: Identity, home: Path) -> Broker:
    """The one this device was told of when it enrolled."""
    authority = home / identity.authority if identity.authority else None
    place = (identity.broker_host, identity.broker_port, identity.broker_tls)
    return Broker(*place, authority, identity.device, identity.secret)


class Link:
    """Reports :class:`Up`, :class:`Down`, :class:`Denied`, :class:`Incoming` and :class:`Acked` through ``report``.

    ``report`` is called from other threads and must not block. ``boot`` names this process: the client id is
    device.boot.counter, because some brokers do not evict a half-open twin.
    """

    def __init__(self, broker: Broker, boot: str, rng: Random, report: Callable[[object], None]) -> None:
        self._broker = broker
        self._boot = boot
        self._rng = rng
        self._report = report
        self._closing = threading.Event()
        self._connection: _Connection | None = None
        self._thread = threading.Thread(target=self._keep_up, name="link", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 0.5) -> None:
        """Say goodbye to the broker; returns after ``timeout`` seconds at the latest."""
        self._closing.set()
        connection = self._connection
        if connection is not None:
            connection.end()
        self._thread.join(timeout)

    def reauthenticate(self, secret: str) -> None:
        """Connect anew, with another secret."""
        self._broker = evolve(self._broker, secret=secret)
        if self._connection is not None:
            self._connection.end()

    def publish(self, leaf: str, payload: bytes, tag: Hashable | None = None) -> None:
        """Send below this device's prefix. While there is no connection the message is dropped.

        With a ``tag`` (on channels of QoS 1), :class:`Acked` follows. One thread only may publish.
        """
        connection = self._connection
        if connection is not None:
            channel = topics.CHANNELS[leaf]
            connection.publish(topics.device_topic(self._broker.device, leaf), payload, channel.qos, tag)

    def delivered(self, receipt: Acked) -> Hashable | None:
        """The tag of what the broker has acknowledged, None if it had none. From the publishing thread."""
        connection = self._connection
        return (
            connection.tags.pop(receipt.mid, None)
            if connection is receipt.connection and connection
            else None
        )

    def _keep_up(self) -> None:
        wait, counter = FIRST_WAIT, 0
        while not self._closing.is_set():
            counter += 1
            client_id = f"{self._broker.device}.{self._boot}.{counter}"
            connection = _Connection(self._broker, client_id, self._report)
            self._connection = connection
            try:
                connection.live(self._closing)
            except (OSError, ValueError, HomeError) as error:
                log.warning(
                    "broker-unreachable host=%s port=%d cause=%s", self._broker.host, self._broker.port, error
                )
                self._report(Down(str(error)))
            if connection.was_up:
                wait = FIRST_WAIT
            limit = REFUSED_WAIT if connection.refused else LONGEST_WAIT
            self._closing.wait(self._rng.uniform(0, wait))
            wait = min(2 * wait, limit)


class _Connection:
    """One paho client from connect to disconnect."""

    def __init__(self, broker: Broker, client_id: str, report: Callable[[object], None]) -> None:
        self._broker = broker
        self._report = report
        self._gone = threading.Event()
        self.tags: dict[int, Hashable] = {}
        self.was_up = False
        self.refused = False
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, clean_session=True, reconnect_on_failure=False
        )
        client.username_pw_set(broker.device, broker.secret)
        client.connect_timeout = CONNECT_TIMEOUT
        client.max_queued_messages_set(OUTGOING)
        client.on_socket_open = _without_delay
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect

    def live(self, closing: threading.Event) -> None:
        """Connect and stay until the connection ends; OSError if there is none to be had."""
        if self._broker.tls:
            self._client.tls_set_context(trust(self._broker.authority))
        self._client.connect(self._broker.host, self._broker.port, KEEPALIVE)
        self._client.loop_start()
        try:
            self._gone.wait()
        finally:
            self._client.loop_stop()
            if self.was_up:
                self._report(Down())

    def end(self) -> None:
        self._client.disconnect()
        self._gone.set()

    def publish(self, topic: str, payload: bytes, qos: int, tag: Hashable | None) -> None:
        try:
            info = self._client.publish(topic, payload, qos)
        except ValueError as error:  # longer than MQTT can carry
            log.warning("publish-refused topic=%s cause=%s", topic, error)
            return
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            log.debug("publish-dropped topic=%s cause=%s", topic, mqtt.error_string(info.rc))
        elif tag is not None:
            self.tags[info.mid] = tag

    def _on_connect(self, client: mqtt.Client, _: Any, __: Any, reason: ReasonCode, ___: Any) -> None:
        if reason.is_failure:
            self.refused = True
            log.warning("broker-refused host=%s cause=%s", self._broker.host, reason)
            self._report(Denied(str(reason)))
            return
        status = topics.STATUS
        client.subscribe(
            [*topics.subscriptions("down", self._broker.device), (f"{topics.ROOT}/{status.leaf}", status.qos)]
        )

    def _on_subscribe(
        self, client: mqtt.Client, _: Any, __: int, reasons: list[ReasonCode], ___: Any
    ) -> None:
        # The last one is the coordinator's status, which is good to know but not needed.
        if any(reason.is_failure for reason in reasons[:-1]):
            self.refused = True
            log.warning("subscription-refused host=%s", self._broker.host)
            client.disconnect()
            return
        self.was_up = True
        self._report(Up())

    def _on_message(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        self._report(Incoming(message.topic, bytes(message.payload), message.retain))

    def _on_publish(self, _: mqtt.Client, __: Any, mid: int, ___: ReasonCode, ____: Any) -> None:
        # publish() may not have returned yet in its thread: the tag is looked up there.
        self._report(Acked(self, mid))

    def _on_disconnect(self, _: mqtt.Client, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        log.info("disconnected cause=%s", reason)
        self._gone.set()


def _without_delay(_: mqtt.Client, __: Any, connection: Any) -> None:
    # With Nagle's algorithm a question and its answer may cost 40 ms more.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
