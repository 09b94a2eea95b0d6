"""What devices were told to do, and what came of it."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.store.models import Command


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


def commands(session: Session, device: str, limit: int = 50) -> tuple[CommandRow, ...]:
    """What a device was told to do, the newest first."""
    rows = select(Command).where(Command.device_id == device).order_by(Command.created_at.desc(), Command.id)
    return tuple(
        CommandRow(row.id, row.kind, row.state, row.text, row.created_by, row.created_at, row.expires_at, row.ended_at)
        for row in session.scalars(rows.limit(limit))
    )
