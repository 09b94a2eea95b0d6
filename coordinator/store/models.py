"""The tables: those of the fleet and of its operators here, those of runs in
:mod:`coordinator.store.run_models`, those of releases in :mod:`coordinator.store.release_models`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .alert_models import Alert, AlertChannel
from .base import Base, Instant, Key, table_of
from .release_models import DeviceRelease, Execution, ExecutionChange, Release, Rollout
from .run_models import Amendment, Assignment, Input, Metric, Model, ModelVersion, Refresh, Run, Snapshot, Update

__all__ = [
    "Alert",
    "AlertChannel",
    "Amendment",
    "ApiToken",
    "Assignment",
    "Base",
    "Command",
    "Credential",
    "Device",
    "DeviceRelease",
    "DeviceTag",
    "EnrolmentToken",
    "Event",
    "Execution",
    "ExecutionChange",
    "Input",
    "Instant",
    "Key",
    "Metric",
    "Model",
    "ModelVersion",
    "Operator",
    "Refresh",
    "Release",
    "Rollout",
    "Run",
    "Snapshot",
    "StatusChange",
    "Telemetry",
    "Telemetry1h",
    "Telemetry5m",
    "Update",
    "table_of",
]


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
    quarantined_at: Mapped[float | None]
    quarantine: Mapped[str] = mapped_column(Text, default="")
    """Why a gate turned it away, until an operator releases it."""
    revoked_at: Mapped[float | None]
    agent: Mapped[str] = mapped_column(String(80), default="")
    runtime: Mapped[str] = mapped_column(String(80), default="")
    samples: Mapped[int | None]
    labels: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    """How many samples of each class it has, where it tells."""
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
    secret_hash: Mapped[str] = mapped_column(String(64), index=True)
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
    """Heartbeats: ``uptime`` and others in seconds, sizes in bytes, temperature in °C, load in cores.

    On PostgreSQL partitioned by day, see store.partitions.
    """

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
