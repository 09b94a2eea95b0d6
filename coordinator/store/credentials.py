"""The secrets that devices prove themselves by: only hashes are kept, the present one and at most one to follow it.

A device makes its secrets itself. They are random and long, so one plain hash is as good as a slow one. ``verifier`` is
the same secret in the form that a broker with accounts of its own takes (see coordinator.broker.security).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import Credential, Device, Event, table_of

_REGISTER: Final = insert(table_of(Credential))
_OPEN: Final = (Credential.revoked_at.is_(None), Device.revoked_at.is_(None))


def secret_hash(secret: str) -> str:
    """A secret as it is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_matches(session: Session, device: str, secret: str) -> bool:
    """Whether this is the secret of an enrolled device that is not revoked, or the one that follows it; in time that
    does not depend on it."""
    known = session.scalars(
        select(Credential.secret_hash)
        .join(Device, Device.id == Credential.device_id)
        .where(Credential.device_id == device, *_OPEN)
    ).all()
    given = secret_hash(secret)
    return sum(hmac.compare_digest(stored, given) for stored in known or [""]) > 0


def register(session: Session, device: str, secret: str, verifier: str, now: float) -> None:
    """The first secret of a device that has just joined."""
    row = {"device_id": device, "secret_hash": secret_hash(secret), "verifier": verifier, "created_at": now}
    session.execute(_REGISTER, {**row, "next": False})


def propose(session: Session, device: str, secret: str, verifier: str, now: float) -> None:
    """The secret that will follow: both are good until the device has proved the new one. An earlier proposal that
    was never proved is dropped. ShoalError conflict for a secret the device has had before."""
    hashed = secret_hash(secret)
    before = select(Credential).where(Credential.device_id == device, Credential.secret_hash == hashed)
    if (known := session.scalar(before)) is not None:
        if known.revoked_at is None:
            return  # asked again, because the answer was lost
        raise ShoalError("conflict", "This secret was used before: make a new one")
    session.execute(
        update(Credential)
        .where(Credential.device_id == device, Credential.next, Credential.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    session.add(Credential(device_id=device, secret_hash=hashed, verifier=verifier, next=True, created_at=now))
    session.flush()


def prove(session: Session, device: str, secret: str, now: float) -> None:
    """The device has shown that it holds this secret: from now on it is the only one."""
    hashed = secret_hash(secret)
    mine = (Credential.device_id == device, Credential.revoked_at.is_(None))
    proved = session.execute(update(Credential).where(*mine, Credential.secret_hash == hashed).values(next=False))
    if not proved.rowcount:  # type: ignore[attr-defined]
        raise ShoalError("not-authenticated", "This secret is not one of the device's")
    old = session.execute(update(Credential).where(*mine, Credential.secret_hash != hashed).values(revoked_at=now))
    if old.rowcount:  # type: ignore[attr-defined]
        text = f"{device} has a new secret; the one before counts no more"
        session.add(Event(at=now, kind="device-rotated", device_id=device, text=text))
    session.flush()


def revoke_all(session: Session, device: str, now: float) -> None:
    """None of the device's secrets counts any more."""
    session.execute(
        update(Credential).where(Credential.device_id == device, Credential.revoked_at.is_(None)).values(revoked_at=now)
    )


def unverified(session: Session, device: str | None = None) -> list[str]:
    """Devices whose present secret is from before there were verifiers, or whether this one is: [] if it is not."""
    query = (
        select(Credential.device_id)
        .join(Device, Device.id == Credential.device_id)
        .where(*_OPEN, Credential.next.is_(False), Credential.verifier == "")
        .order_by(Credential.device_id)
    )
    return list(session.scalars(query if device is None else query.where(Credential.device_id == device)))


def complete(session: Session, device: str, secret: str, verifier: str) -> bool:
    """Give a secret the verifier that it lacks, now that the device has shown it. False if it lacks none."""
    mine = (Credential.device_id == device, Credential.secret_hash == secret_hash(secret))
    given = session.execute(update(Credential).where(*mine, Credential.verifier == "").values(verifier=verifier))
    return bool(given.rowcount)  # type: ignore[attr-defined]


def accounts(session: Session) -> list[tuple[str, str]]:
    """The devices that may come in, as (id, verifier of the present secret)."""
    rows = session.execute(
        select(Credential.device_id, Credential.verifier)
        .join(Device, Device.id == Credential.device_id)
        .where(*_OPEN, Credential.next.is_(False), Credential.verifier != "")
    )
    return [(row.device_id, row.verifier) for row in rows]


def aged(session: Session, before: float, limit: int) -> list[str]:
    """Devices whose present secret was made before a time, the oldest first."""
    return list(
        session.scalars(
            select(Credential.device_id)
            .join(Device, Device.id == Credential.device_id)
            .where(*_OPEN, Credential.next.is_(False), Credential.created_at < before)
            .order_by(Credential.created_at)
            .limit(limit)
        )
    )
