"""Releases, their rollouts, and how far each device is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from coordinator.errors import ShoalError
from coordinator.store.models import Device, DeviceRelease, Execution, ExecutionChange, Release, Rollout
from coordinator.store.queries.page import Columns, Order, Page

_before = aliased(Release)

EXECUTION_SORTS: Final[Columns] = {
    "place": Execution.wave * 1_000_000 + Execution.place,
    "device": func.lower(Device.name),
    "state": Execution.state,
    "since": Execution.state_at,
    "attempts": Execution.attempts,
}


@frozen(kw_only=True)
class ReleaseRow:
    """A release in the list. ``devices`` say that they run it; ``size`` in bytes is that of all its files."""

    id: int
    kind: str
    version: str
    number: int
    sha256: str
    files: int
    size: int
    run: str | None
    model_version: int | None
    notes: str
    devices: int
    created_by: str
    created_at: float
    expires_at: float
    withdrawn_at: float | None


@frozen(kw_only=True)
class ReleaseDetail:
    """A release in full; ``manifest`` is the text that ``signature`` is over."""

    row: ReleaseRow
    manifest: str
    signature: str
    rollouts: tuple[int, ...]


@frozen(kw_only=True)
class RolloutRow:
    """A rollout in the list. ``states`` counts its devices; ``wave`` of ``waves`` is under way, from 1."""

    id: int
    release: int
    kind: str
    version: str
    state: str
    pause: str
    reason: str
    wave: int
    waves: int
    devices: int
    states: dict[str, int]
    back_of: int | None
    created_by: str
    created_at: float
    state_at: float
    ended_at: float | None


@frozen(kw_only=True)
class WaveRow:
    """One wave, from 1. State: waiting, running or passed."""

    wave: int
    state: str
    devices: int
    states: dict[str, int]


@frozen(kw_only=True)
class RolloutDetail:
    """A rollout in full. ``passed_at``: since when the gate of the wave under way holds."""

    row: RolloutRow
    rules: dict[str, Any]
    target: dict[str, Any]
    waves: tuple[WaveRow, ...]
    wave_at: float
    passed_at: float | None


@frozen(kw_only=True)
class ExecutionRow:
    """How far one device is. ``version`` is what it is to run, ``before`` what it ran, if that was a release."""

    id: str
    rollout: int
    device: str
    name: str
    wave: int
    state: str
    since: float
    text: str
    kind: str
    version: str
    before: str | None
    attempts: int
    retry_at: float | None
    accepted_at: float | None
    facts: dict[str, Any]


@frozen
class ChangeRow:
    at: float
    state: str
    text: str


@frozen
class DeployedRow:
    """What a device says it runs of a kind; ``release`` is None if no release of ours is that."""

    kind: str
    version: str
    release: int | None
    at: float


def releases(session: Session, kind: str = "") -> tuple[ReleaseRow, ...]:
    """All releases, the newest first; those of one kind if one is given."""
    counted = select(DeviceRelease.release_id, func.count()).group_by(DeviceRelease.release_id)
    devices: dict[int | None, int] = {release: count for release, count in session.execute(counted)}  # noqa: C416
    wanted = select(Release).order_by(Release.created_at.desc(), Release.id.desc())
    found = session.scalars(wanted.where(Release.kind == kind) if kind else wanted)
    return tuple(_release(row, devices.get(row.id, 0)) for row in found)


def release(session: Session, named: str) -> ReleaseDetail:
    """One release by its id, or by kind and version as in ``agent-0.2.0``; ShoalError not-found."""
    kind, _, version = named.partition("-")
    mine = Release.id == int(named) if named.isdecimal() and len(named) < 16 else None
    row = session.scalar(
        select(Release).where(mine if mine is not None else (Release.kind == kind) & (Release.version == version))
    )
    if row is None:
        raise ShoalError("not-found", f"There is no release {named[:60]!r}; agent-0.2.0 or an id would name one")
    devices = session.scalar(select(func.count()).where(DeviceRelease.release_id == row.id)) or 0
    rollouts = session.scalars(select(Rollout.id).where(Rollout.release_id == row.id).order_by(Rollout.id.desc()))
    return ReleaseDetail(
        row=_release(row, devices), manifest=row.manifest, signature=row.signature, rollouts=tuple(rollouts)
    )


def rollouts(session: Session, limit: int = 100) -> tuple[RolloutRow, ...]:
    """The newest rollouts first."""
    wanted = select(Rollout, Release.kind, Release.version).join(Release, Release.id == Rollout.release_id)
    found = session.execute(wanted.order_by(Rollout.id.desc()).limit(limit)).all()
    return tuple(_rollout(session, row, kind, version)[0] for row, kind, version in found)


def rollout(session: Session, id: int) -> RolloutDetail:
    """One rollout; ShoalError not-found."""
    wanted = select(Rollout, Release.kind, Release.version).join(Release, Release.id == Rollout.release_id)
    found = session.execute(wanted.where(Rollout.id == id)).one_or_none()
    if found is None:
        raise ShoalError("not-found", f"There is no rollout {id}")
    row: Rollout = found[0]
    shown, waves = _rollout(session, row, found[1], found[2])
    open_ = row.state in ("running", "paused")
    states = {number: _wave_state(number, row.wave, open_, counted) for number, counted in waves.items()}
    return RolloutDetail(
        row=shown,
        rules=row.rules,
        target=row.target,
        waves=tuple(
            WaveRow(wave=number + 1, state=states[number], devices=sum(counted.values()), states=counted)
            for number, counted in sorted(waves.items())
        ),
        wave_at=row.wave_at,
        passed_at=row.passed_at,
    )


def executions(session: Session, rollout: int, order: Order, state: str = "") -> Page[ExecutionRow]:
    """A page of the devices of a rollout; those in one state if one is given."""
    conditions = [Execution.rollout_id == rollout, *([Execution.state == state] if state else [])]
    total = session.scalar(select(func.count()).select_from(Execution).where(*conditions)) or 0
    query = _executions().where(*conditions).order_by(*order.by(EXECUTION_SORTS, Execution.id))
    return Page(_execution_rows(session, query.limit(order.size).offset(order.offset)), total, order)


def executions_of(session: Session, device: str, limit: int = 20) -> tuple[ExecutionRow, ...]:
    """What a device was told to run, the newest first."""
    query = _executions().where(Execution.device_id == device).order_by(Execution.rollout_id.desc(), Execution.id)
    return _execution_rows(session, query.limit(limit))


def deployed(session: Session, device: str) -> tuple[DeployedRow, ...]:
    """What a device says it runs, by kind."""
    mine = select(DeviceRelease).where(DeviceRelease.device_id == device).order_by(DeviceRelease.kind)
    return tuple(DeployedRow(row.kind, row.version, row.release_id, row.at) for row in session.scalars(mine))


def course(session: Session, execution: str) -> tuple[ChangeRow, ...]:
    """Every state an execution was in, in order; ShoalError not-found."""
    if session.get(Execution, execution) is None:
        raise ShoalError("not-found", f"There is no execution {execution[:40]!r}")
    mine = select(ExecutionChange).where(ExecutionChange.execution_id == execution).order_by(ExecutionChange.id)
    return tuple(ChangeRow(row.at, row.state, row.text) for row in session.scalars(mine))


def _release(row: Release, devices: int) -> ReleaseRow:
    manifest: Mapping[str, Any] = json.loads(row.manifest)
    files = manifest.get("files", ())
    return ReleaseRow(
        id=row.id,
        kind=row.kind,
        version=row.version,
        number=row.number,
        sha256=row.sha256,
        files=len(files),
        size=sum(int(file["size"]) for file in files),
        run=row.run_id,
        model_version=row.model_version,
        notes=row.notes,
        devices=devices,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=float(manifest["expires_at"]),
        withdrawn_at=row.withdrawn_at,
    )


def _rollout(session: Session, row: Rollout, kind: str, version: str) -> tuple[RolloutRow, dict[int, dict[str, int]]]:
    """A rollout, and its devices by wave and state."""
    counted = (
        select(Execution.wave, Execution.state, func.count())
        .where(Execution.rollout_id == row.id)
        .group_by(Execution.wave, Execution.state)
    )
    waves: dict[int, dict[str, int]] = {}
    states: dict[str, int] = {}
    for wave, state, count in session.execute(counted.order_by(Execution.wave, Execution.state)):
        waves.setdefault(wave, {})[state] = count
        states[state] = states.get(state, 0) + count
    shown = RolloutRow(
        id=row.id,
        release=row.release_id,
        kind=kind,
        version=version,
        state=row.state,
        pause=row.pause,
        reason=row.reason,
        wave=row.wave + 1,
        waves=max(waves, default=0) + 1,
        devices=sum(states.values()),
        states=states,
        back_of=row.back_of,
        created_by=row.created_by,
        created_at=row.created_at,
        state_at=row.state_at,
        ended_at=row.ended_at,
    )
    return shown, waves


def _wave_state(number: int, wave: int, going: bool, counted: Mapping[str, int]) -> str:
    if number > wave:
        return "waiting"
    return "running" if number == wave and going else "passed"


def _executions() -> Select[*tuple[Any, ...]]:
    return (
        select(Execution, Device.name, Release.kind, Release.version, _before.version)
        .join(Device, Device.id == Execution.device_id)
        .join(Release, Release.id == Execution.release_id)
        .outerjoin(_before, _before.id == Execution.before_id)
    )


def _execution_rows(session: Session, query: Select[*tuple[Any, ...]]) -> tuple[ExecutionRow, ...]:
    return tuple(
        ExecutionRow(
            id=row.id,
            rollout=row.rollout_id,
            device=row.device_id,
            name=name,
            wave=row.wave + 1,
            state=row.state,
            since=row.state_at,
            text=row.text,
            kind=kind,
            version=version,
            before=before,
            attempts=row.attempts,
            retry_at=row.retry_at,
            accepted_at=row.accepted_at,
            facts=row.facts or {},
        )
        for row, name, kind, version, before in session.execute(query)
    )
