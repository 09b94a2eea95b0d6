"""The coordinator's settings: defaults, then ``shoal.toml`` in the home folder, then ``SHOAL_*``, then options."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, fields, frozen
from sqlalchemy import URL

from coordinator.alerts import rules
from coordinator.alerts.rules import Rules
from coordinator.broker.driver import ACCOUNTS, BROKERS, parse_url
from coordinator.errors import ShoalError
from coordinator.proxy import networks

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMS = ("text", "json")


def default_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "shoal"


@frozen(kw_only=True)
class Settings:
    """``host`` and ``port`` are where the pages and the API are; ``mqtt_port`` is the broker's (0: any free port).

    ``heartbeat`` is the seconds between a device's heartbeats; ``tls`` is ``auto`` (on for every address but
    loopback), ``on`` or ``off``; ``name`` is a host name that devices use to reach the coordinator. ``database_reader``
    is a URL whose role may only read, for questions in SQL. ``keep_telemetry`` is in hours, the others are in days: for
    how long rows are kept (0: for ever). Of a run's snapshots the ``keep_last`` newest stay, and one of every
    ``keep_every`` versions. ``max_events`` counts lines of the journal, ``max_bodies`` and ``max_blobs`` are in GB (0:
    no limit). ``open_metrics`` opens /metrics to everybody on this machine. ``log`` is ``text`` or ``json``; ``traces``
    is the URL that spans are sent to by OTLP over HTTP (empty: none are made).

    ``public_url`` is where people find the pages, if that is elsewhere; ``proxy`` holds the addresses and networks of
    reverse proxies whose X-Forwarded headers are believed; ``certificate`` and ``certificate_key`` are PEM files for
    who asks for a name of theirs (see :mod:`coordinator.certificate`).

    ``broker`` is one of BROKERS; those that begin with ``broker_`` are for ``external`` (see
    :mod:`coordinator.broker.external`). ``rotate_days`` is the age at which devices are told to make a new secret (0:
    never). ``alerts`` is a table of the file.
    """

    home: Path = field(factory=default_home, converter=Path)
    host: str = "127.0.0.1"
    port: int = 8750
    mqtt_port: int = 8883
    name: str = ""
    database: str = ""
    database_reader: str = ""
    broker: str = "auto"
    broker_url: str = ""
    broker_user: str = "coordinator"
    broker_password: str = field(default="", repr=False)
    broker_accounts: str = "dynamic-security"
    broker_probe: str = field(default="", repr=False)
    rotate_days: float = 0.0
    heartbeat: float = 10.0
    tls: str = "auto"
    public_url: str = ""
    proxy: str = ""
    certificate: str = ""
    certificate_key: str = ""
    open_metrics: bool = False
    keep_telemetry: float = 48.0
    keep_telemetry_5m: float = 30.0
    keep_events: float = 365.0
    keep_inputs: float = 0.0
    keep_last: int = 2
    keep_every: int = 0
    max_events: int = 1_000_000
    max_bodies: float = 0.0
    max_blobs: float = 0.0
    log: str = "text"
    traces: str = ""
    log_level: str = "info"
    alerts: Rules = field(factory=Rules)

    @property
    def database_url(self) -> str:
        return self.database or sqlite_url(self.home / "shoal.db")

    @property
    def reader_url(self) -> str:
        return self.database_reader or self.database_url

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"

    @property
    def encrypted(self) -> bool:
        return self.tls == "on" or (self.tls == "auto" and not self.loopback)

    @property
    def external(self) -> tuple[str, int, bool] | None:
        """Host, port and encryption of a broker that somebody else runs; None for one of ours."""
        return parse_url(self.broker_url) if self.broker == "external" else None

    @property
    def address(self) -> str:
        """What devices call the coordinator by."""
        return self.name or ("localhost" if self.host == "0.0.0.0" else self.host)  # noqa: S104 - it is told apart, not bound

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.encrypted else 'http'}://{host}:{self.port}"

    @property
    def pages(self) -> str:
        """Where people find the pages."""
        return self.public_url.rstrip("/") or self.url


def sqlite_url(path: Path) -> str:
    """URL of a SQLite file; made from parts, for a folder may have a ? or a % in its name."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def load(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from all sources; ``options`` holds what was given on the command line (None: not given)."""
    given = {name: value for name, value in options.items() if value is not None}
    home = Path(given.get("home") or environ.get("SHOAL_HOME") or default_home())
    values: dict[str, Any] = {"home": home, **_file(home / "shoal.toml")}
    for one in fields(Settings):
        if (text := environ.get(f"SHOAL_{one.name.upper()}")) is not None:
            values[one.name] = text
    values.update(given)
    return _checked(values)


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}  # a home that cannot be made is told of when it is to be used
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShoalError("bad-request", f"The settings file {path} cannot be read: {error}") from error


