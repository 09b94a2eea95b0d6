"""The register of devices: when each was last heard, and what follows from that for its status.

All times are seconds since 1970, ``heartbeat`` is the seconds between two signs of life.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store import commands, credentials
from coordinator.store.models import Device, DeviceTag, Event, StatusChange

LATE_AFTER: Final = 2.4
OFFLINE_AFTER: Final = 12
"""Heartbeats without any sign of life: two were missed, and the third is not far."""

STATUSES: Final = ("pending", "new", "idle", "training", "late", "offline", "paused", "quarantined", "revoked")
"""In the order of a device's life."""

PRESENT: Final = ("idle", "training")
"""Of a device that is heard and may train."""

TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")

_VALUES: Final = frozenset({"agent", "runtime", "samples", "labels", "assignment_id", "telemetry", "capability"})
_ROWS: Final = 500


class Standing(Protocol):
    """What a status is derived from; a :class:`Device` or a row with these columns."""

    @property
    def last_seen_at(self) -> float | None: ...
    @property
    def assignment_id(self) -> str | None: ...
    @property
    def pending_at(self) -> float | None: ...
    @property
    def paused_at(self) -> float | None: ...
    @property
    def quarantined_at(self) -> float | None: ...
    @property
    def revoked_at(self) -> float | None: ...


def derive(device: Standing, now: float, heartbeat: float) -> str:
    """One of STATUSES. What an operator decided outweighs what is heard; a device never heard of stays new."""
    if device.revoked_at is not None:
        return "revoked"
    if device.quarantined_at is not None:
        return "quarantined"
    if device.pending_at is not None:
        return "pending"
    if device.paused_at is not None:
        return "paused"
    if device.last_seen_at is None:
        return "new"
    silent = now - device.last_seen_at
    if silent > OFFLINE_AFTER * heartbeat:
        return "offline"
    if silent > LATE_AFTER * heartbeat:
        return "late"
    return "training" if device.assignment_id is not None else "idle"


def deadline(device: Standing, now: float, heartbeat: float) -> float | None:
    """When the status may change by itself: the end of patience with a device that is silent."""
    status = derive(device, now, heartbeat)
    if device.last_seen_at is None or status in ("pending", "paused", "quarantined", "revoked", "offline"):
        return None
    return device.last_seen_at + heartbeat * (OFFLINE_AFTER if status == "late" else LATE_AFTER)


def seen(session: Session, device_id: str, now: float, heartbeat: float, **values: Any) -> None:
    """A sign of life of one device; ``values`` are columns it told: agent, runtime, samples, labels,
    assignment_id, telemetry, capability. ShoalError not-found for a device that is not enrolled."""
    _apply(session, {device_id: {**_known(values), "last_seen_at": now}}, now, heartbeat)


def seen_all(session: Session, signs: Mapping[str, Mapping[str, Any]], now: float, heartbeat: float) -> None:
    """:func:`seen` for many devices, {device id: values}, with a few statements for all of them; who is not enrolled is
    left out, so that a stranger spoils nobody else's sign of life."""
    told = {device: {**_known(values), "last_seen_at": now} for device, values in signs.items()}
    _apply(session, told, now, heartbeat, strangers=True)


def note(session: Session, device_id: str, now: float, heartbeat: float, *, reason: str = "", **values: Any) -> None:
    """Change columns of a device that was not heard now, e.g. its assignment expired; the status follows."""
    _apply(session, {device_id: _known(values)}, now, heartbeat, reason)


def watch(session: Session, now: float, heartbeat: float) -> list[StatusChange]:
    """Devices whose deadline has passed become late, then offline. Returns the changes, the longest silent first.

    At most 500 devices at a time: when a whole fleet falls silent, the writer has other things to do as well.
    """
    overdue = session.execute(
        select(*_STANDING).where(Device.deadline_at < now).order_by(Device.deadline_at).limit(_ROWS)
    ).all()
    changes = []
    for row in overdue:
        status = derive(row, now, heartbeat)
        # Compare and set: who was heard in the meantime is not late.
        moved = session.execute(
            update(Device)
            .where(Device.id == row.id, Device.status == row.status, Device.deadline_at == row.deadline_at)
            .values(status=status, deadline_at=deadline(row, now, heartbeat), **_since(row.status, status, now))
            .execution_options(synchronize_session=False)
        )
        _forget(session, row.id)
        if moved.rowcount and status != row.status:  # type: ignore[attr-defined]
            why = _silence(row, now)
            changes.append(StatusChange(device_id=row.id, old=row.status, new=status, reason=why, at=now))
    session.add_all(changes)
    session.flush()
    return changes


