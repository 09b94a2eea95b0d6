"""While the spool cannot be used: the device stays in touch, says why with every sign of life, and takes no work.

A disk that is full, fails, or has become read-only is seldom mended by ending the agent: then nobody would hear of it.
Nothing is lost meanwhile that was in the spool, and the agent begins anew where that stands.
"""

from __future__ import annotations

import logging
import queue
import secrets
import time
from random import Random

from attrs import asdict

from protocol.messages import DeviceEvent, Telemetry
from protocol.wire import encode

from . import spool
from .identity import Identity
from .link import Acked, Down, Link, Up, broker
from .service import Notifier
from .settings import Settings
from .status import NO_SPOOL, StatusFile
from .telemetry import Board

LOOK = 1.0  # seconds between two attempts to write
REST = 60.0  # seconds to wait where a little can be written: it was not enough for the agent
GOODBYE = 5.0  # seconds for the last word

log = logging.getLogger(__name__)


class Outage:
    """``reason``: why the spool cannot be used, in a sentence."""

    def __init__(self, settings: Settings, identity: Identity, reason: str, notifier: Notifier) -> None:
        self._home = settings.home
        self._reason = reason
        self._notifier = notifier
        self._heartbeat = settings.heartbeat or identity.heartbeat
        self._boot, self._started = secrets.token_hex(4), time.monotonic()
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._link = Link(broker(identity, settings.home), self._boot, Random(), self._inbox.put)  # noqa: S311
        self._board = Board(settings.home)
        self._status = StatusFile(settings.home)
        self._connected = False
        self._cause: str | None = None  # why there is no connection
        self._told = False  # the broker has the event
        self._stopping = False

    def stop(self) -> None:
        """Safe to call from a signal handler."""
        self._stopping = True

    def wait(self) -> bool:
        """True when the spool's home can be written again, False when it was stopped."""
        log.warning("spool-unusable cause=%r", self._reason)
        self._link.open()
        self._notifier.ready()
        over_at = time.monotonic() + (REST if spool.obstacle(self._home) is None else 0.0)
        beat_at = 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                if now >= over_at and spool.obstacle(self._home) is None:
                    self._say_it_is_over()
                    return True
                if now >= beat_at and self._connected:
                    beat_at = now + self._heartbeat
                    self._beat(now)
                self._status.write({"connected": self._connected, "state": NO_SPOOL, "cause": self._cause}, self._why)
                self._notifier.alive(f"{NO_SPOOL}: {self._reason}")
                self._hear(LOOK)
            return False
        finally:
            self._link.close()

    @property
    def _why(self) -> dict[str, str]:
        return {"reason": self._reason}

    def _hear(self, patience: float) -> None:
        """What comes within so many seconds; most of it is for an agent that works."""
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0 and not self._stopping:
            try:
                happened = self._inbox.get(timeout=min(left, LOOK))
            except queue.Empty:
                return
            match happened:
                case Up():
                    self._connected, self._cause = True, None
                    if not self._told:
                        self._tell("spool-unusable", self._reason)
                    return
                case Down(cause):
                    self._connected, self._cause = False, cause
                case Acked():
                    self._told = self._link.delivered(happened) is not None or self._told

    def _tell(self, kind: str, text: str) -> None:
        self._link.publish("event", encode(DeviceEvent(kind=kind, text=text[:2000])), kind)

    def _say_it_is_over(self) -> None:
        log.info("spool-usable")
        if not self._connected:
            return
        self._told = False
        self._tell("spool-usable", f"the spool in {self._home} can be written again")
        until = time.monotonic() + GOODBYE
        while not self._told and self._connected and time.monotonic() < until:
            self._hear(0.1)

    def _beat(self, now: float) -> None:
        report = Telemetry(
            boot=self._boot,
            uptime=now - self._started,
            state=NO_SPOOL,
            assignment=None,
            step=None,
            spool=0,
            training=0.0,
            since=0.0,
            waiting=self._reason[:2000],
            **asdict(self._board.read(now)),
        )
        self._link.publish("telemetry", encode(report))
