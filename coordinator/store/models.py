"""The tables. Times are columns of UTC timestamps and floats of seconds since 1970 in Python."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from coordinator.store.schema import Base as Base
from coordinator.store.schema import Instant as Instant
from coordinator.store.schema import Key
from coordinator.store.schema import table_of as table_of


class Device(Base):
    """One enrolled device and what was last heard of it. Its status is derived (see store.registry)."""

    __tablename__ = "device"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    group: Mapped[str] = mapped_column(String(80), default="")
    capability: Mapped[dict[str, Any]]
    enrolled_at: Mapped[float]
    token_id: Mapped[str | None] = mapped_column(ForeignKey("enrolment_token.id"))
    last_seen_at: Mapped[float | None]
    deadline_at: Mapped[float | None] = mapped_column(index=True)
    """When the watcher has to look at this device again: the next moment its status may change by itself."""
    status: Mapped[str] = mapped_column(String(16), default="new")
    """The status at the last change that was recorded; ``status_change`` holds them all."""
    status_at: Mapped[float]
    pending_at: Mapped[float | None]
    """Since when it waits for an operator to adopt it; None once adopted."""
    paused_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    agent: Mapped[str] = mapped_column(String(80), default="")
    runtime: Mapped[str] = mapped_column(String(80), default="")
    samples: Mapped[int | None]
    assignment_id: Mapped[str | None] = mapped_column(String(80))
    """What it works on or has just delivered; None once it was told to come back later."""
    telemetry: Mapped[dict[str, Any] | None]
    """The last heartbeat, as it came."""


class DeviceTag(Base):
    """A word that operators call some devices by."""

    __tablename__ = "device_tag"

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(40), primary_key=True, index=True)


class Command(Base):
    """What a device was told to do. State: open, done, refused, failed or expired; ``text`` is its answer."""

    __tablename__ = "command"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    kind: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(12))
    text: Mapped[str] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[float]
    expires_at: Mapped[float]
    ended_at: Mapped[float | None]

    __table_args__ = (Index(None, "device_id", "created_at"), Index(None, "state", "expires_at"))


class Credential(Base):
    """A device's secret, hashed: the one that is neither revoked nor ``next`` is the present one."""

    __tablename__ = "credential"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64))
    verifier: Mapped[str] = mapped_column(String(140), default="")
    """The secret as a broker with accounts of its own takes it; empty for secrets from before there were any."""
    next: Mapped[bool] = mapped_column(default=False)
    """Made by the device to follow the present one, and not yet proved."""
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class EnrolmentToken(Base):
    """A claim token: who may join, how often, until when. The secret is stored hashed."""

    __tablename__ = "enrolment_token"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret_hash: Mapped[str] = mapped_column(String(64))
    group: Mapped[str] = mapped_column(String(80), default="")
    max_uses: Mapped[int] = mapped_column(default=1)
    uses: Mapped[int] = mapped_column(default=0)
    manual: Mapped[bool] = mapped_column(default=False)
    """Who joins with it waits for an operator to adopt it."""
    created_at: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(80))
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]


class StatusChange(Base):
    """A device's status went from ``old`` to ``new``."""

    __tablename__ = "status_change"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    old: Mapped[str] = mapped_column(String(16))
    new: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[float]

    __table_args__ = (Index(None, "device_id", "at"),)


class Telemetry(Base):
    """Heartbeats: ``uptime`` and others in seconds, sizes in bytes, temperature in °C, load in cores."""

    __tablename__ = "telemetry"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    at: Mapped[float]
    uptime: Mapped[float] = mapped_column(Float)
    load: Mapped[float | None] = mapped_column(Float)
    temperature: Mapped[float | None] = mapped_column(Float)
    memory: Mapped[int] = mapped_column(BigInteger)
    memory_free: Mapped[int | None] = mapped_column(BigInteger)
    disk_free: Mapped[int | None] = mapped_column(BigInteger)
    spool: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index(None, "device_id", "at"), Index(None, "at"))


class _RolledUp:
    """The heartbeats of one device in a span of time that begins at ``at``: means, or the worst where it says so."""

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    at: Mapped[float] = mapped_column(primary_key=True, index=True)
    beats: Mapped[int]
    uptime: Mapped[float] = mapped_column(Float)
    load: Mapped[float | None] = mapped_column(Float)
    temperature: Mapped[float | None] = mapped_column(Float)
    temperature_max: Mapped[float | None] = mapped_column(Float)
    memory: Mapped[int] = mapped_column(BigInteger)
    memory_free_min: Mapped[int | None] = mapped_column(BigInteger)
    disk_free_min: Mapped[int | None] = mapped_column(BigInteger)
    spool_max: Mapped[int] = mapped_column(BigInteger)


class Telemetry5m(_RolledUp, Base):
    """Five minutes of heartbeats."""

    __tablename__ = "telemetry_5m"


class Telemetry1h(_RolledUp, Base):
    """An hour of heartbeats."""

    __tablename__ = "telemetry_1h"


