"""What needs attention, and the numbers of the whole fleet."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from sqlalchemy import ColumnElement, Integer, Select, cast, func, select
from sqlalchemy.orm import Session

from coordinator.store.models import (
    Assignment,
    Device,
    Event,
    ExecutionChange,
    Input,
    Metric,
    Release,
    Rollout,
    StatusChange,
    Telemetry,
    Update,
)
from coordinator.store.queries.devices import FLAGS, status_counts
from coordinator.store.queries.history import EventRow, events
from coordinator.store.queries.page import Order, slot
from coordinator.store.queries.runs import RunRow, runs

LATELY: Final = 3600.0
"""Seconds for which a refused update stays on the list, and over which throughput is drawn."""
DAY: Final = 86_400.0
"""Seconds for which a rollout that was aborted stays on the list."""
EXAMPLES: Final = 4


@frozen
class Case:
    """One thing the attention is about; ``since`` in seconds since 1970, ``note`` says more."""

    id: str
    name: str
    since: float | None
    note: str


@frozen
class Attention:
    """``count`` devices (or runs) with the same trouble, and the first few of them.

    Kind: refused, offline, late, hot, low-disk, no-data, no-spool (about devices), idle-run (about runs) or rollout.
    """

    kind: str
    count: int
    cases: tuple[Case, ...]


@frozen(kw_only=True)
class Overview:
    """``per_minute`` holds the updates of each of the last 60 minutes, oldest first, the running one last."""

    attention: tuple[Attention, ...]
    statuses: dict[str, int]
    devices: int
    working: int
    running: tuple[RunRow, ...]
    events: tuple[EventRow, ...]
    per_minute: tuple[int, ...]
    updates: int
    accuracy: float | None
    accuracy_run: str | None
    accuracy_at: float | None


def overview(session: Session, now: float) -> Overview:
    """The fleet at a glance."""
    statuses = status_counts(session)
    working = select(func.count(Assignment.device_id.distinct())).where(Assignment.state.in_(("offered", "taken")))
    running = runs(session, Order("created", descending=True, size=20), now, state="running").rows
    newest = session.execute(
        select(Metric.value, Metric.run_id, Metric.at)
        .where(Metric.name == "accuracy", Metric.run_id == _newest_run())
        .order_by(Metric.version.desc())
        .limit(1)
    ).one_or_none()
    return Overview(
        attention=_attention(session, running, now),
        statuses=statuses,
        devices=sum(statuses.values()),
        working=session.scalar(working) or 0,
        running=running,
        events=events(session, limit=15),
        per_minute=throughput(session, now),
        updates=session.scalar(select(func.count()).select_from(Update)) or 0,
        accuracy=newest[0] if newest else None,
        accuracy_run=newest[1] if newest else None,
        accuracy_at=newest[2] if newest else None,
    )


def throughput(session: Session, now: float, minutes: int = 60) -> tuple[int, ...]:
    """Updates in each of the last ``minutes`` minutes, oldest first; the last one is not over yet."""
    origin = now - now % 60 - 60 * (minutes - 1)
    place = slot(Update.at, origin, 60)
    counts = dict(
        session.execute(select(place, func.count()).where(Update.at >= origin, Update.at <= now).group_by(place)).all()
    )
    return tuple(counts.get(minute, 0) for minute in range(minutes))


def cursor(session: Session, *, telemetry: bool = False) -> str:
    """An opaque word that changes with whatever the pages show, with heartbeats only if wanted."""
    newest: list[Any] = [Event.seq, Update.id, Input.seq, StatusChange.id, ExecutionChange.id]
    if telemetry:
        newest.append(Telemetry.id)
    found = session.execute(select(*(select(func.max(column)).scalar_subquery() for column in newest))).one()
    return ".".join(f"{value or 0:x}" for value in found)


def _newest_run() -> Any:
    return select(Metric.run_id).where(Metric.name == "accuracy").order_by(Metric.at.desc()).limit(1).scalar_subquery()


def _attention(session: Session, running: tuple[RunRow, ...], now: float) -> tuple[Attention, ...]:
    found = [
        _stopped_rollouts(session, now - DAY),
        _refused(session, now - LATELY),
        _with_status(session, "offline"),
        _with_status(session, "late"),
        *(_flagged(session, flag) for flag in FLAGS),
        _idle_runs(running, now),
    ]
    return tuple(one for one in found if one.count)


def _with_status(session: Session, status: str) -> Attention:
    condition = Device.status == status
    reason = (
        select(StatusChange.reason)
        .where(StatusChange.device_id == Device.id, StatusChange.new == status)
        .order_by(StatusChange.at.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = select(Device.id, Device.name, Device.status_at, reason).where(condition).order_by(Device.status_at.desc())
    return _cases(session, status, condition, query)


def _flagged(session: Session, flag: str) -> Attention:
    measured = {"hot": "temperature", "low-disk": "disk_free", "no-data": "waiting", "no-spool": "waiting"}[flag]
    condition = FLAGS[flag] & Device.status.not_in(("revoked", "offline"))
    told = Device.telemetry[measured]
    value = told.as_string() if measured == "waiting" else told.as_float()
    worst = value.desc() if flag == "hot" else value.asc()
    query = select(Device.id, Device.name, Device.last_seen_at, value).where(condition).order_by(worst)
    return _cases(session, flag, condition, query)


def _cases(session: Session, kind: str, condition: ColumnElement[bool], query: Select[*tuple[Any, ...]]) -> Attention:
    count = session.scalar(select(func.count()).select_from(Device).where(condition)) or 0
    rows = session.execute(query.limit(EXAMPLES)) if count else ()
    return Attention(
        kind,
        count,
        tuple(Case(id, name, since, "" if note is None else str(note)) for id, name, since, note in rows),
    )


def _refused(session: Session, since: float) -> Attention:
    """Devices whose updates were refused since then, with the last reason."""
    by_device = (
        select(Update.device_id, func.count().label("count"), func.max(Update.id).label("newest"))
        .where(Update.outcome == "refused", Update.at >= since)
        .group_by(Update.device_id)
        .subquery()
    )
    count = session.scalar(select(func.count()).select_from(by_device)) or 0
    query = (
        select(Device.id, Device.name, Update.at, Update.reason, cast(by_device.c.count, Integer))
        .join(by_device, by_device.c.device_id == Device.id)
        .join(Update, Update.id == by_device.c.newest)
        .order_by(by_device.c.count.desc(), Update.id.desc())
        .limit(EXAMPLES)
    )
    rows = session.execute(query) if count else ()
    return Attention(
        "refused",
        count,
        tuple(
            Case(id, name, at, f"{times} × {reason}" if times > 1 else reason) for id, name, at, reason, times in rows
        ),
    )


def _idle_runs(running: tuple[RunRow, ...], now: float) -> Attention:
    """Running runs that no device works for, given a minute to find some."""
    idle = [run for run in running if not run.active and now - run.created_at > 60]
    cases = tuple(Case(run.id, run.id, run.created_at, "no device has work of this run") for run in idle[:EXAMPLES])
    return Attention("idle-run", len(idle), cases)


def _stopped_rollouts(session: Session, since: float) -> Attention:
    """Rollouts that wait for somebody, or were aborted since then."""
    lately = (Rollout.state == "aborted") & (Rollout.state_at >= since)
    wanted = (
        select(Rollout.id, Release.kind, Release.version, Rollout.state, Rollout.state_at, Rollout.reason)
        .join(Release, Release.id == Rollout.release_id)
        .where((Rollout.state == "paused") | lately)
        .order_by(Rollout.state_at.desc())
    )
    rows = session.execute(wanted).all()
    cases = tuple(
        Case(str(row.id), f"{row.kind} {row.version}", row.state_at, f"{row.state}: {row.reason}")
        for row in rows[:EXAMPLES]
    )
    return Attention("rollout", len(rows), cases)
