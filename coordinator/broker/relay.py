"""amqtt's broker, told who may do what and corrected where it would lose messages or memory.

It sees clients only after they have proved who they are: amqtt ends the session with the same client id, and
gives a kept one the newcomer's user name, before it asks for the password.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from coordinator.broker.access import COORDINATOR, may

log = logging.getLogger(__name__)

_UPWARD_ROOM = 32 << 20
"""Bytes under way to the coordinator beyond which nothing more is read from the devices."""

_DEVICE_ROOM = 4 << 20
"""Bytes under way to one device beyond which it is cut off as too slow."""

_MAX_FILTERS = 64
"""Topic filters one device may name on one connection; every message is compared with all filters."""

_SETTLE = 5.0
"""Seconds the messages of a client that has gone may take to be routed."""

_MESSAGE = 512
"""Bytes counted for a message beside its payload."""

_FILTERS, _ROUTED = "shoal.filters", "shoal.routed"  # keys of session attributes


class Admitted(BaseAuthPlugin):
    """Accepts exactly the sessions that were admitted before amqtt saw them."""

    @dataclass
    class Config:
        users: Any
        """Session id → user name of the connections admitted and alive; a live view, not a copy."""

    async def authenticate(self, *, session: Session) -> bool:
        user = self.config.users.get(session.client_id)
        return user is not None and user == session.username


class Topics(BaseTopicPlugin):
    """Applies :func:`coordinator.broker.access.may` to every publish and subscribe."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        if session is None or session.username is None or topic is None:
            return False
        if action is Action.PUBLISH:
            session.attributes[_ROUTED] = session.attributes.get(_ROUTED, 0) + 1
            return may(session.username, topic, "publish")
        filters = session.attributes.setdefault(_FILTERS, set())
        if session.username != COORDINATOR and len(filters) >= _MAX_FILTERS and topic not in filters:
            return False
        filters.add(topic)
        return may(session.username, topic, "subscribe")


@dataclass
class _Config(BrokerConfig):
    max_qos: int = 1
    """Granted at most. amqtt reads this option but declares no field for it."""


class _Subscriptions(dict[str, list[tuple[Session, int]]]):
    """amqtt walks over its subscriptions with awaits in between, while other clients come and go: it gets a copy."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.keys()))


class Relay(Broker):
    """Routes the messages of admitted clients. Lives in one event loop."""

    def __init__(self, users: dict[str, str], cut_off: Callable[[str], None]) -> None:
        """`users`: session id → user name of the admitted connections, kept by the caller. `cut_off(session
        id)` is called for a device that does not take what is sent to it."""
        listeners = {"default": ListenerConfig(type=ListenerType.EXTERNAL)}
        plugins = {f"{__name__}.Admitted": {"users": users}, f"{__name__}.Topics": {}}
        super().__init__(_Config(listeners=listeners, plugins=plugins))
        self._subscriptions = _Subscriptions()
        self._cut_off = cut_off
        self._under_way: Counter[str] = Counter()
        self._upward = 0
        self._sending: set[asyncio.Task[Any]] = set()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self, username: str) -> None:
        """Waits until the coordinator has taken enough of what devices sent; itself, it never waits."""
        if username != COORDINATOR:
            await self._room.wait()

    async def settle(self, session_id: str, published: int) -> None:
        """Waits until the messages read from a client, `published` in number, have been routed: amqtt drops
        the rest, although acknowledged, when it hears of the end."""
        session, _ = self.sessions.get(session_id, (None, None))
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE):
                while session and session.attributes.get(_ROUTED, 0) < published:
                    await asyncio.sleep(0.001)

    async def forget(self, session_id: str) -> None:
        """Ends a session and its subscriptions at once; amqtt leaves those that broke while connecting."""
        await self._cleanup_session(session_id)

    async def _run_broadcast(self, running_tasks: object) -> None:
        """Sends the next message to all its subscribers.

        Replaces amqtt's own, which loses the message when a subscription changes meanwhile, writes the
        payload into a text for a log line nobody reads (0.8 ms for 90 kB) and holds any number of bytes for
        slow clients.
        """
        broadcast = await self._broadcast_queue.get()
        topic, data = broadcast["topic"], broadcast["data"] or b""
        for pattern, subscriptions in list(self._subscriptions.items()):
            if not self._matches(topic, pattern):
                continue
            for session, qos in list(subscriptions):
                handler = self._get_handler(session)
                if handler is None or session.transitions.state != "connected":
                    continue
                if may(session.username or "", topic, "subscribe"):
                    self._send(handler, session, topic, data, min(qos, broadcast.get("qos", qos)))

    def _send(
        self, handler: BrokerProtocolHandler, session: Session, topic: str, data: bytes, qos: int
    ) -> None:
        session_id, size = str(session.client_id), _MESSAGE + len(data)
        upward = session.username == COORDINATOR
        self._under_way[session_id] += size
        if upward:
            self._upward += size
            if self._upward > _UPWARD_ROOM:
                self._room.clear()
        elif self._under_way[session_id] > _DEVICE_ROOM:
            log.warning("connection of %r closed: it does not take its messages", session.username)
            self._cut_off(session_id)

        def sent(task: asyncio.Task[Any]) -> None:
            self._sending.discard(task)
            self._under_way[session_id] -= size
            if self._under_way[session_id] <= 0:
                del self._under_way[session_id]
            if upward:
                self._upward -= size
                if self._upward <= _UPWARD_ROOM:
                    self._room.set()
            if not task.cancelled() and (error := task.exception()):
                log.info("a message to %r was not acknowledged: %s", session.username, error)

        task = asyncio.create_task(handler.mqtt_publish(topic, data, qos, retain=False))
        self._sending.add(task)
        task.add_done_callback(sent)
