"""What devices are told to do once, until when, and what came of it.

A command is open until its device has answered, or until it expires. It is sent again while its device is heard and has
not answered; a device carries out an id once.
"""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import Command, Device, Event
from protocol.commands import COMMANDS

MIN_LIFE: Final = 5.0
MAX_LIFE: Final = 7 * 86_400.0
"""Seconds. Who commands something today does not want it done next month."""


def issue(session: Session, device: str, kind: str, now: float, *, life: float, by: str) -> Command:
    """Tell a device to do something within ``life`` seconds."""
    if kind not in COMMANDS:
        raise ShoalError("bad-request", f"kind is {kind[:40]!r}, expected one of {', '.join(COMMANDS)}")
    if not MIN_LIFE <= life <= MAX_LIFE:
        raise ShoalError("bad-request", f"ttl is {life:g}, expected {MIN_LIFE:g} to {MAX_LIFE:.0f} seconds")
    row = session.get(Device, device)
    if row is None:
        raise ShoalError("not-found", f"There is no device {device[:80]!r}")
    if row.revoked_at is not None:
        raise ShoalError("conflict", f"Device {device} is revoked: it hears nothing any more")
    command = Command(
        id=secrets.token_hex(8),
        device_id=device,
        kind=kind,
        state="open",
        text="",
        created_by=by,
        created_at=now,
        expires_at=now + life,
    )
    session.add(command)
    session.add(Event(at=now, kind="command-issued", device_id=device, text=f"{by} told {device} to {kind}"))
    session.flush()
    return command


def settle(session: Session, id: str, device: str, state: str, text: str, now: float) -> Command | None:
    """What came of a command; None if it is not this device's, or has ended before."""
    command = session.get(Command, id)
    if command is None or command.device_id != device or command.state not in ("open", "expired"):
        return None
    command.state, command.text, command.ended_at = state, text, now
    brief = f": {text.splitlines()[0][:200]}" if text and command.kind != "collect-logs" else ""
    session.add(
        Event(at=now, kind=f"command-{state}", device_id=device, text=f"{device}: {command.kind} is {state}{brief}")
    )
    session.flush()
    return command


def expire(session: Session, now: float) -> int:
    """Commands that were not answered in time."""
    ended = session.execute(
        update(Command)
        .where(Command.state == "open", Command.expires_at <= now)
        .values(state="expired", text="the device did not answer in time", ended_at=now)
    )
    return int(ended.rowcount)  # type: ignore[attr-defined]


def waiting(session: Session) -> list[Command]:
    """All open commands, the oldest first."""
    return list(session.scalars(select(Command).where(Command.state == "open").order_by(Command.created_at)))


def drop(session: Session, device: str, now: float) -> None:
    """A device that was shut out will answer nothing."""
    session.execute(
        update(Command)
        .where(Command.device_id == device, Command.state == "open")
        .values(state="expired", text="the device was shut out", ended_at=now)
    )
