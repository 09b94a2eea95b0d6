"""The operators' side of the fleet: devices and enrolment tokens."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.fleet import tokens
from coordinator.fleet.authority import fingerprint
from coordinator.store import queries, registry
from coordinator.store.models import EnrolmentToken
from coordinator.store.queries import DeviceDetail, DeviceRow, Page


@frozen(kw_only=True)
class DeviceQuery:
    """``text`` is looked for in name, id, group, tags, agent and runtime; a minus in front of ``sort`` reverses it."""

    status: str = ""
    group: str = ""
    text: str = ""
    flag: str = ""
    tag: str = ""
    sort: str = "name"
    page: int = 1
    size: int = 100


@frozen(kw_only=True)
class TokenRequest:
    """A token for ``uses`` devices of ``group`` that ends after ``ttl`` seconds. Who joins with a ``manual`` one waits
    until an operator adopts it."""

    group: str = ""
    uses: int = 1
    manual: bool = False
    ttl: float = 72 * 3600.0


@frozen(kw_only=True)
class NewToken:
    """``token`` is told once and stored nowhere."""

    id: str
    token: str
    group: str
    uses: int
    expires_at: float


@frozen(kw_only=True)
class TokenRow:
    """A token without its secret. Status: valid, used, expired or revoked."""

    id: str
    status: str
    group: str
    uses: int
    max_uses: int
    manual: bool
    created_by: str
    created_at: float
    expires_at: float
    revoked_at: float | None


def list_devices(query: DeviceQuery) -> Page[DeviceRow]:
    """Devices, sorted and in pages."""
    wanted = queries.DeviceFilter(
        status=query.status, group=query.group, text=query.text, flag=query.flag, tag=query.tag
    )
    with services().database.read() as reading:
        return queries.devices(reading, wanted, queries.Order.parse(query.sort, query.page, query.size))


def show_device(device: str) -> DeviceDetail:
    """One device in full."""
    with services().database.read() as reading:
        return queries.device(reading, device)


def pause_device(device: str) -> DeviceDetail:
    """Give a device no more work until it is resumed."""
    return _decide(device, registry.pause)


def resume_device(device: str) -> DeviceDetail:
    """Take back a pause."""
    return _decide(device, registry.resume)


def release_device(device: str) -> DeviceDetail:
    """Take a device out of quarantine."""
    return _decide(device, registry.release)


def adopt_device(device: str) -> DeviceDetail:
    """Let a device work that waits for adoption."""
    return _decide(device, registry.adopt)


def revoke_device(device: str) -> DeviceDetail:
    """Shut a device out for good and end its connection."""
    _decide(device, registry.revoke)
    services().commands.disconnect(device)
    return show_device(device)


def create_token(body: TokenRequest) -> NewToken:
    """Make an enrolment token; its text is in this answer and nowhere else."""
    who, now = admit("operator"), services().clock()
    seal = authority_fingerprint()
    text = services().commands.write(
        lambda writing: tokens.create(
            writing,
            now,
            group=body.group,
            uses=body.uses,
            ttl=body.ttl,
            by=who.name,
            fingerprint=seal,
            manual=body.manual,
        )
    )
    token_id = text.split(".")[1]
    return NewToken(id=token_id, token=text, group=body.group, uses=body.uses, expires_at=now + body.ttl)


def list_tokens() -> tuple[TokenRow, ...]:
    """All enrolment tokens, the newest first."""
    with services().database.read() as reading:
        return tuple(_token(token, services().clock()) for token in tokens.listed(reading))


def revoke_token(token: str) -> TokenRow:
    """End an enrolment token; devices that have joined with it stay."""
    who, now = admit("operator"), services().clock()
    services().commands.write(lambda writing: tokens.revoke(writing, token, now, by=who.name))
    with services().database.read() as reading:
        return next(_token(one, now) for one in tokens.listed(reading) if one.id == token)


def authority_fingerprint() -> str | None:
    """What a new token carries for the device to check; None where there is no encryption."""
    settings = services().settings
    return fingerprint((settings.home / "tls" / "ca.pem").read_bytes()) if settings.encrypted else None


def _decide(device: str, decision: Callable[..., None]) -> DeviceDetail:
    who, now = admit("operator"), services().clock()
    heartbeat = services().settings.heartbeat

    def change(writing: Session) -> None:
        decision(writing, device, now, heartbeat, by=who.name)

    services().commands.write(change)
    return show_device(device)


def _token(token: EnrolmentToken, now: float) -> TokenRow:
    return TokenRow(
        id=token.id,
        status=tokens.status(token, now),
        group=token.group,
        uses=token.uses,
        max_uses=token.max_uses,
        manual=token.manual,
        created_by=token.created_by,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
    )


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/devices",
        call=list_devices,
        access="viewer",
        query=DeviceQuery,
        answer=Page[DeviceRow],
    ),
    Endpoint(method="GET", path="/devices/<device>", call=show_device, access="viewer", answer=DeviceDetail),
    *(
        Endpoint(method="POST", path=path, call=call, access="operator", answer=DeviceDetail)
        for path, call in (
            ("/devices/<device>/pause", pause_device),
            ("/devices/<device>/release", release_device),
            ("/devices/<device>/resume", resume_device),
            ("/devices/<device>/adopt", adopt_device),
            ("/devices/<device>/revoke", revoke_device),
        )
    ),
    Endpoint(
        method="POST",
        path="/tokens",
        call=create_token,
        access="operator",
        body=TokenRequest,
        answer=NewToken,
        status=201,
    ),
    Endpoint(method="GET", path="/tokens", call=list_tokens, access="viewer", answer=tuple[TokenRow, ...]),
    Endpoint(
        method="POST", path="/tokens/<token>/revoke", call=revoke_token, access="operator", answer=TokenRow
    ),
)
