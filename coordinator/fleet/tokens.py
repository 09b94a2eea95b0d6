"""Enrolment tokens: who may join the fleet, how often and until when.

A token reads ``shoal1.<id>.<secret>.<fingerprint>``. The fingerprint is that of the coordinator's authority, so that a
device can check whom it talks to before it shows the secret; ``-`` where there is no TLS. The database knows the
secret's hash only: the text exists once, when the token is made.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any, Final

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.credentials import secret_hash
from coordinator.store.models import EnrolmentToken, Event

MAX_USES: Final = 10_000
MAX_LIFE: Final = 366 * 86_400.0
"""Seconds. A token that never ends is a password that everybody knows."""

_TOKEN = re.compile(r"shoal1\.([0-9a-f]{12})\.([A-Za-z0-9_-]{43})\.(-|[A-Za-z0-9_-]{27})")
_UNKNOWN = "This token is not known here: it is mistyped, or it was made by another coordinator"


def create(
    session: Session,
    now: float,
    *,
    group: str = "",
    uses: int = 1,
    ttl: float = 72 * 3600.0,
    by: str,
    fingerprint: str | None = None,
    manual: bool = False,
) -> str:
    """Make a token for ``uses`` devices that ends after ``ttl`` seconds, and return its text. Who joins with a
    ``manual`` one waits for an operator to adopt it."""
    if not 1 <= uses <= MAX_USES:
        raise ShoalError("bad-request", f"uses is {uses}, expected 1 to {MAX_USES}")
    if not 1 <= ttl <= MAX_LIFE:
        raise ShoalError("bad-request", f"ttl is {ttl:g}, expected 1 to {MAX_LIFE:.0f} seconds")
    if len(group) > 80:
        raise ShoalError("bad-request", f"group has {len(group)} characters, expected at most 80")
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    session.add(
        EnrolmentToken(
            id=token_id,
            secret_hash=secret_hash(secret),
            group=group,
            max_uses=uses,
            manual=manual,
            created_at=now,
            created_by=by,
            expires_at=now + ttl,
        )
    )
    many = "1 device" if uses == 1 else f"{uses} devices"
    session.add(Event(at=now, kind="token-created", text=f"{by} made token {token_id} for {many}"))
    session.flush()
    return f"shoal1.{token_id}.{secret}.{fingerprint or '-'}"


def listed(session: Session) -> list[EnrolmentToken]:
    """All tokens, the newest first."""
    return list(session.scalars(select(EnrolmentToken).order_by(EnrolmentToken.created_at.desc(), EnrolmentToken.id)))


def revoke(session: Session, token_id: str, now: float, *, by: str) -> None:
    """End a token; devices that have joined with it stay."""
    token = session.get(EnrolmentToken, token_id)
    if token is None:
        raise ShoalError("not-found", f"There is no token {token_id[:80]!r}")
    if token.revoked_at is not None:
        raise ShoalError("conflict", f"Token {token_id} is already revoked")
    token.revoked_at = now
    session.add(Event(at=now, kind="token-revoked", text=f"{by} revoked token {token_id}"))
    session.flush()


def status(token: EnrolmentToken, now: float) -> str:
    """valid, revoked, expired or used."""
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at <= now:
        return "expired"
    return "valid" if token.uses < token.max_uses else "used"


def find(session: Session, text: str) -> EnrolmentToken:
    """The token that ``text`` is the secret of, valid or not; ShoalError token-invalid if there is none."""
    parts = _TOKEN.fullmatch(text)
    token = session.get(EnrolmentToken, parts[1]) if parts else None
    # One sentence for all ways of not knowing the secret, in time that does not depend on it.
    known = hmac.compare_digest(token.secret_hash if token else "", secret_hash(parts[2] if parts else ""))
    if token is None or not known:
        raise ShoalError("token-invalid", _UNKNOWN)
    return token


def claim(session: Session, token: EnrolmentToken, now: float) -> EnrolmentToken:
    """Use a token once, and return it. ShoalError token-invalid if it is revoked, expired or used up."""
    counted: CursorResult[Any] = session.execute(  # type: ignore[assignment]
        update(EnrolmentToken)
        .where(
            EnrolmentToken.id == token.id,
            EnrolmentToken.uses < EnrolmentToken.max_uses,
            EnrolmentToken.expires_at > now,
            EnrolmentToken.revoked_at.is_(None),
        )
        .values(uses=EnrolmentToken.uses + 1)
        .execution_options(synchronize_session=False)
    )
    if counted.rowcount != 1:
        session.refresh(token)
        raise ShoalError("token-invalid", _REFUSED[status(token, now)])
    session.expire(token, ["uses"])
    return token


_REFUSED: Final = {
    "revoked": "This token was revoked: ask for a new one",
    "expired": "This token has expired: ask for a new one",
    "used": "This token has been used as often as it may be: ask for a new one",
}
