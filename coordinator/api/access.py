"""How operators and their programs get in: login links and API tokens, for administrators to give."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from coordinator import operators
from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.store.models import ApiToken

Role = Literal["viewer", "operator", "admin"]


@frozen(kw_only=True)
class LoginRequest:
    """Who will log in with the link, and the role they have from then on."""

    name: str
    role: Role


@frozen(kw_only=True)
class LoginLink:
    """``url`` works once, until ``expires_at``."""

    url: str
    name: str
    role: str
    expires_at: float


@frozen(kw_only=True)
class ApiTokenRequest:
    """A token for a program that acts as ``name``; without ``ttl`` seconds it lasts until it is revoked."""

    name: str
    role: Role
    ttl: float | None = None


@frozen(kw_only=True)
class NewApiToken:
    """``token`` is told once and stored nowhere."""

    id: str
    token: str
    name: str
    role: str
    expires_at: float | None


@frozen(kw_only=True)
class ApiTokenRow:
    """An API token without its secret."""

    id: str
    name: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None


def create_login_link(body: LoginRequest) -> LoginLink:
    """Make a link with which somebody logs in once."""
    who, now = admit("admin"), services().clock()
    secret = services().commands.write(
        lambda writing: operators.mint_login(writing, now, name=body.name, role=body.role, by=who.name)
    )
    url = f"{services().settings.pages}/login/{secret}"
    return LoginLink(url=url, name=body.name, role=body.role, expires_at=now + operators.LOGIN_LIFE)


def create_api_token(body: ApiTokenRequest) -> NewApiToken:
    """Make a bearer token for a program; its text is in this answer and nowhere else."""
    who, now = admit("admin"), services().clock()
    text = services().commands.write(
        lambda writing: operators.mint_api(writing, now, name=body.name, role=body.role, by=who.name, ttl=body.ttl)
    )
    return NewApiToken(
        id=text.split(".")[1],
        token=text,
        name=body.name,
        role=body.role,
        expires_at=None if body.ttl is None else now + body.ttl,
    )


def list_api_tokens() -> tuple[ApiTokenRow, ...]:
    """All bearer tokens, the newest first."""
    with services().database.read() as reading:
        return tuple(_row(token) for token in operators.api_tokens(reading))


def revoke_api_token(token: str) -> ApiTokenRow:
    """End a bearer token."""
    who, now = admit("admin"), services().clock()
    return services().commands.write(lambda writing: _row(operators.revoke_api(writing, token, now, by=who.name)))


def _row(token: ApiToken) -> ApiTokenRow:
    return ApiTokenRow(
        id=token.id,
        name=token.operator,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
    )


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/login-links",
        call=create_login_link,
        access="admin",
        body=LoginRequest,
        answer=LoginLink,
        status=201,
    ),
    Endpoint(
        method="POST",
        path="/api-tokens",
        call=create_api_token,
        access="admin",
        body=ApiTokenRequest,
        answer=NewApiToken,
        status=201,
    ),
    Endpoint(
        method="GET", path="/api-tokens", call=list_api_tokens, access="admin", answer=tuple[ApiTokenRow, ...]
    ),
    Endpoint(
        method="POST",
        path="/api-tokens/<token>/revoke",
        call=revoke_api_token,
        access="admin",
        answer=ApiTokenRow,
    ),
)
