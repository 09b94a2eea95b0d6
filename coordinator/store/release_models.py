"""The tables of releases and of how they reach devices."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Key


class Release(Base):
    """Something that devices may be told to run: an agent, a model or settings. It never changes.

    ``manifest`` is the text that is signed, byte for byte (:class:`protocol.deployments.Manifest`), ``sha256`` that of
    the text, ``signature`` Ed25519 in hexadecimal digits, ``number`` counts the releases of its kind.
    """

    __tablename__ = "release"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    version: Mapped[str] = mapped_column(String(40))
    number: Mapped[int]
    manifest: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    signature: Mapped[str] = mapped_column(String(128))
    run_id: Mapped[str | None] = mapped_column(String(40))
    model_version: Mapped[int | None]
    """Of a model: which version of which run it was made from."""
    notes: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[float]
    withdrawn_at: Mapped[float | None]
    """Since when no rollout may begin with it."""

    __table_args__ = (
        Index(None, "kind", "number", unique=True),
        Index(None, "kind", "version", unique=True),
        ForeignKeyConstraint(["run_id", "model_version"], ["model_version.run_id", "model_version.version"]),
    )


class Rollout(Base):
    """A release on its way to devices, wave by wave. State: running, paused, completed, aborted or cancelled.

    ``rules`` are :class:`coordinator.fleet.rollout.Rules`. A rollout back is a rollout of its own: history is never
    edited.
    """

    __tablename__ = "rollout"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    state: Mapped[str] = mapped_column(String(12), index=True)
    pause: Mapped[str] = mapped_column(String(12), default="")
    """What a paused one waits for: operator, gate or approval."""
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why it is in this state."""
    rules: Mapped[dict[str, Any]]
    target: Mapped[dict[str, Any]]
    """Whom it is for: ``group``, ``tag`` or ``devices``; nothing of these is everybody. Who joins the fleet later and
    is meant comes last."""
    wave: Mapped[int] = mapped_column(default=0)
    """The wave that is under way, from 0."""
    wave_at: Mapped[float]
    passed_at: Mapped[float | None]
    """Since when the wave's gate holds: the next wave waits for the soak from here."""
    back_of: Mapped[int | None] = mapped_column(ForeignKey("rollout.id"))
    """The rollout whose devices this one brings back."""
    created_by: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[float]
    state_at: Mapped[float]
    ended_at: Mapped[float | None]


class Execution(Base):
    """One device of one rollout. State: those of :mod:`protocol.deployments`, and queued, notified, timed-out,
    cancelled, expired or superseded."""

    __tablename__ = "execution"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollout.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"))
    kind: Mapped[str] = mapped_column(String(8))
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    """What this device is to run; in a rollout back each has its own."""
    before_id: Mapped[int | None] = mapped_column(ForeignKey("release.id"))
    """What it ran before; None if that was no release."""
    wave: Mapped[int]
    place: Mapped[int]
    """In the order of its wave."""
    state: Mapped[str] = mapped_column(String(12))
    state_at: Mapped[float]
    text: Mapped[str] = mapped_column(Text, default="")
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    report: Mapped[int] = mapped_column(default=0)
    """The number of the last report that counted."""
    attempts: Mapped[int] = mapped_column(default=0)
    """How often it failed in a way that another attempt may mend."""
    retry_at: Mapped[float | None]
    accepted_at: Mapped[float | None]
    step_until: Mapped[float | None]
    """The next report is due by then."""
    until: Mapped[float | None]
    """Its end is due by then."""

    __table_args__ = (
        Index(None, "rollout_id", "device_id", unique=True),
        Index(None, "rollout_id", "state"),
        Index(None, "device_id", "kind", "state"),
    )


class ExecutionChange(Base):
    """An execution went into ``state``: the whole course of it, in order."""

    __tablename__ = "execution_change"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    execution_id: Mapped[str] = mapped_column(ForeignKey("execution.id"))
    state: Mapped[str] = mapped_column(String(12))
    text: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[float]

    __table_args__ = (Index(None, "execution_id", "id"),)


class DeviceRelease(Base):
    """What a device says it runs, of each kind; ``release_id`` is None if no release of ours is that."""

    __tablename__ = "device_release"

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    version: Mapped[str] = mapped_column(String(40))
    release_id: Mapped[int | None] = mapped_column(ForeignKey("release.id"))
    at: Mapped[float]

    __table_args__ = (Index(None, "kind", "release_id"),)
