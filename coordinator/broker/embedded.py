"""The broker inside the coordinator's process: amqtt in a thread and loop of its own, for up to 200 devices.

MQTT 3.1.1, quality of service 0 and 1, clean sessions only (who asks for a kept one gets a clean one).
Nothing is kept in memory but the coordinator's retained status and what is on its way to connected clients.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attrs import define, field

from coordinator.broker import listening
from coordinator.broker.access import COORDINATOR, is_username, may
from coordinator.broker.connection import PacketReader, PacketWriter
from coordinator.broker.driver import BrokerError, Door
from coordinator.broker.packets import (
    ACCEPTED,
    BAD_PROTOCOL,
    NOT_AUTHORISED,
    UNAVAILABLE,
    Connect,
    MalformedPacket,
    connack,
    parse_connect,
    read_packet,
)
from coordinator.broker.relay import Relay

if TYPE_CHECKING:
    from coordinator.fleet.authority import TlsFiles

log = logging.getLogger(__name__)

Authenticate = Callable[[str, str, str], bool]
"""``authenticate(username, password, client_id)``: whether they may connect. Called in a few threads of the
broker's own, so it may take its time and must be thread-safe; an exception refuses the client for now."""

_MAX_CONNECT = 16 << 10
_MAX_CONNECTIONS = 1_000
_INTRODUCTION = 10.0  # seconds for TLS, and again for CONNECT
_FAREWELL = 2.0  # seconds a connection may take to end


@define(eq=False)
class _Connection:
    stream: asyncio.StreamWriter
    username: str = ""
    ended: asyncio.Event = field(factory=asyncio.Event)

    def abort(self) -> None:
        self.stream.transport.abort()


