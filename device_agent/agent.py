"""The running agent: one main loop that feeds what happens into the session and does what it says."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import signal
import sys
import time
from random import Random
from typing import Any, assert_never

from attrs import evolve

from protocol import topics
from protocol.errors import ProtocolError
from protocol.messages import FEATURES, PROTOCOL, CheckIn, Command, DeviceEvent, Message, Telemetry
from protocol.wire import decode, encode

from . import __version__, feedback, memory, rotation, runtime, telemetry
from . import dataset as datasets
from .address import parse
from .commands import Ended, Orders, Recent, Told
from .conversation import (
    Acknowledged,
    Beat,
    Commit,
    Connected,
    Discard,
    Disconnected,
    Drop,
    Event,
    Failed,
    Fetch,
    Fetched,
    Hold,
    Keep,
    Noticed,
    Output,
    Progressed,
    Publish,
    Received,
    Settle,
    Steered,
    Tick,
    Train,
    Trained,
)
from .dataset import Dataset
from .download import Blobs
from .errors import Refused, Unreachable, UsageError
from .home import Home
from .identity import Identity, forget
from .link import Acked, Broker, Down, Incoming, Link, Up
from .session import Session
from .settings import Settings
from .spool import Spool
from .workshop import Finished, Workshop

INBOX = 1000  # messages waiting for the main loop; more are dropped, for the conversation repeats itself
LONGEST_NAP = 60.0  # seconds
STATUS = "status.json"

log = logging.getLogger(__name__)


class Agent:
    """Wires spool, session, link and workshop. ``run`` returns when :meth:`stop` was called."""

    def __init__(self, settings: Settings, identity: Identity, recent: Recent) -> None:
        if settings.data is None:
            raise UsageError(
                f'no training data is set: put data = "file.npz" into {settings.home / "agent.toml"}'
            )
        self._settings = settings
        self._identity = identity
        self._boot = secrets.token_hex(4)
        self._started = time.monotonic()
        self._stopping = False
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        dataset = datasets.load(settings.data)
        self._spool = Spool(settings.home)
        authority = settings.home / identity.authority if identity.authority else None
        address = parse(settings.url or identity.url, authority)
        self._blobs = Blobs(settings.home / "blobs", settings.cache_bytes, address, identity.device, identity.secret)
        self._orders = Orders(settings.home, address, recent, self._inbox.put)
        self._workshop = Workshop(
            self._blobs,
            dataset,
            settings.backend,
            settings.threads,
            settings.pace,
            self._inbox.put,
        )
        broker = Broker(
            identity.broker_host,
            identity.broker_port,
            identity.broker_tls,
            authority,
            identity.device,
            identity.secret,
        )
        chance = Random()  # noqa: S311  # jitter, no secrets
        self._link = Link(broker, self._boot, chance, self._from_link)
        self._session = Session(
            _offer(settings, dataset),
            self._boot,
            settings.heartbeat or identity.heartbeat,
            chance,
            self._spool.load(),
            time.monotonic(),
        )

    def stop(self) -> None:
        """Safe to call from a signal handler."""
        self._stopping = True
        self._inbox.put(Tick())

    @property
    def restart(self) -> bool:
        """Whether a new process is to take this one's place."""
        return self._orders.restart

    @property
    def forgotten(self) -> bool:
        """Whether the device is to forget who it is."""
        return self._orders.forgotten

    def run(self) -> None:
        log.info(
            "started device=%s boot=%s updates=%d", self._identity.device, self._boot, self._session.waiting
        )
        memory.give_back()
        self._workshop.open()
        self._link.open()
        self._handle(Steered(self._orders.paused))
        try:
            while not self._stopping and not self._orders.stopping:
                self._tell_damage()
                event = self._event(self._next())
                if event is not None:
                    self._handle(event)
                for tag, result in self._orders.untold() if self._session.connected else ():
                    self._link.publish("result", result, tag)
        finally:
            self._workshop.close()
            self._link.close()
            self._spool.close()
            self._write_status(None)
            log.info("stopped")

    def _from_link(self, happened: object) -> None:
        if not isinstance(happened, Incoming) or self._inbox.qsize() < INBOX:
            self._inbox.put(happened)

    def _next(self) -> object:
        nap = min(max(self._session.wake_at - time.monotonic(), 0.0), LONGEST_NAP)
        try:
            return self._inbox.get(timeout=nap)
        except queue.Empty:
            return Tick()

    def _tell_damage(self) -> None:
        if self._spool.damage is not None:
            text, self._spool.damage = self._spool.damage, None
            self._handle(Noticed(DeviceEvent(kind="spool-damaged", text=text[:2000])))

    def _handle(self, event: Event) -> None:
        for output in self._session.handle(event, time.monotonic()):
            self._do(output)

    def _event(self, happened: object) -> Event | None:
        """What the parts report, in the session's words."""
        match happened:
            case Up():
                log.info("connected host=%s port=%d", self._identity.broker_host, self._identity.broker_port)
                self._orders.connected()
                return Connected()
            case Down():
                self._write_status(None)
                return Disconnected()
            case Incoming(topic, payload, retained):
                message = self._decoded(topic, payload)
                if isinstance(message, Command):
                    self._orders.take(message, self._identity)
                    return Steered(self._orders.paused)
                return None if message is None else Received(message, retained)
            case Acked():
                tag: Any = self._link.delivered(happened)
                if isinstance(tag, Told):
                    self._orders.delivered(tag)
                    return None
                return None if tag is None else Acknowledged(tag)
            case Ended(_, _, _, changed):
                self._orders.ended(happened)
                if changed is not None:
                    self._identity = changed
                    self._blobs.reauthenticate(changed.secret)
                    self._link.reauthenticate(changed.secret)
                return None
            case Finished():
                return self._encoded(happened)
            case Fetched() | Progressed() | Tick():
                return happened
            case Failed(assignment, kind, reason):
                log.warning("%s assignment=%s cause=%r", kind, assignment, reason)
                return happened
        raise TypeError(f"nobody reports {type(happened).__name__}")

    def _decoded(self, topic: str, payload: bytes) -> Message | None:
        try:
            if topic == topics.COORDINATOR_STATUS:
                return decode(topics.STATUS.message, payload)
            device, channel = topics.parse(topic)
            if device != self._identity.device or channel.direction != "down":
                raise ProtocolError(f"topic {topic} is not for this device")
            message = decode(channel.message, payload)
        except ProtocolError as error:
            log.warning("message-ignored topic=%s cause=%r", topic, str(error))
            return None
        log.debug("received %s", message)
        return message

    def _encoded(self, done: Finished) -> Event:
        # Here and not in the workshop's thread: a receipt may change the residual at any time.
        assignment, result = done.assignment, done.result
        coding = assignment.plan.coding
        try:
            # Nobody but feedback holds the residual, which drops it as soon as it can.
            body, left = feedback.encode(
                result.difference, coding, done.region, self._spool.residual(assignment.run)
            )
        except ProtocolError as error:
            return Failed(assignment.id, "training-failed", str(error))
        slim = evolve(result, difference={})
        return Trained(assignment.id, slim, done.shape_epoch, body, done.region_text, left)

    def _do(self, output: Output) -> None:
        match output:
            case Publish(leaf, payload, tag):
                self._link.publish(leaf, payload, tag)
            case Fetch(assignment):
                self._workshop.fetch(assignment)
            case Train(assignment):
                self._workshop.train(assignment)
            case Hold(assignment):
                self._spool.hold(assignment)
                plan = assignment.plan
                log.info(
                    "assigned assignment=%s run=%s version=%d width=%g steps=%d batch=%d",
                    *(assignment.id, assignment.run, assignment.version, plan.width, plan.steps, plan.batch),
                )
            case Drop():
                self._spool.drop()
            case Commit(update, body, region, residual):
                self._spool.commit(update, body, region, residual)
                memory.give_back()
                log.info(
                    "committed assignment=%s bytes=%d samples=%d loss=%.4f accuracy=%.4f seconds=%.3f",
                    *(update.assignment, update.size, update.samples, update.loss, update.accuracy),
                    update.timings.train,
                )
            case Settle(update, give_back):
                self._spool.settle(update, give_back)
                log.info(
                    "settled assignment=%s outcome=%s", update.assignment, "unused" if give_back else "stored"
                )
            case Keep(number, event):
                self._spool.keep(number, event)
                log.warning("event kind=%s text=%r", event.kind, event.text)
            case Discard(number):
                self._spool.discard(number)
            case Beat():
                self._beat(output)
            case _:
                assert_never(output)

    def _beat(self, beat: Beat) -> None:
        reading = telemetry.read(self._settings.home)
        report = Telemetry(
            boot=self._boot,
            uptime=time.monotonic() - self._started,
            state=beat.state,
            assignment=beat.assignment,
            step=beat.step,
            load=reading.load,
            temperature=reading.temperature,
            memory=reading.memory,
            memory_free=reading.memory_free,
            disk_free=reading.disk_free,
            spool=beat.spool,
            training=self._workshop.training,
            since=beat.since,
        )
        self._link.publish("telemetry", encode(report))
        self._write_status(beat)

    def _write_status(self, beat: Beat | None) -> None:
        """For ``shoal-agent status``; None while there is no connection."""
        status = {
            "pid": os.getpid(),
            "written": time.time(),
            "connected": beat is not None,
            "state": beat.state if beat else self._session.state,
            "step": beat.step if beat else None,
            "training": self._workshop.training,
        }
        path = self._settings.home / STATUS
        try:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(status))
            temporary.replace(path)
        except OSError as error:
            log.warning("status-not-written cause=%r", error.strerror)


