"""What operators decide about rollouts: start, pause, resume, approve, abort, back. Writes rows; nothing is sent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.fleet import record, releases, rollout
from coordinator.fleet.rollout import ACTIVE, OPEN
from coordinator.fleet.rules import Rules
from coordinator.store import models
from coordinator.store.models import Device, DeviceRelease, DeviceTag, Release
from coordinator.store.registry import OFFLINE_AFTER

BACK: Final = Rules(waves=(1.0,), soak=0.0, abort_least=1_000_000, abort_share=1.0, parallel=100, force=True)
"""A way back is for everybody at once, and does not stop at devices that fail."""
_ROWS: Final = 500
_RECENT: Final = 50
"""Executions of a device that are looked through for a file."""


@frozen(kw_only=True)
class Target:
    """Whom a rollout is for: ``devices`` by id, or all of a ``group`` or with a ``tag`` (of both, if both are given),
    or ``every`` one."""

    group: str = ""
    tag: str = ""
    devices: tuple[str, ...] = ()
    every: bool = False

    def __attrs_post_init__(self) -> None:
        if not (self.devices or self.group or self.tag or self.every):
            raise ShoalError("bad-request", "Name the devices: give ids, a group, a tag, or every")
        if self.devices and (self.group or self.tag or self.every):
            raise ShoalError("bad-request", "Give ids of devices, or a group or tag, not both")

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Target:
        return cls(**{**plain, "devices": tuple(plain.get("devices", ()))})

    def plain(self) -> dict[str, Any]:
        if self.devices:
            return {"devices": list(self.devices)}
        return {"group": self.group, "tag": self.tag, "every": self.every}

    def conditions(self) -> list[Any]:
        """For a SELECT from devices; who was revoked or waits for adoption is never meant."""
        found: list[Any] = [Device.revoked_at.is_(None), Device.pending_at.is_(None)]
        if self.devices:
            found.append(Device.id.in_(self.devices))
        if self.group:
            found.append(Device.group == self.group)
        if self.tag:
            found.append(Device.id.in_(select(DeviceTag.device_id).where(DeviceTag.tag == self.tag)))
        return found


def start(
    session: Session, release_id: int, target: Target, rules: Rules, now: float, heartbeat: float, *, by: str
) -> models.Rollout:
    """Begin to bring a release to the devices of ``target``. What is queued for them of the same kind is superseded.

    ShoalError not-found; conflict for a release that was withdrawn or has run out; bad-request for no devices.
    """
    release = session.get(Release, release_id)
    if release is None:
        raise ShoalError("not-found", f"There is no release {release_id}")
    if release.withdrawn_at is not None:
        raise ShoalError("conflict", f"Release {release.kind} {release.version} is withdrawn")
    if releases.manifest_of(release).expires_at <= now:
        raise ShoalError("conflict", f"Release {release.kind} {release.version} has run out: make a new one")
    wanted = select(Device.id, Device.last_seen_at).where(*target.conditions())
    seen = {row.id: row.last_seen_at for row in session.execute(wanted)}
    if missing := set(target.devices) - seen.keys():
        raise ShoalError("not-found", f"There is no device {min(missing)[:80]!r} that could take a release")
    if not seen:
        raise ShoalError("bad-request", "There is no device that this rollout would be for")
    row = _begun(session, release, rules, target.plain(), now, by)
    _queue(session, row, release.kind, dict.fromkeys(seen, release.id), _live(seen, now, heartbeat), rules, now)
    record.note(session, now, "rollout-started", f"{by} began {record.title(session, row)} to {len(seen)} devices")
    return row


def back(session: Session, id: int, now: float, heartbeat: float, *, by: str, parallel: int = 0) -> models.Rollout:
    """Bring the devices of a rollout back to what each of them had before, in a rollout of its own; the first one is
    aborted if it still goes on. ShoalError not-found, or conflict if there is nothing to go back to."""
    origin = _found(session, id)
    if origin.state in OPEN:
        operate(session, id, "abort", now, by=by)
    wanted = (
        select(models.Execution.device_id, models.Execution.before_id, Device.last_seen_at)
        .join(Device, Device.id == models.Execution.device_id)
        .where(
            models.Execution.rollout_id == id,
            models.Execution.state.in_(("succeeded", "timed-out", *ACTIVE)),
            models.Execution.before_id.is_not(None),
            models.Execution.before_id != models.Execution.release_id,
            Device.revoked_at.is_(None),
        )
    )
    rows = session.execute(wanted).all()
    to = {row.device_id: row.before_id for row in rows}
    seen = {row.device_id: row.last_seen_at for row in rows}
    if not to:
        raise ShoalError("conflict", f"No device of rollout {id} has a release that it could go back to")
    release = session.get_one(Release, origin.release_id)
    rules = Rules.of({**BACK.plain(), "parallel": parallel or BACK.parallel})
    row = _begun(session, release, rules, {"devices": sorted(to)}, now, by, back_of=id)
    _queue(session, row, release.kind, to, _live(seen, now, heartbeat), rules, now)
    text = f"{by} began {record.title(session, row)} for {len(to)} devices of rollout {id}"
    record.note(session, now, "rollout-started", text)
    return row


def operate(session: Session, id: int, action: str, now: float, *, by: str) -> None:
    """``pause``, ``resume``, ``approve`` or ``abort`` a rollout; ShoalError bad-request, not-found or conflict."""
    row = _found(session, id)
    value = record.rollout_of(row)
    match action:
        case "pause":
            after = rollout.pause(value, now, by)
        case "resume":
            after = rollout.resume(value, now, by)
        case "approve":
            after = rollout.approve(value, now, by)
        case "abort":
            after = rollout.abort(value, now, f"aborted by {by}")
        case _:
            expected = "pause, resume, approve or abort"
            raise ShoalError("bad-request", f"action is {action[:40]!r}, expected {expected}")
    record.keep_rollout(session, row, after, now)


def join(session: Session, row: models.Rollout, kind: str, now: float) -> int:
    """Devices that joined the fleet since the rollout began, are meant by it and have nothing of the kind before them
    come in its last wave; how many."""
    target = Target.of(row.target)
    if target.devices:
        return 0
    mine = select(models.Execution.device_id).where(models.Execution.rollout_id == row.id)
    waiting = select(models.Execution.device_id).where(
        models.Execution.kind == kind, models.Execution.state.in_(("queued", *ACTIVE))
    )
    wanted = select(Device.id).where(
        Device.enrolled_at >= row.created_at, Device.id.not_in(mine), Device.id.not_in(waiting), *target.conditions()
    )
    devices = session.scalars(wanted.order_by(Device.id)).all()
    if not devices:
        return 0
    places = select(models.Execution.wave, models.Execution.place).where(models.Execution.rollout_id == row.id)
    last = session.execute(places.order_by(models.Execution.wave.desc(), models.Execution.place.desc())).first()
    wave, place = (0, -1) if last is None else last
    waves = [(device, wave, place + 1 + number) for number, device in enumerate(devices)]
    _add(session, row, kind, dict.fromkeys(devices, row.release_id), waves, now)
    return len(devices)


def _found(session: Session, id: int) -> models.Rollout:
    row = session.get(models.Rollout, id)
    if row is None:
        raise ShoalError("not-found", f"There is no rollout {id}")
    return row


def _begun(
    session: Session,
    release: Release,
    rules: Rules,
    target: dict[str, Any],
    now: float,
    by: str,
    back_of: int | None = None,
) -> models.Rollout:
    row = models.Rollout(
        release_id=release.id,
        state="running",
        reason=f"started by {by}",
        rules=rules.plain(),
        target=target,
        wave_at=now,
        back_of=back_of,
        created_by=by,
        created_at=now,
        state_at=now,
    )
    session.add(row)
    session.flush()
    return row


def _queue(
    session: Session,
    row: models.Rollout,
    kind: str,
    releases_of: Mapping[str, int],
    live: Mapping[str, bool],
    rules: Rules,
    now: float,
) -> None:
    devices = sorted(releases_of)
    _supersede(session, row, kind, devices, now)
    waves = rollout.cohorts({device: live[device] for device in devices}, row.id, rules)
    _add(session, row, kind, releases_of, waves, now)


def _add(
    session: Session,
    row: models.Rollout,
    kind: str,
    releases_of: Mapping[str, int],
    waves: Sequence[tuple[str, int, int]],
    now: float,
) -> None:
    fresh = [
        {"id": secrets.token_hex(8), "device_id": device, "kind": kind, "release_id": releases_of[device], "wave": wave,
         "place": place}
        for device, wave, place in waves
    ]  # fmt: skip
    record.begin(session, row, fresh, now)


def _supersede(session: Session, row: models.Rollout, kind: str, devices: Sequence[str], now: float) -> None:
    """Who has not been told of an older release of the kind will not be."""
    for first in range(0, len(devices), _ROWS):
        found = session.scalars(
            select(models.Execution).where(
                models.Execution.device_id.in_(devices[first : first + _ROWS]),
                models.Execution.kind == kind,
                models.Execution.state == "queued",
            )
        ).all()
        pairs = [(one := record.execution_of(each), one.into("superseded", now, f"by rollout {row.id}"))
                 for each in found]  # fmt: skip
        record.keep_executions(session, f"{kind} release", pairs, now)


def _live(seen: Mapping[str, float | None], now: float, heartbeat: float) -> dict[str, bool]:
    return {device: at is not None and now - at <= OFFLINE_AFTER * heartbeat for device, at in seen.items()}


def barred(session: Session, rollout_id: int) -> set[str]:
    """Devices of a rollout that went back from its release before, in another one."""
    mine, other = models.Execution, models.Execution.__table__.alias()
    wanted = (
        select(mine.device_id)
        .join(
            other,
            (other.c.device_id == mine.device_id)
            & (other.c.kind == mine.kind)
            & (other.c.state == "rolled-back")
            & (other.c.release_id == mine.release_id)
            & (other.c.rollout_id != mine.rollout_id),
        )
        .where(mine.rollout_id == rollout_id)
    )
    return set(session.scalars(wanted))


def running(session: Session, device: str, kind: str) -> int | None:
    """The release of ``kind`` that a device says it runs."""
    return session.scalar(
        select(DeviceRelease.release_id).where(DeviceRelease.device_id == device, DeviceRelease.kind == kind)
    )


def needed_by(session: Session, device: str, sha256: str) -> str:
    """Whether a file is one of a release that this device is to take: ``now``, ``before`` (it is over) or ``never``."""
    found = "never"
    mine = select(models.Execution.state, Release).join(Release, Release.id == models.Execution.release_id)
    newest = mine.where(models.Execution.device_id == device).order_by(models.Execution.rollout_id.desc())
    for state, release in session.execute(newest.limit(_RECENT)):
        if any(file.sha256 == sha256 for file in releases.manifest_of(release).files):
            if state not in rollout.ENDED:
                return "now"
            found = "before"
    return found
