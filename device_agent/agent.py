"""The running agent: one main loop that feeds what happens into the session and does what it says."""

from __future__ import annotations

import logging
import queue
import secrets
import time
from random import Random
from typing import Any, assert_never

from protocol.commands import Command
from protocol.deployments import Deploy, Recall
from protocol.messages import Assignment, DeviceEvent, Retry, Telemetry
from protocol.wire import encode

from . import memory, rotation
from . import offer as offers
from .address import parse
from .bench import Finished
from .clock import Compared
from .commands import Ended, Orders, Recent, Told
from .conversation import (
    Acknowledged,
    Allow,
    Amended,
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
    FetchFresh,
    Hold,
    Keep,
    Lasting,
    Noticed,
    Output,
    Publish,
    Received,
    Save,
    Settle,
    Stop,
    TakeFresh,
    Tick,
    Train,
    Trained,
)
from .course import Signs
from .data.keeper import Found, Spoiled
from .deployments import Advanced, Deployments, Runs, Said
from .download import Blobs
from .duty import Duty, Judged, News
from .errors import AgentError, UsageError
from .identity import Identity
from .link import Acked, Denied, Down, Incoming, Link, Up, broker
from .overlay import Config
from .service import Notifier
from .serving import Serving
from .session import Session
from .settings import Settings
from .spool import Spool
from .status import StatusFile
from .upgrade import Upgrade
from .workshop import Workshop

INBOX = 1000  # messages waiting for the main loop; more are dropped, for the conversation repeats itself

log = logging.getLogger(__name__)


