"""The tables of models and runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Key


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
    initial_sha256: Mapped[str | None] = mapped_column(String(64))
    """The blob with the weights of version 0; without one the seed draws them."""
    target: Mapped[float | None] = mapped_column(Float)
    """Test accuracy at which the run ends by itself."""
    dataset: Mapped[str] = mapped_column(Text, default="")
    """The coordinator's own test set, a file in npz format."""
    control: Mapped[bool] = mapped_column(default=False)
    """Whether that file held a control set when the run began."""
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
    temperature: Mapped[float | None] = mapped_column(Float)
    """Of the device's last heartbeat before the offer, as ``load``: heartbeats are not kept for as long."""
    load: Mapped[float | None] = mapped_column(Float)
    offered_at: Mapped[float]
    taken_at: Mapped[float | None]
    expires_at: Mapped[float] = mapped_column(index=True)
    closed_at: Mapped[float | None]

    __table_args__ = (
        Index(None, "run_id", "state"),
        Index(None, "run_id", "closed_at"),
        Index(None, "device_id", "offered_at"),
        Index(None, "run_id", "device_id", "offered_at", "width"),
        Index(None, "offered_at"),
    )


class Amendment(Base):
    """The plan of an assignment changed while its device trained by it; ``number`` counts from 1."""

    __tablename__ = "amendment"

    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[dict[str, Any]]
    at: Mapped[float]


class Refresh(Base):
    """A newer model was sent to a device in mid-training, to be merged with the factors ``merge`` and ``keep``."""

    __tablename__ = "refresh"

    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    merge: Mapped[float] = mapped_column(Float)
    keep: Mapped[float] = mapped_column(Float)
    weights_sha256: Mapped[str] = mapped_column(String(64))
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float]


class Update(Base):
    """One commit of a device. Outcome: stored, applied, stale, refused or expired, each with its reason.

    ``base_version`` is the newest that it builds on, ``merges`` says how others came in since the commit before.
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
    merges: Mapped[list[Any] | None]
    applied_version: Mapped[int | None]
    staleness: Mapped[int | None]
    width: Mapped[float] = mapped_column(Float)
    weight: Mapped[float | None] = mapped_column(Float)
    samples: Mapped[int]
    steps: Mapped[int]
    loss: Mapped[float] = mapped_column(Float)
    accuracy: Mapped[float] = mapped_column(Float)
    norm: Mapped[float | None] = mapped_column(Float)
    scores: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What each gate looked at when it judged: {gate: {score: value}}."""
    holdout_samples: Mapped[int | None]
    holdout_loss: Mapped[float | None] = mapped_column(Float)
    holdout_accuracy: Mapped[float | None] = mapped_column(Float)
    """What the weights it began with reached on the device's own hold-out, at its width."""
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    seconds_download: Mapped[float] = mapped_column(Float)
    seconds_train: Mapped[float] = mapped_column(Float)
    seconds_upload: Mapped[float | None] = mapped_column(Float)
    seconds_total: Mapped[float | None] = mapped_column(Float)
    """From the offer until it was here: what a question would otherwise join every assignment for."""
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
        Index(None, "device_id", "run_id", "outcome"),
    )


class Metric(Base):
    """A measured number of a model version: ``accuracy`` and ``loss`` on the coordinator's test set, the same with
    ``control_`` in front on its control set."""

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