class Model(Base):
    """A model specification, by name; ``spec`` is its canonical JSON."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    spec_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    spec: Mapped[dict[str, Any]]
    created_at: Mapped[float]


class Run(Base):
    """One training of one model by one recipe."""

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    recipe: Mapped[str] = mapped_column(Text)
    """The recipe as TOML, complete with defaults."""
    recipe_name: Mapped[str] = mapped_column(String(80))
    seed: Mapped[int]
    target: Mapped[float | None] = mapped_column(Float)
    """Test accuracy at which the run ends by itself."""
    dataset: Mapped[str] = mapped_column(Text, default="")
    """The coordinator's own test set, a file in npz format."""
    simulated: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(String(16), default="running", index=True)
    """running, paused, stopped or finished."""
    reason: Mapped[str] = mapped_column(Text, default="")
    version: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[str] = mapped_column(String(80), default="")
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class ModelVersion(Base):
    """One version of a run's global model. ``sha256`` is the content hash of its weights."""

    __tablename__ = "model_version"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    step_norm: Mapped[float] = mapped_column(Float)
    updates: Mapped[int]
    """How many updates this version merged."""
    at: Mapped[float]


class Assignment(Base):
    """Work that was offered to a device. State: offered, taken, closed, expired, cancelled."""

    __tablename__ = "assignment"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    width: Mapped[float] = mapped_column(Float)
    plan: Mapped[dict[str, Any]]
    explanation: Mapped[dict[str, Any]]
    """What each policy looked at and what it decided: {policy: {input: value}}."""
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    artifact_sha256: Mapped[str] = mapped_column(String(64))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    offered_at: Mapped[float]
    taken_at: Mapped[float | None]
    expires_at: Mapped[float] = mapped_column(index=True)
    closed_at: Mapped[float | None]

    __table_args__ = (
        Index(None, "run_id", "state"),
        Index(None, "run_id", "closed_at"),
        Index(None, "device_id", "offered_at"),
        Index(None, "offered_at"),
    )


class Update(Base):
    """One commit of a device. Outcome: stored, applied, stale, refused or expired, each with its reason.

    ``weight`` is the factor by which the aggregator took it, ``applied_version`` the version it became part of. The
    body lies in a segment file at ``offset``.
    """

    __tablename__ = "update"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"))
    commit: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    base_version: Mapped[int]
    applied_version: Mapped[int | None]
    staleness: Mapped[int | None]
    width: Mapped[float] = mapped_column(Float)
    weight: Mapped[float | None] = mapped_column(Float)
    samples: Mapped[int]
    steps: Mapped[int]
    loss: Mapped[float] = mapped_column(Float)
    accuracy: Mapped[float] = mapped_column(Float)
    norm: Mapped[float | None] = mapped_column(Float)
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    seconds_download: Mapped[float] = mapped_column(Float)
    seconds_train: Mapped[float] = mapped_column(Float)
    seconds_upload: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    sha256: Mapped[str] = mapped_column(String(64))
    segment: Mapped[int]
    offset: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float]

    __table_args__ = (
        Index(None, "assignment_id", "commit", unique=True),
        Index(None, "run_id", "outcome"),
        Index(None, "run_id", "at"),
        Index(None, "device_id", "at"),
        Index(None, "at"),
        Index(None, "run_id", "applied_version"),
    )


class Metric(Base):
    """A measured number of a model version: ``accuracy`` and ``loss`` on the coordinator's test set."""

    __tablename__ = "metric"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[float] = mapped_column(Float)
    at: Mapped[float]


class Input(Base):
    """Everything that ever went into an engine, in one total order; a run is a snapshot plus the inputs after it."""

    __tablename__ = "input"

    seq: Mapped[int] = mapped_column(Key, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"))
    kind: Mapped[str] = mapped_column(String(16))
    body: Mapped[dict[str, Any]]
    at: Mapped[float] = mapped_column(Float)
    """Seconds since 1970, exactly as the engine saw them."""

    __table_args__ = (Index(None, "run_id", "seq"),)


class Snapshot(Base):
    """The whole state of a run's engine after input ``seq``, as a blob."""

    __tablename__ = "snapshot"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Key, primary_key=True)
    version: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    at: Mapped[float]


class Event(Base):
    """The journal: what happened, in words. ``seq`` is the cursor of the pages and of tests."""

    __tablename__ = "event"

    seq: Mapped[int] = mapped_column(Key, primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(40))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("run.id"))
    device_id: Mapped[str | None] = mapped_column(ForeignKey("device.id"))
    text: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index(None, "device_id", "seq"), Index(None, "run_id", "seq"))


class Operator(Base):
    """A person. Role: viewer, operator or admin. No password: one-time login links are made at the console."""

    __tablename__ = "operator"

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    disabled_at: Mapped[float | None]


class ApiToken(Base):
    """A bearer token, hashed. Kind: ``api`` for programs, ``login`` for a one-time login link."""

    __tablename__ = "api_token"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    operator: Mapped[str] = mapped_column(ForeignKey("operator.name"))
    kind: Mapped[str] = mapped_column(String(8))
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