class EmbeddedBroker:
    """A broker on one address; several may live in one process. It may start again, on the same port."""

    def __init__(
        self,
        authenticate: Authenticate,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsFiles | None = None,
        max_packet: int = 256 << 10,
        password: str = "",
    ) -> None:
        """`port` 0 takes a free one. `max_packet`: largest packet in bytes; who sends a larger one is
        disconnected (MQTT 3.1.1 has no gentler answer). With `tls`, nothing but TLS 1.2 and 1.3 is spoken.
        `password` is what `authenticate` takes from the coordinator."""
        self._authenticate = authenticate
        self._host = host
        self._port = port
        self._tls = tls
        self._max_packet = max_packet
        self._password = password
        self._thread: threading.Thread | None = None
        self._users: dict[str, str] = {}
        self._connections: set[_Connection] = set()
        self._by_session: dict[str, _Connection] = {}

    @property
    def port(self) -> int:
        """The port listened on; the one asked for before the first start."""
        return self._port

    @property
    def door(self) -> Door:
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104
        return Door(host, self._port, COORDINATOR, self._password, self._tls.ca if self._tls else None)

    def admit(self, device: str, secret: str) -> None:
        """Nothing: `authenticate` is asked at every connection."""

    def shut_out(self, device: str) -> None:
        self.disconnect(device)

    def start(self) -> None:
        """Returns when clients can connect. BrokerError: the address or the TLS files cannot be used."""
        if self._thread is not None:
            raise BrokerError("The broker is already running.")
        context = self._tls and listening.server_context(self._tls)
        listener = self._listen()
        _quieten()
        ready: Future[None] = Future()
        work = (listener, context, ready)
        self._thread = threading.Thread(target=self._run, args=work, name="mqtt-broker", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except Exception as error:
            self._thread.join()
            self._thread = None
            raise BrokerError(f"The broker could not start: {error}") from error

    def stop(self) -> None:
        """Disconnects everybody, closes the port and ends the broker's threads; nothing if not running."""
        if self._thread is None:
            return
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def disconnect(self, username: str) -> int:
        """Ends all connections of a user, also those still being admitted; returns their number.

        To shut a user out, first make `authenticate` refuse it. Not to be called from `authenticate`.
        """
        if self._thread is None or not self._thread.is_alive():
            raise BrokerError("The broker is not running.")
        return asyncio.run_coroutine_threadsafe(self._disconnect(username), self._loop).result()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Everything below runs in the broker's thread, except _listen.

    def _listen(self) -> socket.socket:
        listener = listening.listener(self._host, self._port, backlog=256)
        # Answers are small: accepted connections inherit that none of them waits to be sent with others.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = listener.getsockname()[1]
        return listener

    def _run(self, listener: socket.socket, context: ssl.SSLContext | None, ready: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, context, ready))
        except BaseException as error:
            if ready.done():
                log.exception("the broker has stopped")
            else:
                ready.set_exception(error)
        finally:
            listener.close()

    async def _serve(
        self, listener: socket.socket, context: ssl.SSLContext | None, ready: Future[None]
    ) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._relay = Relay(self._users, self._cut_off)
        await self._relay.start()
        patience = _INTRODUCTION if context else None
        server = await asyncio.start_server(
            self._welcome, sock=listener, ssl=context, ssl_handshake_timeout=patience, limit=128 << 10
        )
        with ThreadPoolExecutor(4, "mqtt-authenticate") as self._pool:
            ready.set_result(None)
            await self._stopping.wait()
            server.close()
            await self._end(list(self._connections))
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self._relay.shutdown()

    async def _disconnect(self, username: str) -> int:
        theirs = [connection for connection in self._connections if connection.username == username]
        await self._end(theirs)
        return len(theirs)

    def _cut_off(self, session_id: str) -> None:
        if connection := self._by_session.get(session_id):
            connection.abort()

    @staticmethod
    async def _end(connections: list[_Connection]) -> None:
        for connection in connections:
            connection.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                for connection in connections:
                    await connection.ended.wait()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            if len(self._connections) <= _MAX_CONNECTIONS:
                await self._accompany(connection, reader)
            else:
                log.warning("a connection was refused: there are %d already", _MAX_CONNECTIONS)
        except (MalformedPacket, TimeoutError, OSError) as error:
            log.info("a connection was closed: %s", error or "silence")
        except Exception:
            log.exception("connection of %r closed by an error", connection.username)
        finally:
            writer.close()
            self._connections.discard(connection)
            connection.ended.set()

    async def _accompany(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        """A connection from its first packet to its end."""
        async with asyncio.timeout(_INTRODUCTION):
            packet = await read_packet(reader, _MAX_CONNECT, None)
        if packet is None or self._stopping.is_set():
            return
        connect = parse_connect(*packet)
        connection.username = connect.username or ""
        code = await self._judge(connect)
        if code != ACCEPTED:
            log.warning("user %r was refused (MQTT return code %d)", connection.username, code)
            connection.stream.write(connack(code))
            return
        session_id = f"{connection.username}/{connect.client_id or secrets.token_hex(8)}"
        while old := self._by_session.get(session_id):  # 3.1.4: the newcomer takes over
            old.abort()
            await old.ended.wait()
        if connection.stream.is_closing():
            return
        self._by_session[session_id], self._users[session_id] = connection, connection.username
        try:
            await self._relay_for(connection, connect, session_id, reader)
        finally:
            await self._relay.forget(session_id)
            del self._by_session[session_id], self._users[session_id]

    async def _relay_for(
        self, connection: _Connection, connect: Connect, session_id: str, reader: asyncio.StreamReader
    ) -> None:
        async with asyncio.timeout(None) as patience:

            async def settle(published: int) -> None:
                await self._relay.settle(session_id, published)
                patience.reschedule(self._loop.time() + _FAREWELL)  # in case amqtt misses the end

            packets = PacketReader(
                reader,
                connect,
                session_id,
                self._max_packet,
                before_read=lambda: self._relay.room(connection.username),
                before_end=settle,
            )
            await self._relay.external_connected(packets, PacketWriter(connection.stream), "default")

    async def _judge(self, connect: Connect) -> int:
        """The return code of CONNACK. A will must be one its owner may publish; amqtt does not check that."""
        if connect.level != 4:
            return BAD_PROTOCOL
        if connect.username is None or connect.password is None or not is_username(connect.username):
            return NOT_AUTHORISED
        if connect.will is not None and (
            connect.will.qos > 1 or not may(connect.username, connect.will.topic, "publish")
        ):
            return NOT_AUTHORISED
        who = (connect.username, connect.password, connect.client_id)
        try:
            known = await self._loop.run_in_executor(self._pool, self._authenticate, *who)
        except Exception as error:
            # Databases quote what they were asked.
            reason = str(error).replace(connect.password or "\0", "***")
            log.error("user %r could not be authenticated: %s: %s", who[0], type(error).__name__, reason)
            return UNAVAILABLE
        return ACCEPTED if known else NOT_AUTHORISED


def _quieten() -> None:
    """amqtt tells of every packet at lower levels, its state machine likewise."""
    for name in ("amqtt", "transitions"):
        logging.getLogger(name).setLevel(logging.WARNING)
