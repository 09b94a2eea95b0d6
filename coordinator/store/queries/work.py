"""Work: who trains, or trained, what width when, and why that width."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from sqlalchemy import ColumnElement, Row, Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from coordinator.errors import ShoalError
from coordinator.store.models import Assignment, Device, Update
from coordinator.store.queries.flags import flags

MAX_BARS: Final = 4000

_open = Assignment.state.in_(("offered", "taken"))
_begin = func.coalesce(Assignment.taken_at, Assignment.offered_at)
_newest = aliased(Update)
_DRAWN: Final = (
    *(getattr(Assignment, name) for name in ("id", "device_id", "taken_at", "offered_at", "closed_at")),
    *(getattr(Assignment, name) for name in ("state", "width", "version", "reason")),
    *(getattr(_newest, name) for name in ("outcome", "staleness", "scores")),
    *(getattr(_newest, name) for name in ("seconds_download", "seconds_train", "seconds_upload")),
    _newest.reason.label("update_reason"),
)
"""What a bar is made of: plans and explanations of thousands of assignments are dear to read."""


@frozen(kw_only=True)
class Bar:
    """One assignment on the timeline, from ``begin`` to ``end`` (s since 1970; an open one ends now).

    ``outcome`` is that of its newest update, else the assignment's own state.
    """

    assignment: str
    device: str
    name: str
    begin: float
    end: float
    open: bool
    width: float
    version: int
    outcome: str
    staleness: int | None
    reason: str
    flags: dict[str, str]
    seconds_download: float | None
    seconds_train: float | None
    seconds_upload: float | None


@frozen
class Work:
    """The bars of one page of devices: ``devices`` are their names, ``total`` is how many worked then."""

    bars: tuple[Bar, ...]
    devices: tuple[str, ...]
    total: int


@frozen(kw_only=True)
class AssignmentRow:
    """An assignment with what came of it. ``explanation`` is what each policy looked at and decided."""

    id: str
    run: str
    device: str
    name: str
    kind: str
    version: int
    width: float
    plan: dict[str, Any]
    explanation: dict[str, Any]
    state: str
    reason: str
    bytes_down: int
    offered_at: float
    taken_at: float | None
    expires_at: float
    closed_at: float | None
    outcome: str | None
    staleness: int | None
    applied_version: int | None
    update_reason: str
    scores: dict[str, Any]
    """What each gate looked at: {gate: {score: value}}."""
    flags: dict[str, str]
    loss: float | None
    accuracy: float | None


def work(
    session: Session,
    run: str,
    since: float,
    until: float,
    now: float,
    page: int = 1,
    lanes: int = 40,
    device: str | None = None,
) -> Work:
    """What the run's devices did from ``since`` until ``until``: one page of ``lanes`` devices."""
    conditions = _between(run, since, until)
    if device is not None:
        conditions.append(Assignment.device_id == device)
    active = select(Assignment.device_id).where(*conditions).distinct()
    everybody = select(Device.id, Device.name).where(Device.id.in_(active)).order_by(func.lower(Device.name))
    found = session.execute(everybody).all()
    total = len(found)
    names = {row.id: row.name for row in found[(page - 1) * lanes : page * lanes]}
    query = _with_update(*_DRAWN).where(*conditions, Assignment.device_id.in_(names))
    rows = session.execute(query.order_by(_begin.desc()).limit(MAX_BARS)).all()
    bars = tuple(_bar(row, names[row.device_id], now) for row in reversed(rows))
    return Work(bars, tuple(names.values()), total)


def workers(session: Session, run: str, since: float, until: float) -> int:
    """How many of the run's devices worked at any time from ``since`` until ``until``."""
    return session.scalar(select(func.count(Assignment.device_id.distinct())).where(*_between(run, since, until))) or 0


def assignments(
    session: Session,
    *,
    device: str | None = None,
    run: str | None = None,
    only_open: bool = False,
    limit: int = 50,
) -> tuple[AssignmentRow, ...]:
    """The newest assignments of a device, of a run, or of all, newest first."""
    query = _with_update(Assignment, Device.name, _newest).join(Device, Device.id == Assignment.device_id)
    if device is not None:
        query = query.where(Assignment.device_id == device)
    if run is not None:
        query = query.where(Assignment.run_id == run)
    if only_open:
        query = query.where(_open)
    query = query.order_by(Assignment.offered_at.desc(), Assignment.id.desc()).limit(limit)
    return tuple(_assignment(row) for row in session.execute(query))


def why(session: Session, assignment: str) -> AssignmentRow:
    """One assignment, with the plan it was given and the explanation; ShoalError not-found."""
    query = _with_update(Assignment, Device.name, _newest).join(Device, Device.id == Assignment.device_id)
    found = session.execute(query.where(Assignment.id == assignment)).one_or_none()
    if found is None:
        raise ShoalError("not-found", f"There is no assignment {assignment[:80]!r}")
    return _assignment(found)


def _between(run: str, since: float, until: float) -> list[ColumnElement[bool]]:
    own = Assignment.run_id == run
    # Said twice: each half is found by an index of its own.
    return [or_(own & _open, own & (Assignment.closed_at >= since)), _begin <= until]


def _with_update(*columns: Any) -> Select[*tuple[Any, ...]]:
    """Rows of assignments, each with columns of its newest update or None."""
    commits = (
        select(func.max(Update.id)).where(Update.assignment_id == Assignment.id).correlate(Assignment).scalar_subquery()
    )
    return select(*columns).select_from(Assignment).outerjoin(_newest, _newest.id == commits)


def _bar(row: Row[*tuple[Any, ...]], name: str, now: float) -> Bar:
    begin = row.taken_at or row.offered_at
    return Bar(
        assignment=row.id,
        device=row.device_id,
        name=name,
        begin=begin,
        end=max(begin, row.closed_at if row.closed_at is not None else now),
        open=row.state in ("offered", "taken"),
        width=row.width,
        version=row.version,
        outcome=row.outcome or row.state,
        staleness=row.staleness,
        reason=row.update_reason or row.reason,
        flags=flags(row.scores),
        seconds_download=row.seconds_download,
        seconds_train=row.seconds_train,
        seconds_upload=row.seconds_upload,
    )


def _assignment(row: Row[*tuple[Any, ...]]) -> AssignmentRow:
    assignment, name, update = row
    return AssignmentRow(
        id=assignment.id,
        run=assignment.run_id,
        device=assignment.device_id,
        name=name,
        kind=assignment.kind,
        version=assignment.version,
        width=assignment.width,
        plan=assignment.plan,
        explanation=assignment.explanation,
        state=assignment.state,
        reason=assignment.reason,
        bytes_down=assignment.bytes_down,
        offered_at=assignment.offered_at,
        taken_at=assignment.taken_at,
        expires_at=assignment.expires_at,
        closed_at=assignment.closed_at,
        outcome=update.outcome if update else None,
        staleness=update.staleness if update else None,
        applied_version=update.applied_version if update else None,
        update_reason=update.reason if update else "",
        scores=(update.scores or {}) if update else {},
        flags=flags(update.scores) if update else {},
        loss=update.loss if update else None,
        accuracy=update.accuracy if update else None,
    )
