"""Where a version of a model comes from: every version, update, assignment and device that made it, and the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import (
    Assignment,
    Device,
    DeviceRelease,
    Metric,
    Model,
    ModelVersion,
    Release,
    Run,
    Update,
)

CHUNK: Final = 1000

_UPDATE = (
    "assignment_id",
    "commit",
    "device_id",
    "base_version",
    "applied_version",
    "staleness",
    "width",
    "weight",
    "samples",
    "steps",
    "loss",
    "accuracy",
    "norm",
    "bytes_up",
    "sha256",
    "at",
)


def running(session: Session, device: str) -> dict[str, Any]:
    """The released model that a device says it runs, and since when: what :func:`origin` goes back from. ShoalError
    not-found for a device that is unknown or runs none of ours."""
    known = session.scalar(select(Device.id).where((Device.id == device) | (Device.name == device)).limit(1))
    if known is None:
        raise ShoalError("not-found", f"There is no device {device[:80]!r}")
    said = session.get(DeviceRelease, (known, "model"))
    release = session.get(Release, said.release_id) if said is not None and said.release_id is not None else None
    if said is None or release is None or release.run_id is None:
        what = "no released model" if said is None else f"model {said.version}, which was not released from a run here"
        raise ShoalError("not-found", f"Device {known} runs {what}")
    told = {"version": release.version, "manifest": release.sha256, "released_at": release.created_at}
    return {
        "device": known,
        "since": said.at,
        "release": {**told, "released_by": release.created_by},
        "run": release.run_id,
        "version": release.model_version,
    }


def origin(session: Session, run: str, version: int | None = None) -> dict[str, Any]:
    """What a version (the newest by default) began with: run, recipe, model, seed, first weights, hash and metrics.
    ShoalError not-found."""
    row = session.get(Run, run)
    if row is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    version = row.version if version is None else version
    made = session.get(ModelVersion, (run, version))
    if made is None:
        raise ShoalError("not-found", f"Run {run} has no version {version}, its newest is {row.version}")
    model = session.get_one(Model, row.model_id)
    metrics = session.execute(select(Metric.name, Metric.value).where(Metric.run_id == run, Metric.version == version))
    return {
        "run": run,
        "version": version,
        "sha256": made.sha256,
        "at": made.at,
        "metrics": {name: value for name, value in metrics},  # noqa: C416 - rows are no pairs to dict()
        "model": {"name": model.name, "spec_sha256": model.spec_sha256, "spec": model.spec},
        "recipe": {"name": row.recipe_name, "toml": row.recipe},
        "seed": row.seed,
        "initial_sha256": row.initial_sha256,
        "started_by": row.created_by,
        "started_at": row.created_at,
    }


def versions(session: Session, run: str, version: int) -> Iterator[dict[str, Any]]:
    """Every version up to this one, oldest first, each with the updates it merged; read as they are taken."""
    updates = _updates(session, run, version)
    waiting = next(updates, None)
    query = select(ModelVersion).where(ModelVersion.run_id == run, ModelVersion.version <= version)
    for row in _streamed(session, query.order_by(ModelVersion.version)):
        made: ModelVersion = row[0]
        merged = []
        while waiting is not None and waiting["applied_version"] <= made.version:
            merged.append(waiting)
            waiting = next(updates, None)
        shown = {"version": made.version, "sha256": made.sha256, "step_norm": made.step_norm, "at": made.at}
        yield {**shown, "updates": merged}


def devices(session: Session, run: str, version: int) -> Iterator[dict[str, Any]]:
    """Every device that has a part in it."""
    part = select(Update.device_id).where(Update.run_id == run, Update.applied_version <= version).distinct()
    for row in _streamed(session, select(Device).where(Device.id.in_(part)).order_by(Device.id)):
        one: Device = row[0]
        yield {
            "id": one.id,
            "name": one.name,
            "group": one.group,
            "capability": one.capability,
            "enrolled_at": one.enrolled_at,
            "token": one.token_id,
            "samples": one.samples,
        }


def _updates(session: Session, run: str, version: int) -> Iterator[dict[str, Any]]:
    columns = [getattr(Update, name) for name in _UPDATE]
    offered = (Assignment.artifact_sha256, Assignment.weights_sha256, Assignment.offered_at)
    query = (
        select(*columns, *offered)
        .join(Assignment, Assignment.id == Update.assignment_id)
        .where(Update.run_id == run, Update.applied_version <= version)
        .order_by(Update.applied_version, Update.id)
    )
    for row in _streamed(session, query):
        yield dict(row._mapping)


def _streamed(session: Session, query: Any) -> Iterator[Any]:
    yield from session.execute(query, execution_options={"yield_per": CHUNK})