def _truth(value: Any) -> bool:
    words = {"true": True, "false": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _checked(values: Mapping[str, Any]) -> Settings:
    usual = Settings()
    defaults = {one.name: getattr(usual, one.name) for one in fields(Settings)}
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in defaults:
            raise ShoalError("bad-request", f"There is no setting {name!r}, only {', '.join(sorted(defaults))}")
        if name == "alerts":
            read[name] = rules.read(value)
            continue
        kind = type(defaults[name]) if name != "home" else Path
        try:
            read[name] = _truth(value) if kind is bool else kind(value)
        except (TypeError, ValueError) as error:
            raise ShoalError("bad-request", f"Setting {name} is {value!r}, expected {kind.__name__}") from error
    settings = Settings(**read)
    if settings.tls not in ("auto", "on", "off"):
        raise ShoalError("bad-request", f"Setting tls is {settings.tls!r}, expected auto, on or off")
    if settings.tls == "off" and not settings.loopback:
        refused = "secrets would travel in the clear: tls = off is for loopback only"
        raise ShoalError("bad-request", f"Setting host is {settings.host!r}, where {refused}")
    _check_broker(settings)
    _check_pages(settings)
    if settings.log_level.lower() not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS)
        raise ShoalError("bad-request", f"Setting log_level is {settings.log_level!r}, expected one of {known}")
    if settings.host in ("", "::"):
        every = "expected an address of this machine, or 0.0.0.0 for every one of IPv4"
        raise ShoalError("bad-request", f"Setting host is {settings.host!r}, {every}")
    for name in ("port", "mqtt_port"):
        if not 0 <= getattr(settings, name) <= 65535:
            raise ShoalError("bad-request", f"Setting {name} is {getattr(settings, name)}, expected 0 to 65535")
    if not 0.1 <= settings.heartbeat <= 86400:
        raise ShoalError("bad-request", f"Setting heartbeat is {settings.heartbeat}, expected 0.1 to 86400 seconds")
    for name in ("keep_telemetry", "keep_telemetry_5m", "keep_events", "keep_inputs", "rotate_days"):
        if not 0 <= getattr(settings, name) <= 100_000:
            raise ShoalError("bad-request", f"Setting {name} is {getattr(settings, name)}, expected 0 to 100000")
    for name, least in (("keep_last", 2), ("keep_every", 0), ("max_events", 0), ("max_bodies", 0), ("max_blobs", 0)):
        if not getattr(settings, name) >= least:
            raise ShoalError("bad-request", f"Setting {name} is {getattr(settings, name)}, expected at least {least}")
    if settings.log not in LOG_FORMS:
        raise ShoalError("bad-request", f"Setting log is {settings.log!r}, expected one of {', '.join(LOG_FORMS)}")
    if settings.traces and not settings.traces.startswith(("http://", "https://")):
        raise ShoalError("bad-request", f"Setting traces is {settings.traces[:80]!r}, expected an http(s):// URL")
    return settings


def _check_pages(settings: Settings) -> None:
    parts = urlsplit(settings.public_url)
    if settings.public_url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")):
        expected = "expected https://host, without a path"
        raise ShoalError("bad-request", f"Setting public_url is {settings.public_url[:80]!r}, {expected}")
    try:
        networks(settings.proxy)
    except ValueError as error:
        raise ShoalError("bad-request", f"Setting proxy: {error}") from error
    if bool(settings.certificate) != bool(settings.certificate_key):
        raise ShoalError("bad-request", "Settings certificate and certificate_key go together: give both or none")
    if settings.certificate and not settings.encrypted:
        raise ShoalError("bad-request", "Setting certificate needs encryption: set tls = on")


def _check_broker(settings: Settings) -> None:
    for name, known in (("broker", BROKERS), ("broker_accounts", ACCOUNTS)):
        if (value := getattr(settings, name)) not in known:
            raise ShoalError("bad-request", f"Setting {name} is {value!r}, expected one of {', '.join(known)}")
    if settings.broker != "external":
        return
    try:
        host, _, encrypted = parse_url(settings.broker_url)
    except ValueError as error:
        raise ShoalError("bad-request", f"Setting broker_url: {error}") from error
    if not encrypted and host not in ("localhost", "127.0.0.1", "::1"):
        raise ShoalError("bad-request", f"Setting broker_url is {settings.broker_url!r}: mqtt:// is for loopback only")
    if encrypted and not settings.encrypted:
        reason = "devices learn the authority that signs the broker's certificate from an encrypted coordinator only"
        raise ShoalError("bad-request", f"Setting broker_url is {settings.broker_url!r}: {reason}, set tls = on")
