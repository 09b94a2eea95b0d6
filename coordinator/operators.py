"""The people and programs that operate the fleet: roles, one-time login links, bearer tokens, and the two secret files
in the home folder.

Nobody has a password. Whoever may read the home folder holds the local token, and with it makes login links for others.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.credentials import secret_hash
from coordinator.store.models import ApiToken, Event, Operator

ROLES: Final = ("viewer", "operator", "admin")
"""Each may do what those before it may."""

LOGIN_LIFE: Final = 900.0
"""Seconds in which a login link must be opened."""

MAX_LIFE: Final = 3660 * 86_400.0
"""Seconds; for longer than ten years a token is made without an end."""

LOCAL: Final = "local"
"""The operator whom the commands on the coordinator's own machine act as."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,79}")
_SECRET = re.compile(r"([0-9a-f]{12})\.([A-Za-z0-9_-]{43})")
_API = "shoal-api."


@frozen
class Visitor:
    """Who is asking. ``token`` is the id of the login or bearer token that says so."""

    name: str
    role: str
    token: str

    def may(self, role: str) -> bool:
        return self.role in ROLES and ROLES.index(self.role) >= ROLES.index(role)


def mint_login(session: Session, now: float, *, name: str, role: str, by: str) -> str:
    """The secret part of a login link for ``name``, who has ``role`` from now on; made known if new."""
    _appoint(session, now, name, role)
    session.add(Event(at=now, kind="login-link", text=f"{by} made a login link for {name} ({role})"))
    return _mint(session, now, name, "login", now + LOGIN_LIFE)


def mint_api(session: Session, now: float, *, name: str, role: str, by: str, ttl: float | None = None) -> str:
    """A bearer token ``shoal-api.<id>.<secret>`` of ``name``; without ``ttl`` seconds it does not end."""
    if ttl is not None and not 1 <= ttl <= MAX_LIFE:
        raise ShoalError("bad-request", f"ttl is {ttl:g}, expected 1 to {MAX_LIFE:.0f} seconds")
    _appoint(session, now, name, role)
    session.add(Event(at=now, kind="api-token", text=f"{by} made an API token for {name} ({role})"))
    return _API + _mint(session, now, name, "api", None if ttl is None else now + ttl)


def redeem_login(session: Session, text: str, now: float) -> Visitor:
    """Use up a login link. ShoalError not-authenticated if it is not one, too old or used before."""
    token = _find(session, text, "login")
    used: CursorResult[Any] | None = None
    if token is not None:
        used = session.execute(  # type: ignore[assignment]
            update(ApiToken)
            .where(
                ApiToken.id == token.id,
                ApiToken.used_at.is_(None),
                ApiToken.revoked_at.is_(None),
                ApiToken.expires_at > now,
            )
            .values(used_at=now)
            .execution_options(synchronize_session=False)
        )
    visitor = _visitor(session, token) if token is not None and used is not None and used.rowcount == 1 else None
    if visitor is None:
        raise ShoalError("not-authenticated", "This login link is unknown, too old or was used before")
    session.add(Event(at=now, kind="login", text=f"{visitor.name} logged in"))
    return visitor


def logged_in(session: Session, token_id: str) -> Visitor | None:
    """Who logged in with this link, unless they have logged out since or were disabled."""
    token = session.get(ApiToken, token_id)
    if token is None or token.kind != "login" or token.used_at is None or token.revoked_at is not None:
        return None
    return _visitor(session, token)


def log_out(session: Session, token_id: str, now: float) -> None:
    session.execute(update(ApiToken).where(ApiToken.id == token_id).values(revoked_at=now))


def bearer(session: Session, text: str, now: float) -> Visitor | None:
    """Whose bearer token this is; None if it is unknown, has ended or was revoked."""
    token = _find(session, text.removeprefix(_API), "api") if text.startswith(_API) else None
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
        return None
    return _visitor(session, token)


def api_tokens(session: Session) -> list[ApiToken]:
    """All bearer tokens, the newest first."""
    query = select(ApiToken).where(ApiToken.kind == "api").order_by(ApiToken.created_at.desc(), ApiToken.id)
    return list(session.scalars(query))


def revoke_api(session: Session, token_id: str, now: float, *, by: str) -> ApiToken:
    """End a bearer token. The local one is made anew when the coordinator starts."""
    token = session.get(ApiToken, token_id)
    if token is None or token.kind != "api":
        raise ShoalError("not-found", f"There is no API token {token_id[:80]!r}")
    if token.revoked_at is not None:
        raise ShoalError("conflict", f"API token {token_id} is already revoked")
    token.revoked_at = now
    session.add(Event(at=now, kind="api-token-revoked", text=f"{by} revoked API token {token_id} of {token.operator}"))
    session.flush()
    return token


def listed(session: Session) -> list[Operator]:
    """Everybody who may ever log in, by name."""
    return list(session.scalars(select(Operator).order_by(Operator.name)))