def pause(session: Session, device_id: str, now: float, heartbeat: float, *, by: str) -> None:
    """Give a device no more work until it is resumed; what it trains now may still arrive."""
    device = _device(session, device_id)
    if device.paused_at is not None:
        raise ShoalError("conflict", f"Device {device_id} is already paused")
    device.paused_at = now
    _decided(session, device, now, heartbeat, "paused", by)


def resume(session: Session, device_id: str, now: float, heartbeat: float, *, by: str) -> None:
    """Take back a pause."""
    device = _device(session, device_id)
    if device.paused_at is None:
        raise ShoalError("conflict", f"Device {device_id} is not paused")
    device.paused_at = None
    _decided(session, device, now, heartbeat, "resumed", by)


def quarantine(session: Session, device_id: str, now: float, heartbeat: float, reason: str) -> None:
    """A gate turned a device away: it gets no more work until an operator releases it."""
    device = _device(session, device_id)
    if device.quarantined_at is None:
        device.quarantined_at, device.quarantine = now, reason
        _moved(session, device, now, heartbeat, "quarantined", reason, f"{device.name}: {reason}")


def release(session: Session, device_id: str, now: float, heartbeat: float, *, by: str) -> None:
    """Take a device out of quarantine."""
    device = _device(session, device_id)
    if device.quarantined_at is None:
        raise ShoalError("conflict", f"Device {device_id} is not in quarantine")
    device.quarantined_at, device.quarantine = None, ""
    _decided(session, device, now, heartbeat, "released", by)


def adopt(session: Session, device_id: str, now: float, heartbeat: float, *, by: str) -> None:
    """Let a device that joined with a token for manual adoption work."""
    device = _device(session, device_id)
    if device.pending_at is None:
        raise ShoalError("conflict", f"Device {device_id} does not wait for adoption")
    device.pending_at = None
    _decided(session, device, now, heartbeat, "adopted", by)


def revoke(session: Session, device_id: str, now: float, heartbeat: float, *, by: str) -> None:
    """Shut a device out for good: its secret counts no more. It may come back with a new token, as a new device."""
    device = _device(session, device_id)
    device.revoked_at = now
    credentials.revoke_all(session, device_id, now)
    commands.drop(session, device_id, now)
    _decided(session, device, now, heartbeat, "revoked", by)


def regroup(session: Session, device_id: str, group: str, now: float, *, by: str) -> bool:
    """Move a device into another group; the empty one is none. False if it was there already."""
    if len(group) > 80:
        raise ShoalError("bad-request", f"group has {len(group)} characters, expected at most 80")
    device = _device(session, device_id)
    if device.group == group:
        return False
    text = f"{by} moved {device.name} from group {device.group or '-'} to {group or '-'}"
    device.group = group
    session.add(Event(at=now, kind="device-regrouped", device_id=device.id, text=text))
    session.flush()
    return True


def tag(session: Session, device_id: str, tag: str, now: float, *, by: str) -> bool:
    """Call a device by one more word. False if it is called so already."""
    if not TAG.fullmatch(tag):
        raise ShoalError("bad-request", f"tag is {tag[:60]!r}, expected 1 to 40 letters, digits, . _ : -")
    device = _device(session, device_id)
    if session.get(DeviceTag, (device_id, tag)) is not None:
        return False
    session.add(DeviceTag(device_id=device_id, tag=tag))
    session.add(Event(at=now, kind="device-tagged", device_id=device_id, text=f"{by} tagged {device.name} {tag}"))
    session.flush()
    return True


def untag(session: Session, device_id: str, tag: str, now: float, *, by: str) -> bool:
    """The reverse of :func:`tag`. False if it is not called so."""
    device = _device(session, device_id)
    if (known := session.get(DeviceTag, (device_id, tag))) is None:
        return False
    session.delete(known)
    text = f"{by} took the tag {tag} from {device.name}"
    session.add(Event(at=now, kind="device-untagged", device_id=device_id, text=text))
    session.flush()
    return True


