"""The coordinator's own connection to the broker: device messages in, answers out."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from coordinator.broker.access import COORDINATOR
from coordinator.broker.driver import BrokerError, Door
from coordinator.broker.security import without_delay
from protocol import topics
from protocol.errors import ProtocolError
from protocol.messages import Status
from protocol.wire import encode

log = logging.getLogger(__name__)

Hear = Callable[[str, str, bytes, Callable[[], None]], None]
"""Takes (device, leaf, payload, acknowledge)."""


class Link:
    """Subscribes to what devices send and hands it to ``hear``; a message is acknowledged when that says so."""

    def __init__(self, door: Door, hear: Hear) -> None:
        self._hear = hear
        self._address = (door.host, door.port)
        self._subscribed = threading.Event()
        self._lost_at: float | None = time.monotonic()
        name = f"{COORDINATOR}.{secrets.token_hex(4)}"
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, manual_ack=True)
        client.username_pw_set(door.user, door.password)
        if door.ca is not None:
            client.tls_set(str(door.ca))
        client.on_socket_open = without_delay
        client.max_queued_messages_set(0)
        client.reconnect_delay_set(1, 30)
        client.will_set(topics.COORDINATOR_STATUS, encode(Status(state="offline")), qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client

    def start(self) -> None:
        """Connect, and return once the subscriptions stand. BrokerError if they do not."""
        try:
            self._client.connect(*self._address, keepalive=60)
        except OSError as error:
            raise BrokerError(f"There is no broker at {self._address[0]}:{self._address[1]}: {error}.") from error
        self._client.loop_start()
        if not self._subscribed.wait(15):
            self._client.loop_stop()
            raise BrokerError(
                f"The broker at {self._address[0]}:{self._address[1]} does not let the coordinator in."
            )

    def send(self, device: str, leaf: str, payload: bytes) -> None:
        """Publish to one device. Any thread may call this."""
        self._client.publish(topics.device_topic(device, leaf), payload, topics.CHANNELS[leaf].qos)

    @property
    def silence(self) -> float:
        """Seconds for which there has been no connection; 0 while there is one."""
        lost_at = self._lost_at
        return 0.0 if lost_at is None else time.monotonic() - lost_at

    def stop(self) -> None:
        """Say goodbye and disconnect."""
        goodbye = self._client.publish(topics.COORDINATOR_STATUS, encode(Status(state="offline")), 1, retain=True)
        if self._client.is_connected():
            goodbye.wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: mqtt.Client, _: object, __: mqtt.ConnectFlags, code: ReasonCode, ___: object) -> None:
        if code.is_failure:
            log.error("broker-refused reason=%s", code)
            return
        client.subscribe(topics.subscriptions("up"))
        client.publish(topics.COORDINATOR_STATUS, encode(Status(state="online")), 1, retain=True)

    def _on_subscribe(self, *_: object) -> None:
        self._lost_at = None
        self._subscribed.set()

    def _on_disconnect(self, *_: object) -> None:
        self._lost_at = self._lost_at or time.monotonic()

    def _on_message(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        def acknowledge() -> None:
            client.ack(message.mid, message.qos)

        try:
            device, channel = topics.parse(message.topic)
        except ProtocolError as error:
            log.warning("refused %s", error)
            acknowledge()
            return
        self._hear(device, channel.leaf, bytes(message.payload), acknowledge)
