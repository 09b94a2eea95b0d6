"""Devices: the list, one of them, its status changes and its telemetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen
from sqlalchemy import ColumnElement, Row, Select, case, func, or_, select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import Assignment, Command, Device, DeviceTag, StatusChange, Telemetry, Update
from coordinator.store.queries.page import Columns, Order, Page, slot
from coordinator.store.registry import STATUSES

HOT: Final = 80.0
"""°C from which a device counts as hot: where a Raspberry Pi starts to slow itself down."""
LOW_DISK: Final = 256 << 20
"""Bytes free below which a device counts as low on disk: two models, their updates and a release must fit."""

_temperature = Device.telemetry["temperature"].as_float()
_disk_free = Device.telemetry["disk_free"].as_float()
_since = Device.telemetry["since"].as_float()
_is_open = Assignment.state.in_(("offered", "taken"))

FLAGS: Final[Mapping[str, ColumnElement[bool]]] = {
    "hot": _temperature >= HOT,
    "low-disk": _disk_free < LOW_DISK,
    "no-data": Device.telemetry["state"].as_string() == "no-data",
    "no-spool": Device.telemetry["state"].as_string() == "no-spool",
}

_count_updates = select(
    Update.device_id,
    func.count().label("updates"),
    func.count(case((Update.outcome == "applied", 1))).label("applied"),
    func.max(Update.at).label("last_update"),
).group_by(Update.device_id)
_totals = _count_updates.subquery()

SORTS: Final[Columns] = {
    "name": func.lower(Device.name),
    "status": Device.status,
    "since": Device.status_at,
    "group": func.lower(Device.group),
    "last_seen": Device.last_seen_at,
    "width": Assignment.width,
    "version": Assignment.version,
    "applied": func.coalesce(_totals.c.applied, 0),
    "updates": func.coalesce(_totals.c.updates, 0),
    "last_update": _totals.c.last_update,
    "samples": Device.samples,
    "runtime": Device.runtime,
    "agent": Device.agent,
    "temperature": _temperature,
    "speed": Device.capability["speed"]["1"].as_float(),
    "goodput": Device.telemetry["goodput"].as_float(),
    "memory_free": Device.telemetry["memory_free"].as_float(),
    "disk_free": _disk_free,
    "training_share": case((_since > 0, Device.telemetry["training"].as_float() / _since)),
}
_FROM_UPDATES = ("applied", "updates", "last_update")


@frozen(kw_only=True)
class DeviceFilter:
    """Every condition given must hold. ``text`` is looked for in name, id, group, tags, agent and runtime."""

    status: str = ""
    group: str = ""
    text: str = ""
    flag: str = ""
    tag: str = ""

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.status:
            if self.status not in STATUSES:
                raise ShoalError(
                    "bad-request", f"status is {self.status[:40]!r}, expected one of {', '.join(STATUSES)}"
                )
            found.append(Device.status == self.status)
        if self.group:
            found.append(Device.group == self.group)
        if self.tag:
            found.append(_tagged(DeviceTag.tag == self.tag))
        if self.flag:
            if self.flag not in FLAGS:
                raise ShoalError("bad-request", f"flag is {self.flag[:40]!r}, expected one of {', '.join(FLAGS)}")
            found.append(FLAGS[self.flag])
        if self.text:
            columns = (Device.name, Device.id, Device.group, Device.agent, Device.runtime)
            tagged = _tagged(DeviceTag.tag.icontains(self.text, autoescape=True))
            found.append(or_(tagged, *(column.icontains(self.text, autoescape=True) for column in columns)))
        return found


def _tagged(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return Device.id.in_(select(DeviceTag.device_id).where(condition))


@frozen(kw_only=True)
class DeviceRow:
    """A device in the list. ``since`` is when the status began; times in seconds since 1970, sizes in bytes.

    ``assignment``, ``run``, ``version``, ``width``, ``step`` and ``steps`` are those of the open assignment,
    None without one. ``speed`` is what a step of the reference model takes at width 1, in ms, ``goodput`` that of its
    uploads in bytes/s. ``training_share`` is the part of the agent's life spent on training steps, 0 to 1.
    """

    id: str
    name: str
    group: str
    status: str
    since: float
    last_seen: float | None
    assignment: str | None
    run: str | None
    version: int | None
    width: float | None
    step: int | None
    steps: int | None
    applied: int
    updates: int
    last_update: float | None
    samples: int | None
    runtime: str
    agent: str
    speed: float | None
    goodput: float | None
    metered: bool
    temperature: float | None
    memory: int | None
    memory_free: int | None
    disk_free: int | None
    training_share: float | None
    flags: tuple[str, ...]
    tags: tuple[str, ...]


@frozen(kw_only=True)
class DeviceDetail:
    """One device in full: its row, what it is and how its updates ended."""

    row: DeviceRow
    capability: dict[str, Any]
    enrolled_at: float
    token: str | None
    pending_at: float | None
    paused_at: float | None
    quarantined_at: float | None
    quarantine: str
    revoked_at: float | None
    telemetry: dict[str, Any]
    outcomes: dict[str, int]
    bytes_up: int
    bytes_down: int


@frozen
class StatusRow:
    at: float
    old: str
    new: str
    reason: str


@frozen
class CommandRow:
    """State: open, done, refused, failed or expired; ``text`` is the device's answer."""

    id: str
    kind: str
    state: str
    text: str
    by: str
    at: float
    expires_at: float
    ended_at: float | None


