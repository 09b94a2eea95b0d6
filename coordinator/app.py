"""The coordinator as one process: store, steward, broker, pages and API, wired together."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from attrs import evolve
from cheroot.wsgi import Server
from flask import Flask
from sqlalchemy.exc import DBAPIError

import web
from coordinator import api, auth, certificate, drivers, operators, tracing
from coordinator.alerts.courier import couriers
from coordinator.alerts.watch import Watch
from coordinator.broker import listening
from coordinator.broker.driver import AddressInUse, BrokerError, Driver
from coordinator.broker.link import Link
from coordinator.certificate import Public
from coordinator.errors import ShoalError
from coordinator.fleet import authority
from coordinator.fleet.authority import AuthorityError, NameRefused, TlsFiles
from coordinator.home import claim
from coordinator.proxy import Forwarded, networks
from coordinator.services import Services
from coordinator.settings import Settings
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.retention import Keep, Retention
from coordinator.store.segments import Segments
from coordinator.store.snapshots import Thinning
from coordinator.training.steward import Steward

log = logging.getLogger(__name__)

THREADS = 16
PATIENCE = 60.0
"""Seconds for which the broker may be away, or one turn may take."""
RUNNING = "coordinator.json"


def create_app(services: Services) -> Flask:
    """The pages and the API over given services."""
    app = Flask("coordinator", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    auth.install(app, services)
    api.install(app)
    app.register_blueprint(web.create_blueprint(services))
    app.wsgi_app = Forwarded(app.wsgi_app, networks(services.settings.proxy))  # type: ignore[method-assign]
    return app


class Coordinator:
    """Everything that runs. ``start`` raises ShoalError with a sentence when something is in the way."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self._clock = clock
        self._closing = ExitStack()
        self._links: list[Link] = []
        self.steward: Steward
        self.services: Services

    def start(self) -> None:
        """Bring everything up; what was started is taken down again if a later part fails."""
        try:
            self._start()
        except BaseException as error:
            self._closing.close()
            if isinstance(error, OSError):
                home = self.settings.home
                raise ShoalError("home-unusable", f"The coordinator cannot start in {home}: {error}") from error
            if isinstance(error, DBAPIError):
                where = self.database.shown
                raise ShoalError("database-unusable", f"The database {where} cannot be used: {error.orig}") from error
            raise

    @property
    def healthy(self) -> bool:
        """Whether the one thread that writes is there; without it nothing is learned, and nothing is stored."""
        return self.steward.is_alive()

    def check(self) -> None:
        """ShoalError once this coordinator can do no good any more: HoldLost, or the thread that writes has ended."""
        self.database.check()
        if not self.healthy:
            raise ShoalError("internal", "The thread that writes has ended: see the log, and start it again")

    @property
    def lively(self) -> bool:
        """Whether the thread that writes goes round, and the broker is there or was a moment ago."""
        return self.healthy and self.steward.silence < PATIENCE and all(one.silence < PATIENCE for one in self._links)

    def stop(self) -> None:
        """Take everything down, in the reverse order."""
        self._closing.close()

    def __enter__(self) -> Coordinator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def pages(self) -> str:
        return self.settings.pages

    @property
    def fingerprint(self) -> str | None:
        """What devices recognise this coordinator's authority by; None without TLS."""
        ca = self.settings.home / "tls" / "ca.pem"
        return authority.fingerprint(ca.read_bytes()) if self.settings.encrypted else None

    def login_url(self, name: str = operators.LOCAL, role: str = "admin") -> str:
        """A link that logs an operator in, once."""
        secret = self.steward.write(
            lambda session: operators.mint_login(session, self._clock(), name=name, role=role, by=operators.LOCAL)
        )
        return f"{self.pages}/login/{secret}"

    def _start(self) -> None:
        home = self.settings.home
        _check_address(self.settings.host, self.settings.port)
        self._closing.enter_context(claim(home))
        self._closing.callback(self.database.close)
        self._closing.enter_context(self.database.claimed())
        self.database.upgrade()
        tls = self._tls()
        segments = Segments(home / "segments")
        self._closing.callback(segments.close)
        blobs = Blobs(home / "blobs")
        driver = drivers.choose(self.settings, self.database, tls)
        tracer = tracing.connect(self.settings.traces, str(home.resolve())) if self.settings.traces else None
        if tracer is not None:
            self._closing.callback(tracer.close)
        links = self._links  # one, once the broker listens; nothing is sent before
        self.steward = Steward(
            self.database,
            blobs,
            segments,
            heartbeat=self.settings.heartbeat,
            clock=self._clock,
            send=lambda device, leaf, payload: links[0].send(device, leaf, payload),
            cut_off=driver.shut_out,
            retain=Retention(Keep.of(self.settings), blobs, segments.folder).tend,
            watch=Watch(self.settings.alerts, home, _certificates(tls, self.settings)).look,
            rotate_after=self.settings.rotate_days * 86_400,
            trace=tracer.tell if tracer else None,
            thinning=Thinning(last=self.settings.keep_last, every=self.settings.keep_every),
        )
        self.steward.recover()
        self._meet(driver, links)
        self._serve(blobs, driver, tls)
        for courier in couriers(self.settings.alerts, self.database, self.steward, self._clock):
            courier.start()
            self._closing.callback(courier.stop)

    def _meet(self, driver: Driver, links: list[Link]) -> None:
        """Broker, steward and the link between them, in the order in which they need each other."""
        try:
            driver.start()
            self._closing.callback(driver.stop)
            links.append(Link(driver.door, self.steward.hear))
            self.steward.start()
            self._closing.callback(self.steward.stop)
            links[0].start()
            self._closing.callback(links[0].stop)
        except AddressInUse as error:
            raise ShoalError("port-in-use", str(error)) from error
        except BrokerError as error:
            raise ShoalError("broker-unusable", str(error)) from error

    def _serve(self, blobs: Blobs, driver: Driver, tls: TlsFiles | None) -> None:
        server = _Server((self.settings.host, self.settings.port), None, numthreads=THREADS, server_name="shoal")
        if tls is not None:
            server.ssl_adapter = certificate.adapter(tls, self._public())
        try:
            server.prepare()
        except OSError as error:
            where = f"{self.settings.host}:{self.settings.port}"
            raise ShoalError("port-in-use", f"The pages cannot be served at {where}: {error}") from error
        self._closing.callback(server.stop)
        port = int(server.bind_addr[1])
        self.settings = evolve(self.settings, port=port, mqtt_port=driver.door.port)
        admit = drivers.admitting(driver)
        self.services = Services(self.settings, self.database, self.steward, blobs, self._clock, admit)
        server.wsgi_app = create_app(self.services)
        threading.Thread(target=server.serve, name="http", daemon=True).start()
        home, now = self.settings.home, self._clock()
        self.steward.write(lambda session: operators.ensure_local_token(session, home, now))
        running = {
            "url": self.url,
            "ca": str(tls.ca) if tls else None,
            "pid": os.getpid(),
            "database": self.settings.database_url,
        }
        _write_aside(home / RUNNING, json.dumps(running))
        self._closing.callback(lambda: (home / RUNNING).unlink(missing_ok=True))

    def _public(self) -> Public | None:
        settings = self.settings
        if not settings.certificate:
            return None
        public = Public(Path(settings.certificate), Path(settings.certificate_key))
        if public.covers(settings.address):
            reason = "by which devices reach the coordinator, and they trust its own authority alone"
            text = f"Setting certificate is for {settings.address}, {reason}: use another name"
            raise ShoalError("bad-request", text)
        return public

    def _tls(self) -> TlsFiles | None:
        if not self.settings.encrypted:
            return None
        names = {self.settings.address, self.settings.host} - {"", "0.0.0.0"}  # noqa: S104
        try:
            return authority.establish(self.settings.home, names, now=datetime.fromtimestamp(self._clock(), UTC))
        except NameRefused as error:
            raise ShoalError("bad-request", str(error)) from error
        except AuthorityError as error:
            raise ShoalError("home-unusable", str(error)) from error