def appoint(session: Session, name: str, role: str, now: float, *, by: str) -> None:
    """Give somebody another role; whoever takes their own away may lock everybody out, so that is a conflict."""
    _somebody_else(session, name, by)
    _appoint(session, now, name, role)
    session.add(Event(at=now, kind="operator-role", text=f"{by} made {name} {role}"))


def disable(session: Session, name: str, now: float, *, by: str) -> None:
    """Shut an operator out: sessions and tokens of theirs count no more from now on."""
    operator = _somebody_else(session, name, by)
    if operator.disabled_at is not None:
        raise ShoalError("conflict", f"Operator {name} is already disabled")
    operator.disabled_at = now
    session.add(Event(at=now, kind="operator-disabled", text=f"{by} disabled {name}"))


def enable(session: Session, name: str, now: float, *, by: str) -> None:
    """Let a disabled operator in again; what they were logged in with stays ended."""
    operator = _somebody_else(session, name, by)
    if operator.disabled_at is None:
        raise ShoalError("conflict", f"Operator {name} is not disabled")
    ended = update(ApiToken).where(ApiToken.operator == name, ApiToken.revoked_at.is_(None)).values(revoked_at=now)
    session.execute(ended.execution_options(synchronize_session=False))
    operator.disabled_at = None
    session.add(Event(at=now, kind="operator-enabled", text=f"{by} enabled {name}"))


def _somebody_else(session: Session, name: str, by: str) -> Operator:
    operator = session.get(Operator, name)
    if operator is None:
        raise ShoalError("not-found", f"There is no operator {name[:80]!r}")
    if name == by:
        raise ShoalError("conflict", "This is you: somebody else has to change your role or shut you out")
    if name == LOCAL:
        raise ShoalError("conflict", f"Operator {LOCAL} is the coordinator's own machine and stays admin")
    return operator


def ensure_local_token(session: Session, home: Path, now: float) -> str:
    """The bearer token in ``<home>/api.token``, made anew if there is none that this database knows."""
    path = home / "api.token"
    text = _read(path)
    if text is not None and bearer(session, text, now) is not None:
        return text
    session.execute(
        update(ApiToken)
        .where(ApiToken.operator == LOCAL, ApiToken.kind == "api", ApiToken.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    text = mint_api(session, now, name=LOCAL, role="admin", by="the coordinator")
    _write(path, text)
    return text


def ensure_secret_key(home: Path) -> str:
    """The key in ``<home>/secret.key`` that signs session cookies, made on the first start."""
    path = home / "secret.key"
    key = _read(path)
    if key is None:
        key = secrets.token_hex(32)
        _write(path, key)
    if len(key) < 32:
        raise ShoalError("home-unusable", f"{path} is damaged: remove it for a new key, which ends all sessions")
    return key


def _appoint(session: Session, now: float, name: str, role: str) -> None:
    if role not in ROLES:
        raise ShoalError("bad-request", f"role is {role[:40]!r}, expected {', '.join(ROLES)}")
    if name == LOCAL and role != "admin":
        raise ShoalError("conflict", f"Operator {LOCAL} is the coordinator's own machine and stays admin")
    if not _NAME.fullmatch(name):
        raise ShoalError("bad-request", f"name is {name[:80]!r}, expected 1 to 80 letters, digits and . _ @ -")
    operator = session.get(Operator, name)
    if operator is None:
        session.add(Operator(name=name, role=role, created_at=now))
    elif operator.disabled_at is not None:
        raise ShoalError("conflict", f"Operator {name} is disabled")
    else:
        operator.role = role
    session.flush()


def _mint(session: Session, now: float, name: str, kind: str, expires_at: float | None) -> str:
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    session.add(
        ApiToken(
            id=token_id,
            operator=name,
            kind=kind,
            secret_hash=secret_hash(secret),
            created_at=now,
            expires_at=expires_at,
        )
    )
    session.flush()
    return f"{token_id}.{secret}"


def _find(session: Session, text: str, kind: str) -> ApiToken | None:
    parts = _SECRET.fullmatch(text)
    token = session.get(ApiToken, parts[1]) if parts else None
    stored = token.secret_hash if token is not None and token.kind == kind else ""
    return token if hmac.compare_digest(stored, secret_hash(parts[2] if parts else "")) else None


def _visitor(session: Session, token: ApiToken) -> Visitor | None:
    operator = session.get(Operator, token.operator)
    if operator is None or operator.disabled_at is not None:
        return None
    return Visitor(operator.name, operator.role, token.id)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ShoalError("home-unusable", f"{path} cannot be read: {error}") from error


def _write(path: Path, text: str) -> None:
    """In one step, and never readable by others, not even for a moment."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ShoalError("home-unusable", f"{path} cannot be written: {error.strerror}") from error