class Agent:
    """Wires spool, session, link, data, workshop and orders. ``run`` returns when :meth:`stop` was called, or when an
    order ends it: see :attr:`orders` for what is to be done then."""

    def __init__(self, settings: Settings, identity: Identity, recent: Recent, notifier: Notifier) -> None:
        if settings.data is None:
            raise UsageError(f'no training data is set: put data = "file.npz" into {settings.home / "agent.toml"}')
        self._settings = settings
        self._identity = identity
        self._boot = secrets.token_hex(4)
        self._started = time.monotonic()
        self._stopping = False
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._notifier = notifier
        self._spool = Spool(settings.home, settings.spool_bytes)
        authority = settings.home / identity.authority if identity.authority else None
        self._address = parse(settings.url or identity.url, authority)
        backend = offers.backend(settings)
        self._duty = Duty(settings, settings.data, self._address, backend, self._started, self._inbox.put)
        self.orders = Orders(settings.home, self._address, recent, self._inbox.put)
        self._serving = Serving(settings, self._duty)
        kinds = Config(settings.home), Upgrade(settings.home, self._duty.backend), self._serving.kind
        self._deployments = Deployments(settings.home, identity, self._address, kinds, self._inbox.put)
        self._duty.deploys = self._deployments.takes
        cache = settings.home / "blobs", settings.cache_bytes
        self._blobs = Blobs(*cache, self._address, identity.device, identity.secret)
        self._workshop = Workshop(
            *(self._blobs, self._duty.gate, self._spool.checkpoints, self._duty.backend),
            *(settings.threads, settings.stretch, settings.checkpoint_seconds, self._inbox.put),
        )
        chance = Random()  # noqa: S311  # jitter, no secrets
        self._link = Link(broker(identity, settings.home), self._boot, chance, self._from_link, self._appeal)
        beats, room = settings.heartbeat or identity.heartbeat, settings.spool_bytes // 2
        self._session = Session(None, self._boot, beats, chance, self._spool.load(), time.monotonic(), room)
        self._status = StatusFile(settings.home)
        self._answered = False  # a check-in of this process
        self._told: str | None = None  # why the coordinator had no work
        self._cause: str | None = None  # why there is no connection
        self._step: int | None = None
        self._phases: dict[str, float] = {}  # seconds that the last of each took

    @property
    def restart(self) -> bool:
        """Whether this program is to be started anew once it has stopped."""
        return self.orders.restart or self._deployments.restart

    def stop(self) -> None:
        """Safe to call from a signal handler."""
        self._stopping = True
        self._inbox.put(Tick())

    def run(self) -> None:
        log.info("started device=%s boot=%s updates=%d", self._identity.device, self._boot, self._session.waiting)
        memory.give_back()
        self._workshop.open()
        self._link.open()
        self._duty.open()
        self._deployments.open()
        self._serving.open()
        self._notifier.ready()
        try:
            while not (self._stopping or self.orders.stopping or self._deployments.restart):
                self._tell_damage()
                self._look()
                self._take_next()
                if self._session.connected:
                    self._say()
        finally:
            if self._stopping or self.orders.forgotten:
                self._notifier.stopping()
            self._deployments.close()
            self._serving.close()
            self._workshop.close()
            self._duty.close()
            self._link.close()
            self._spool.close()
            log.info("stopped")

    def _appeal(self) -> None:
        try:
            rotation.appeal(self._settings.home, self._identity, self._address)
        except AgentError as error:
            log.warning("appeal-failed cause=%s", error)

    def _say(self) -> None:
        """What came of commands and of deployments."""
        for tag, result in self.orders.untold():
            self._link.publish("result", result, tag)
        for leaf, report, about in self._deployments.untold():
            self._link.publish(leaf, report, about)

    def _from_link(self, happened: object) -> None:
        if not isinstance(happened, Incoming) or self._inbox.qsize() < INBOX:
            self._inbox.put(happened)

    def _take_next(self) -> None:
        # A method of its own: while the next event is waited for nothing holds on to the last, which may be large.
        event = self._event(self._next())
        if event is not None:
            self._handle(event)
        if isinstance(event, Trained):
            self._workshop.taken(event.assignment)

    def _next(self) -> object:
        nap = max(min(self._session.wake_at, self._duty.look_at) - time.monotonic(), 0.0)
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
                self._cause = None
                self.orders.connected()
                self._deployments.connected()
                self._duty.clock.hurry()
                self._heard(Judged(True))
                return Connected()
            case Down(cause):
                self._cause = cause
                return Disconnected()
            case Denied():
                self._duty.denied(self._identity)
            case Judged(False) if self._session.connected:
                pass  # asked with the secret before this one: the broker has let us in since
            case Found() | Spoiled() | Judged() | Compared():
                self._heard(happened)
            case Incoming():
                return self._incoming(happened)
            case Acked():
                tag: Any = self._link.delivered(happened)
                if isinstance(tag, Told):
                    self.orders.delivered(tag)
                    return None
                if isinstance(tag, Said | Runs):
                    self._deployments.delivered(tag)
                    return None
                return None if tag is None else Acknowledged(tag)
            case Ended():
                self._ended(happened)
            case Advanced():
                self._follow()
            case Finished():
                return self._encoded(happened)
            case Failed(assignment, kind, reason):
                log.warning("%s assignment=%s cause=%r", kind, assignment, reason)
                return happened
            case _ if isinstance(happened, Event):
                if isinstance(happened, Fetched):
                    self._phases["download"] = happened.seconds
                return happened
            case _:
                raise TypeError(f"nobody reports {type(happened).__name__}")
        return None

    def _incoming(self, incoming: Incoming) -> Event | None:
        match message := incoming.message(self._identity.device):
            case None:
                return None
            case Command():
                self.orders.take(message, self._identity)
                self._duty.look_at = time.monotonic()  # it may have been told to pause, or to resume
                return None
            case Deploy() | Recall():
                self._deployments.take(message)
                return None
            case Assignment() | Retry():
                self._answered = True
                self._told = message.reason if isinstance(message, Retry) else None
        return Received(message, incoming.retained)

    def _ended(self, order: Ended) -> None:
        self.orders.ended(order)
        if order.identity is not None:
            self._identity = order.identity
            self._blobs.reauthenticate(self._identity.secret)
            self._deployments.reauthenticate(self._identity.secret)
            self._link.reauthenticate(self._identity.secret)

    def _encoded(self, done: Finished) -> Event:
        # Here and not in the workshop's thread: a receipt may change the residual at any time.
        started = time.monotonic()
        event = done.encoded(self._spool.residual)
        if isinstance(event, Trained):
            self._phases |= {"train": done.result.seconds, "encode": time.monotonic() - started}
        return event

    def _do(self, output: Output) -> None:
        match output:
            case Publish(leaf, payload, tag):
                self._link.publish(leaf, payload, tag)
            case Fetch(assignment):
                self._workshop.fetch(assignment)
            case FetchFresh(assignment, fresh):
                self._workshop.fetch_fresh(assignment, fresh)
            case Train(assignment, commits):
                self._workshop.train(assignment, commits, self._spool.checkpoint(assignment.id))
            case Allow(name, commit):
                self._workshop.allow(name, commit)
            case Amended(name, plan):
                self._workshop.amend(name, plan)
            case TakeFresh(name, fresh):
                self._workshop.merge(name, fresh)
            case Stop(name, reason):
                log.info("ended assignment=%s cause=%r", name, reason)
                self._workshop.stop(name)
            case Beat():
                self._beat(output)
            case _:
                self._persist(output)

    def _persist(self, output: Lasting) -> None:
        """It is on disk when this returns."""
        match output:
            case Hold(assignment):
                self._spool.hold(assignment)
                plan = assignment.plan
                log.info(
                    "assigned assignment=%s run=%s version=%d width=%g steps=%d batch=%d",
                    *(assignment.id, assignment.run, assignment.version, plan.width, plan.steps, plan.batch),
                )
            case Drop(finished):
                self._spool.drop(finished)
            case Commit(update, body, region, residual, checkpoint):
                self._spool.commit(update, body, region, residual, checkpoint)
                memory.give_back()
                log.info(
                    "committed assignment=%s commit=%d bytes=%d samples=%d loss=%.4f accuracy=%.4f seconds=%.3f",
                    *(*update.key, update.size, update.samples, update.loss, update.accuracy, update.timings.train),
                )
            case Save(checkpoint):
                self._spool.save(checkpoint)
                log.debug("saved assignment=%s step=%d", checkpoint.assignment, checkpoint.position.step)
            case Settle(update, give_back):
                self._spool.settle(update, give_back)
                outcome = "unused" if give_back else "stored"
                log.info("settled assignment=%s commit=%d outcome=%s", *update.key, outcome)
            case Keep(number, event):
                self._spool.keep(number, event)
                log.warning("event kind=%s text=%r", event.kind, event.text)
            case Discard(number):
                self._spool.discard(number)
            case _:
                assert_never(output)

    def _beat(self, beat: Beat) -> None:
        self._step = beat.step
        if beat.upload is not None:
            self._phases["upload"] = beat.upload
        report = Telemetry(
            boot=self._boot, uptime=time.monotonic() - self._started, state=self._state,
            assignment=beat.assignment, step=beat.step, spool=beat.spool, since=beat.since, goodput=beat.goodput,
            training=self._workshop.training, phases=self._phases or None, cpu=self._duty.board.cpu(),
            waiting=self._reason and self._reason[:2000], **self._duty.measured(),
        )  # fmt: skip
        self._link.publish("telemetry", encode(report))
        self._tell_status()

    # Whether there is anything in the way of work.

    def _look(self) -> None:
        """Every pass of the main loop comes here; systemd hears that we live."""
        now = time.monotonic()
        if now < self._duty.look_at:
            return
        self._duty.look(now)
        self._follow()
        self._notifier.alive(f"{self._state}: {self._reason}" if self._reason else self._state)

    def _heard(self, found: News) -> None:
        event = self._duty.heard(found)
        self._workshop.dataset = self._duty.loaded.training if self._duty.loaded else None
        self._workshop.held_out = self._duty.loaded.held_out if self._duty.loaded else None
        if event is not None:
            self._handle(Noticed(event))
        self._follow()

    def _follow(self) -> None:
        """Offer what the duty says, or nothing; none either while the device is about to switch to a release."""
        free = self._session.assignment is None
        answered = self._answered or self._duty.state in ("paused", "waiting")
        self._deployments.feel(Signs(not free, self._session.connected, answered))
        offer = None if free and self._deployments.holds else self._duty.offer
        if offer is not self._session.offer:
            self._session.offer = offer
            self._handle(Tick())
        self._tell_status()

    @property
    def _state(self) -> str:
        return self._duty.state or self._session.state

    @property
    def _reason(self) -> str | None:
        """Why no work is done: what is in the way here, or else what the coordinator or the last attempt said."""
        return self._duty.reason or self._last

    @property
    def _last(self) -> str | None:
        last = {"idle": self._told or self._session.setback, "fetching": self._blobs.trouble}
        return last.get(self._session.state)

    def _tell_status(self) -> None:
        connected, state = self._session.connected, self._state
        passing = {
            "reason": self._reason,
            "step": self._step,
            "training": self._workshop.training,
            "board": self._duty.measured(),
        }
        facts = {"connected": connected, "state": state, "cause": self._cause, "told": self._last, **self._duty.facts()}
        self._status.write(facts, passing)