def run(settings: Settings, identity: Identity) -> None:
    """Be the agent until SIGTERM or SIGINT."""
    memory.be_frugal()
    recent = Recent()
    logging.getLogger().addHandler(recent)
    with Home(settings.home):
        agent = Agent(settings, _settled(settings, identity), recent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.run()
        if agent.forgotten:
            forget(settings.home)
            log.info("decommissioned: enrol this device again to use it")
    if agent.restart:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # this very program


def _settled(settings: Settings, identity: Identity) -> Identity:
    """The identity once a rotation that was cut short is over."""
    if not rotation.unfinished(settings.home):
        return identity
    authority = settings.home / identity.authority if identity.authority else None
    try:
        return rotation.rotate(settings.home, identity, parse(settings.url or identity.url, authority))
    except (Unreachable, Refused) as error:
        log.warning("rotation-unfinished cause=%s", error)
        return identity


def _offer(settings: Settings, dataset: Dataset) -> CheckIn:
    """What every check-in of this process says."""
    backends = runtime.backends()
    if settings.backend is not None and settings.backend not in backends:
        there = ", ".join(backends) or "none"
        raise UsageError(f"the backend {settings.backend!r} is not installed, there is: {there}")
    if not backends:
        raise UsageError("no training runtime is installed: install the extra shoal[agent]")
    return CheckIn(
        id="0",
        protocol=PROTOCOL,
        agent=__version__,
        runtime=settings.backend or backends[0],
        features=FEATURES,
        samples=len(dataset),
        input=dataset.input,
        classes=dataset.classes,
        held=None,
        unsent=(),
    )
