"""Models: the specifications known, which runs train them, and the versions those runs made."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session, aliased

from coordinator.errors import ShoalError
from coordinator.store.models import Metric, Model, ModelVersion, Release, Run, Snapshot
from coordinator.store.queries.page import Columns, Order, Page

_accuracy, _loss = aliased(Metric), aliased(Metric)

SORTS: Final[Columns] = {
    "version": ModelVersion.version,
    "at": ModelVersion.at,
    "updates": ModelVersion.updates,
    "step_norm": ModelVersion.step_norm,
    "accuracy": _accuracy.value,
    "loss": _loss.value,
}


@frozen(kw_only=True)
class ModelRow:
    """A specification that runs train; ``best_accuracy`` is the best of all of them, ``last_run`` when one began."""

    sha256: str
    name: str
    spec: dict[str, Any]
    created_at: float
    runs: int
    best_accuracy: float | None
    last_run: float | None


@frozen
class ReleaseName:
    """A release of a model."""

    id: int
    version: str


@frozen(kw_only=True)
class VersionRow:
    """A version of a run's model. ``sha256`` is its weights' hash, ``updates`` how many it merged; ``kept`` says
    whether its weights can still be had, ``releases`` as what it was released."""

    version: int
    at: float
    sha256: str
    updates: int
    step_norm: float
    accuracy: float | None
    loss: float | None
    kept: bool
    releases: tuple[ReleaseName, ...] = ()


def models(session: Session) -> tuple[ModelRow, ...]:
    """All specifications that were ever trained, by name."""
    return tuple(_row(*row) for row in session.execute(_models().order_by(func.lower(Model.name), Model.created_at)))


def model(session: Session, sha256: str) -> ModelRow:
    """One specification by its hash; ShoalError not-found."""
    found = session.execute(_models().where(Model.spec_sha256 == sha256)).one_or_none()
    if found is None:
        raise ShoalError("not-found", f"There is no model {sha256[:80]!r}")
    return _row(*found)


def model_of(session: Session, run: str) -> ModelRow:
    """The specification that a run trains; ShoalError not-found."""
    sha256 = session.scalar(select(Model.spec_sha256).join(Run, Run.model_id == Model.id).where(Run.id == run))
    if sha256 is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    return model(session, sha256)


def runs_of(session: Session, sha256: str, limit: int = 100) -> tuple[str, ...]:
    """The ids of the runs that train a model, the newest first."""
    query = select(Run.id).join(Model, Model.id == Run.model_id).where(Model.spec_sha256 == sha256)
    return tuple(session.scalars(query.order_by(Run.created_at.desc(), Run.id).limit(limit)))


def versions(session: Session, run: str, order: Order) -> Page[VersionRow]:
    """One page of a run's versions."""
    newest = session.scalar(select(Run.version).where(Run.id == run))
    if newest is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    total = session.scalar(select(func.count()).select_from(ModelVersion).where(ModelVersion.run_id == run)) or 0
    query = (
        select(ModelVersion, _accuracy.value, _loss.value)
        .outerjoin(_accuracy, _measured(_accuracy, run, "accuracy"))
        .outerjoin(_loss, _measured(_loss, run, "loss"))
        .where(ModelVersion.run_id == run)
        .order_by(*order.by(SORTS, ModelVersion.version))
    )
    kept = {newest, *session.scalars(select(Snapshot.version).where(Snapshot.run_id == run))}
    released: dict[int | None, list[ReleaseName]] = {}
    named = select(Release.model_version, Release.id, Release.version).where(Release.run_id == run)
    for number, id, name in session.execute(named.order_by(Release.number)):
        released.setdefault(number, []).append(ReleaseName(id, name))
    return Page(
        tuple(
            VersionRow(
                version=made.version,
                at=made.at,
                sha256=made.sha256,
                updates=made.updates,
                step_norm=made.step_norm,
                accuracy=accuracy,
                loss=loss,
                kept=made.version in kept,
                releases=tuple(released.get(made.version, ())),
            )
            for made, accuracy, loss in session.execute(query.limit(order.size).offset(order.offset))
        ),
        total,
        order,
    )


def _models() -> Select[Any]:
    runs = (
        select(Run.model_id, func.count().label("runs"), func.max(Run.created_at).label("last"))
        .group_by(Run.model_id)
        .subquery()
    )
    best = (
        select(Run.model_id, func.max(Metric.value).label("best"))
        .join(Metric, and_(Metric.run_id == Run.id, Metric.name == "accuracy"))
        .group_by(Run.model_id)
        .subquery()
    )
    return (
        select(Model, runs.c.runs, best.c.best, runs.c.last)
        .outerjoin(runs, runs.c.model_id == Model.id)
        .outerjoin(best, best.c.model_id == Model.id)
    )


def _row(model: Model, runs: int | None, best: float | None, last: float | None) -> ModelRow:
    return ModelRow(
        sha256=model.spec_sha256,
        name=model.name,
        spec=model.spec,
        created_at=model.created_at,
        runs=runs or 0,
        best_accuracy=best,
        last_run=last,
    )


def _measured(metric: Any, run: str, name: str) -> Any:
    return and_(metric.run_id == run, metric.name == name, metric.version == ModelVersion.version)