_STANDING: Final = (
    Device.id,
    Device.status,
    Device.last_seen_at,
    Device.deadline_at,
    Device.assignment_id,
    Device.pending_at,
    Device.paused_at,
    Device.quarantined_at,
    Device.revoked_at,
)


class _Told:
    """A row of _STANDING with the values that were told since laid over it."""

    def __init__(self, row: Any, values: Mapping[str, Any]) -> None:
        self.id: str = row.id
        self.status: str = row.status
        self.last_seen_at: float | None = values.get("last_seen_at", row.last_seen_at)
        self.assignment_id: str | None = values.get("assignment_id", row.assignment_id)
        self.pending_at: float | None = row.pending_at
        self.paused_at: float | None = row.paused_at
        self.quarantined_at: float | None = row.quarantined_at
        self.revoked_at: float | None = row.revoked_at


def _apply(
    session: Session,
    values: Mapping[str, Mapping[str, Any]],
    now: float,
    heartbeat: float,
    reason: str = "",
    strangers: bool = False,
) -> None:
    """Core statements, not objects: 5,000 devices with a heartbeat every 10 s come through here."""
    session.flush()
    for ids in _chunks(list(values)):
        rows = session.execute(select(*_STANDING).where(Device.id.in_(ids))).all()
        missing = set(ids) - {row.id for row in rows}
        if missing and not strangers:
            raise ShoalError("not-found", f"There is no device {min(missing)!r}")
        changed: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        changes = []
        for row in rows:
            told = _Told(row, values[row.id])
            status = derive(told, now, heartbeat)
            columns = {
                **values[row.id],
                "status": status,
                "deadline_at": deadline(told, now, heartbeat),
                **_since(row.status, status, now),
            }
            changed.setdefault(tuple(columns), []).append({"id": row.id, **columns})
            if status != row.status:
                why = reason or _reason(row, status, now)
                changes.append({"device_id": row.id, "old": row.status, "new": status, "reason": why, "at": now})
        for alike in changed.values():
            session.execute(update(Device), alike)
        if changes:
            session.execute(insert(StatusChange), changes)
        for device_id in ids:
            _forget(session, device_id)


def _known(values: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := values.keys() - _VALUES:
        raise TypeError(f"a device cannot tell {', '.join(sorted(unknown))}")
    return values


def _since(old: str, new: str, now: float) -> dict[str, float]:
    return {} if old == new else {"status_at": now}


def _reason(row: Any, status: str, now: float) -> str:
    if row.last_seen_at is None:
        return "heard for the first time"
    if row.status in ("late", "offline"):
        return f"heard again after {now - row.last_seen_at:.0f} s"
    if status == "training":
        return "took an assignment"
    if status == "idle":
        return "has no open assignment"
    return _silence(row, now)


def _silence(row: Any, now: float) -> str:
    return f"no sign for {now - row.last_seen_at:.0f} s"


def _device(session: Session, device_id: str) -> Device:
    device = session.get(Device, device_id)
    if device is None:
        raise ShoalError("not-found", f"There is no device {device_id[:80]!r}")
    if device.revoked_at is not None:
        raise ShoalError("conflict", f"Device {device_id} is revoked; it can only enrol anew")
    return device


def _decided(session: Session, device: Device, now: float, heartbeat: float, what: str, by: str) -> None:
    _moved(session, device, now, heartbeat, what, f"{what} by {by}", f"{by} {what} {device.name}")


def _moved(session: Session, device: Device, now: float, heartbeat: float, what: str, reason: str, text: str) -> None:
    session.flush()
    old, device.status = device.status, derive(device, now, heartbeat)
    device.status_at = now
    device.deadline_at = deadline(device, now, heartbeat)
    session.add(StatusChange(device_id=device.id, old=old, new=device.status, reason=reason, at=now))
    session.add(Event(at=now, kind=f"device-{what}", device_id=device.id, text=text))
    session.flush()


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _ROWS] for start in range(0, len(ids), _ROWS))


def _forget(session: Session, device_id: str) -> None:
    """Objects of this session must not go on showing what the statement has replaced."""
    known = session.identity_map.get(session.identity_key(Device, device_id))
    if known is not None:
        session.expire(known)
