"""How a device joins the fleet: it claims a token and registers the secret it has made for itself."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.broker.security import verifier
from coordinator.errors import ShoalError
from coordinator.fleet import tokens
from coordinator.settings import Settings
from coordinator.store import credentials
from coordinator.store.credentials import secret_hash
from coordinator.store.models import Credential, Device, EnrolmentToken, Event
from protocol.messages import EnrolmentReply, EnrolmentRequest
from protocol.wire import unstructure

_MAX_ID: Final = 40
_MAX_NAME: Final = 80
_RESERVED: Final = ("coordinator", "shoal-probe")
"""What names of the coordinator's own accounts at the broker begin with."""


def enrol(session: Session, request: EnrolmentRequest, now: float) -> Device:
    """The device that this token and secret stand for; a new one unless the same pair has asked before.

    A device that lost power before it could write the reply down asks again, and is who it was: this costs no second
    use, and works though the token has run out. ShoalError token-invalid if the token cannot be used.
    """
    token = tokens.find(session, request.token)
    if (known := _enrolled(session, token, request.secret)) is not None:
        return known
    token = tokens.claim(session, request.token, now)
    device_id, name = _free(session, request.name)
    device = Device(
        id=device_id,
        name=name,
        group=token.group,
        capability=unstructure(request.capability),
        enrolled_at=now,
        token_id=token.id,
        pending_at=now if token.manual else None,
        status="pending" if token.manual else "new",
        status_at=now,
    )
    session.add(device)
    session.flush()
    credentials.register(session, device_id, request.secret, verifier(request.secret), now)
    text = f"{name} joined with token {token.id}, made by {token.created_by}"
    text += "; it waits to be adopted" if token.manual else ""
    session.add(Event(at=now, kind="device-enrolled", device_id=device_id, text=text))
    session.flush()
    return device


def reply(device: Device, settings: Settings, host: str, release_key: str | None = None) -> EnrolmentReply:
    """What a new device is told. ``host`` is where it reached the coordinator, and hence will find the broker unless
    the settings name another, or a broker that somebody else runs. ``release_key`` is what it is to trust releases by.
    """
    elsewhere = settings.external
    return EnrolmentReply(
        device=device.id,
        broker_host=elsewhere[0] if elsewhere else settings.name or host,
        broker_port=elsewhere[1] if elsewhere else settings.mqtt_port,
        broker_tls=elsewhere[2] if elsewhere else settings.encrypted,
        heartbeat=settings.heartbeat,
        release_key=release_key,
    )


def _enrolled(session: Session, token: EnrolmentToken, secret: str) -> Device | None:
    known = session.execute(
        select(Device, Credential.revoked_at, Credential.next)
        .join(Credential, Credential.device_id == Device.id)
        .where(Device.token_id == token.id, Credential.secret_hash == secret_hash(secret))
    ).one_or_none()
    if known is None:
        return None
    device, ended, following = known
    if device.revoked_at is not None:
        raise ShoalError("token-invalid", "This device was revoked: it needs a new token and a new secret")
    if ended is not None or following:
        raise ShoalError("token-invalid", "This secret was replaced by another one")
    return device


def _free(session: Session, wished: str) -> tuple[str, str]:
    """The id and the name a device gets: what it wished for, or that with -2, -3, ... if somebody has it already."""
    slug = re.sub(r"[^a-z0-9]+", "-", wished.lower()).strip("-")
    if len(slug) < 3 or slug.startswith(_RESERVED):
        slug = f"device-{slug}".rstrip("-")
    ids = set(session.scalars(select(Device.id).where(Device.id.startswith(slug[: _MAX_ID - 6]))))
    names = set(session.scalars(select(Device.name).where(Device.name.startswith(wished[: _MAX_NAME - 6]))))
    number = 1
    while True:
        suffix = "" if number == 1 else f"-{number}"
        device_id = slug[: _MAX_ID - len(suffix)].rstrip("-") + suffix
        name = wished[: _MAX_NAME - len(suffix)] + suffix
        if device_id not in ids and name not in names:
            return device_id, name
        number += 1