@frozen
class TelemetryPoint:
    """Means over a span of time that begins at ``at``; None where nothing was measured."""

    at: float
    temperature: float | None
    load: float | None
    memory_free: float | None
    disk_free: float | None
    spool: float | None


def devices(session: Session, wanted: DeviceFilter, order: Order) -> Page[DeviceRow]:
    """One page of the devices that pass the filter, in four statements whatever its size."""
    conditions = wanted.conditions()
    total = session.scalar(select(func.count()).select_from(Device).where(*conditions)) or 0
    query = _with_assignment().where(*conditions)
    if order.sort in _FROM_UPDATES:
        query = query.outerjoin(_totals, _totals.c.device_id == Device.id)
    query = query.order_by(*order.by(SORTS, Device.id)).limit(order.size).offset(order.offset)
    return Page(_rows(session, session.execute(query).all()), total, order)


def device(session: Session, id: str) -> DeviceDetail:
    """One device by its id; ShoalError not-found."""
    found = session.execute(_with_assignment().where(Device.id == id)).one_or_none()
    if found is None:
        raise ShoalError("not-found", f"There is no device {id[:80]!r}")
    entity: Device = found[0]
    sums = session.execute(
        select(Update.outcome, func.count(), func.sum(Update.bytes_up), func.sum(Update.bytes_down))
        .where(Update.device_id == id)
        .group_by(Update.outcome)
    ).all()
    return DeviceDetail(
        row=_rows(session, [found])[0],
        capability=entity.capability,
        enrolled_at=entity.enrolled_at,
        token=entity.token_id,
        pending_at=entity.pending_at,
        paused_at=entity.paused_at,
        quarantined_at=entity.quarantined_at,
        quarantine=entity.quarantine,
        revoked_at=entity.revoked_at,
        telemetry=entity.telemetry or {},
        outcomes={outcome: int(count) for outcome, count, _, _ in sums},
        bytes_up=sum(int(up) for _, _, up, _ in sums),
        bytes_down=sum(int(down) for _, _, _, down in sums),
    )


def groups(session: Session) -> tuple[str, ...]:
    """The names of all groups that have a device, without the empty one."""
    return tuple(session.scalars(select(Device.group).where(Device.group != "").distinct().order_by(Device.group)))


def status_counts(session: Session) -> dict[str, int]:
    """How many devices have each status, in the order of a device's life, without zeros."""
    counts = {
        status: int(count)
        for status, count in session.execute(select(Device.status, func.count()).group_by(Device.status))
    }
    return {status: counts[status] for status in STATUSES if status in counts}


def status_changes(session: Session, device: str, limit: int = 50) -> tuple[StatusRow, ...]:
    """The device's last changes of status, newest first."""
    query = (
        select(StatusChange.at, StatusChange.old, StatusChange.new, StatusChange.reason)
        .where(StatusChange.device_id == device)
        .order_by(StatusChange.at.desc(), StatusChange.id.desc())
        .limit(limit)
    )
    return tuple(StatusRow(*row) for row in session.execute(query))