class _Server(Server):
    """What the HTTP server has to say, e.g. of a broken TLS handshake, goes where everything else goes."""

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(min(level, logging.WARNING), "http %s", msg.strip(), exc_info=traceback)


def _certificates(tls: TlsFiles | None, settings: Settings) -> dict[str, Path]:
    """Those whose ends are told of."""
    if tls is None:
        return {}
    own = {"The authority's certificate": tls.ca, "The server's certificate": tls.certificate}
    return own | ({"The pages' certificate": Path(settings.certificate)} if settings.certificate else {})


def _check_address(host: str, port: int) -> None:
    """ShoalError bad-request if this machine has no such address; else what keeps this process from the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ShoalError("bad-request", f"This machine cannot listen at {host[:80]!r}: {reason}") from error
    try:
        listening.check(host, port)
    except BrokerError as error:
        code = "port-in-use" if isinstance(error, AddressInUse) else "port-unusable"
        raise ShoalError(code, f"The pages cannot be served at {host}:{port}: {error}") from error


def _write_aside(path: Path, text: str) -> None:
    """Whoever reads the file sees all of it or none; the database's URL may hold a password, so it is ours alone."""
    aside = path.with_suffix(".new")
    aside.touch(0o600)
    aside.chmod(0o600)
    aside.write_text(text)
    os.replace(aside, path)
