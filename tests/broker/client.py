"""A paho client that remembers what it receives, and a raw socket that speaks MQTT as badly as it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.broker.packets import frame

PATIENCE = 10.0


def until(condition: Callable[[], object]) -> None:
    """Waits for a condition that must come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


class Client:
    """Connects when entered. `code`: the answer, 0 = accepted; `received`: messages as (topic, payload)."""

    def __init__(
        self, port: int, user: str, *, password: str | None = None, client_id: str = "", **options: Any
    ) -> None:
        self._port = port
        self.code: int | None = None
        self.received: list[tuple[str, bytes]] = []
        self.messages: list[mqtt.MQTTMessage] = []
        self.disconnected = threading.Event()
        self._answered = threading.Event()
        self._granted: dict[int, list[int]] = {}
        options.setdefault("protocol", mqtt.MQTTv311)
        self.paho = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, **options)
        self.paho.username_pw_set(user, f"pw-of-{user}" if password is None else password)
        self.paho.on_connect = self._on_connect
        self.paho.on_message = self._on_message
        self.paho.on_subscribe = self._on_subscribe
        self.paho.on_disconnect = lambda *_: self.disconnected.set()

    def __enter__(self) -> Self:
        self.paho.connect("localhost" if self.paho._ssl else "127.0.0.1", self._port)
        self.paho.loop_start()
        assert self._answered.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        """The return codes of SUBACK."""
        _, mid = self.paho.subscribe([(pattern, qos) for pattern in filters])
        assert mid is not None
        until(lambda: mid in self._granted)
        return self._granted[mid]

    def publish(self, topic: str, payload: bytes = b"", qos: int = 1, retain: bool = False) -> None:
        """Waits for the acknowledgement."""
        self.paho.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self.code = {"Success": 0, "Unsupported protocol version": 1, "Server unavailable": 3}.get(
            str(reason), 5
        )
        if self.code:
            self.paho.disconnect()
        self._answered.set()

    def _on_message(self, client: Any, data: Any, message: mqtt.MQTTMessage) -> None:
        self.messages.append(message)
        self.received.append((message.topic, bytes(message.payload)))

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: list[Any], properties: Any) -> None:
        self._granted[mid] = [reason.value for reason in reasons]


def text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


class RawClient:
    """A connected socket; `send` packets as bytes, `ended` waits for the broker to close the connection."""

    def __init__(self, port: int, user: str, *, client_id: str = "raw", keep_alive: int = 0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        header = text("MQTT") + bytes([4, 0xC2]) + keep_alive.to_bytes(2, "big")
        self.connect = frame(0x10, header + text(client_id) + text(user) + text(f"pw-of-{user}"))

    def __enter__(self) -> Self:
        self.send(self.connect)
        assert self.socket.recv(4) == b"\x20\x02\x00\x00"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ended(self) -> bool:
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionError:
            pass
        return True
