"""Rollouts and executions as rows, and what the journal says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from attrs import fields
from sqlalchemy import and_, insert, or_, select, update
from sqlalchemy.orm import Session

from coordinator.fleet.rollout import ENDED, OPEN, Execution, Rollout
from coordinator.fleet.rules import Rules
from coordinator.store import models
from coordinator.store.models import Event, ExecutionChange, Release, table_of

_executions = table_of(models.Execution)
_COLUMNS: Final = tuple(one.name for one in fields(Execution) if one.name != "device")
_READ: Final = select(_executions.c.device_id.label("device"), *(_executions.c[name] for name in _COLUMNS))
_CHANGE: Final = insert(table_of(ExecutionChange))
_NOTE: Final = insert(table_of(Event))
_ROLLOUT: Final = ("state", "pause", "reason", "wave", "wave_at", "passed_at", "state_at", "ended_at")
_ROWS: Final = 500


def under_way(session: Session) -> Sequence[models.Rollout]:
    """The rollouts with something left to do, the newest first; an aborted one until nobody is under way any more."""
    dying = and_(models.Rollout.state == "aborted", models.Rollout.ended_at.is_(None))
    wanted = select(models.Rollout).where(or_(models.Rollout.state.in_(OPEN), dying))
    return session.scalars(wanted.order_by(models.Rollout.id.desc())).all()


def rollout_of(row: models.Rollout) -> Rollout:
    known = {name: getattr(row, name) for name in _ROLLOUT}
    return Rollout(id=row.id, rules=Rules.of(row.rules), created_at=row.created_at, **known)


def executions_of(session: Session, rollout: int) -> list[Execution]:
    """All executions of a rollout, in order."""
    found = session.execute(_READ.where(_executions.c.rollout_id == rollout)).mappings()
    return sorted((Execution(**one) for one in found), key=lambda one: (one.wave, one.place, one.id))


def execution_of(row: models.Execution) -> Execution:
    return Execution(device=row.device_id, **{name: getattr(row, name) for name in _COLUMNS})


def keep_rollout(session: Session, row: models.Rollout, after: Rollout, now: float) -> None:
    """Write what has changed, and say so in the journal."""
    before, wave = row.state, row.wave
    for name in _ROLLOUT:
        if getattr(row, name) != getattr(after, name):
            setattr(row, name, getattr(after, name))
    if after.state != before:
        kind = "rollout-resumed" if after.state == "running" else f"rollout-{after.state}"
        note(session, now, kind, f"{title(session, row)} is {after.state}: {after.reason}")
    if after.wave != wave:
        note(session, now, "rollout-wave", f"{title(session, row)} begins with wave {after.wave + 1}: {after.reason}")
    session.flush()


def keep_executions(session: Session, release: str, pairs: Iterable[tuple[Execution, Execution]], now: float) -> None:
    """Write executions, given as they were and as they are now; ``release`` is what the journal calls it."""
    rows, changes, lines = [], [], []
    for before, after in pairs:
        rows.append({"id": after.id, **{name: getattr(after, name) for name in _COLUMNS if name != "id"}})
        if after.state != before.state:
            changes.append({"execution_id": after.id, "state": after.state, "text": after.text, "at": now})
            if after.state in ENDED:
                text = f"{after.device}: {release} {after.state}" + (f": {after.text}" if after.text else "")
                lines.append(
                    {"at": now, "kind": f"execution-{after.state}", "device_id": after.device, "text": text[:2000]}
                )
    session.flush()
    for first in range(0, len(rows), _ROWS):
        session.execute(update(models.Execution), rows[first : first + _ROWS])
    if changes:
        session.execute(_CHANGE, changes)
    if lines:
        session.execute(_NOTE, lines)
    for row in rows:  # objects of this session must not go on showing what the statement has replaced
        known = session.identity_map.get(session.identity_key(models.Execution, row["id"]))
        if known is not None:
            session.expire(known)


def begin(session: Session, row: models.Rollout, rows: Sequence[dict[str, Any]], now: float) -> None:
    """Executions of devices that are to come, all queued."""
    if not rows:
        return
    base = {"rollout_id": row.id, "state": "queued", "state_at": now, "text": "", "report": 0, "attempts": 0}
    session.execute(insert(_executions), [{**base, **one} for one in rows])
    session.execute(_CHANGE, [{"execution_id": one["id"], "state": "queued", "text": "", "at": now} for one in rows])


def title(session: Session, row: models.Rollout) -> str:
    """E.g. ``rollout 3 of agent 0.2.0``."""
    release = session.get_one(Release, row.release_id)
    way = "back from" if row.back_of is not None else "of"
    return f"rollout {row.id} {way} {release.kind} {release.version}"


def note(session: Session, now: float, kind: str, text: str) -> None:
    session.execute(_NOTE, {"at": now, "kind": kind, "text": text[:2000]})