def device_ids(session: Session, wanted: DeviceFilter) -> list[str]:
    """The ids of all devices that pass the filter, revoked ones left out."""
    conditions = (*wanted.conditions(), Device.revoked_at.is_(None))
    return list(session.scalars(select(Device.id).where(*conditions).order_by(Device.id)))


def commands(session: Session, device: str, limit: int = 50) -> tuple[CommandRow, ...]:
    """What a device was told to do, the newest first."""
    rows = select(Command).where(Command.device_id == device).order_by(Command.created_at.desc(), Command.id)
    return tuple(
        CommandRow(row.id, row.kind, row.state, row.text, row.created_by, row.created_at, row.expires_at, row.ended_at)
        for row in session.scalars(rows.limit(limit))
    )


def telemetry(
    session: Session, device: str, since: float, until: float, points: int = 240
) -> tuple[TelemetryPoint, ...]:
    """The heartbeats from ``since`` until ``until`` (s since 1970) as at most ``points`` means."""
    origin = int(since)
    seconds = max(1, -(-int(until - origin + 1) // points))
    place = slot(Telemetry.at, origin, seconds)
    columns = (
        Telemetry.temperature,
        Telemetry.load,
        Telemetry.memory_free,
        Telemetry.disk_free,
        Telemetry.spool,
    )
    query = (
        select(place, *(func.avg(column) for column in columns))
        .where(Telemetry.device_id == device, Telemetry.at >= since, Telemetry.at <= until)
        .group_by(place)
        .order_by(place)
    )
    return tuple(
        TelemetryPoint(float(origin + index * seconds), *(None if value is None else float(value) for value in values))
        for index, *values in session.execute(query)
    )


def _with_assignment() -> Select[*tuple[Any, ...]]:
    return select(Device, Assignment).outerjoin(Assignment, (Assignment.id == Device.assignment_id) & _is_open)


def _rows(session: Session, found: Sequence[Row[*tuple[Any, ...]]]) -> tuple[DeviceRow, ...]:
    """Rows of (device, its open assignment or None), with what their updates came to."""
    ids = [device.id for device, _ in found]
    totals = {row.device_id: row for row in session.execute(_count_updates.where(Update.device_id.in_(ids)))}
    tags: dict[str, list[str]] = {}
    for tagged in session.execute(select(DeviceTag).where(DeviceTag.device_id.in_(ids)).order_by(DeviceTag.tag)):
        tags.setdefault(tagged[0].device_id, []).append(tagged[0].tag)
    return tuple(
        _row(device, assignment, totals.get(device.id), tuple(tags.get(device.id, ()))) for device, assignment in found
    )


def _row(
    device: Device, assignment: Assignment | None, totals: Row[*tuple[Any, ...]] | None, tags: tuple[str, ...]
) -> DeviceRow:
    beat = device.telemetry or {}
    of_assignment = assignment is not None and beat.get("assignment") == assignment.id
    life = beat.get("since") or 0
    temperature, disk_free = beat.get("temperature"), beat.get("disk_free")
    flags = {
        "hot": temperature is not None and temperature >= HOT,
        "low-disk": disk_free is not None and disk_free < LOW_DISK,
        "no-data": beat.get("state") == "no-data",
        "no-spool": beat.get("state") == "no-spool",
    }
    return DeviceRow(
        id=device.id,
        name=device.name,
        group=device.group,
        status=device.status,
        since=device.status_at,
        last_seen=device.last_seen_at,
        assignment=assignment.id if assignment else None,
        run=assignment.run_id if assignment else None,
        version=assignment.version if assignment else None,
        width=assignment.width if assignment else None,
        step=beat.get("step") if of_assignment else None,
        steps=assignment.plan.get("steps") if assignment else None,
        applied=totals.applied if totals else 0,
        updates=totals.updates if totals else 0,
        last_update=totals.last_update if totals else None,
        samples=device.samples,
        runtime=device.runtime,
        agent=device.agent,
        speed=(device.capability.get("speed") or {}).get("1"),
        goodput=beat.get("goodput"),
        metered=bool(beat.get("metered")),
        temperature=temperature,
        memory=beat.get("memory"),
        memory_free=beat.get("memory_free"),
        disk_free=disk_free,
        training_share=beat.get("training", 0) / life if life > 0 else None,
        flags=tuple(flag for flag, raised in flags.items() if raised),
        tags=tags,
    )
