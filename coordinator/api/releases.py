"""Releases over HTTP: what there is, what is made, and what was signed elsewhere."""

from __future__ import annotations

from typing import Literal

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.errors import ShoalError
from coordinator.fleet import bundles
from coordinator.fleet import releases as making
from coordinator.fleet.releases import ReleaseKey
from coordinator.store import queries
from coordinator.store.queries import ReleaseDetail, ReleaseRow
from protocol.deployments import ReleaseFile


@frozen(kw_only=True)
class ReleaseQuery:
    """``kind`` is agent, model or config."""

    kind: str = ""


@frozen(kw_only=True)
class ReleaseRequest:
    """An agent from the newest bundles (of ``agent``, a version of theirs), or ``settings``, which are TOML. A
    device that has it takes nothing below number ``floor`` any more; none begins with it after ``days``."""

    kind: Literal["agent", "config"]
    version: str = ""
    agent: str = ""
    settings: str = ""
    floor: int = 0
    days: float = making.LIFE / 86_400
    notes: str = ""


@frozen(kw_only=True)
class ReleaseDraft:
    """The manifest of a release that is not signed yet: sign it byte for byte."""

    manifest: str


@frozen(kw_only=True)
class SignedRelease:
    """A manifest with an Ed25519 signature over its bytes, 128 hexadecimal digits."""

    manifest: str
    signature: str
    notes: str = ""


@frozen(kw_only=True)
class ReleaseKeyRow:
    """The public half in hexadecimal digits; ``here``: this coordinator has the private one and signs by itself."""

    public: str
    here: bool


def list_releases(query: ReleaseQuery) -> tuple[ReleaseRow, ...]:
    """Releases, the newest first."""
    with services().database.read() as reading:
        return queries.releases(reading, query.kind)


def show_release(release: str) -> ReleaseDetail:
    """One release in full, by its id or as agent-0.2.0."""
    with services().database.read() as reading:
        return queries.release(reading, release)


def create_release(body: ReleaseRequest) -> ReleaseDetail:
    """Make and sign a release of an agent or of settings."""
    who, now, key = admit("admin"), services().clock(), _key()
    if key.private is None:
        key.sign("")  # refused before any file is copied
    version, files = _contents(body)

    def change(writing: Session) -> int:
        return making.create(
            writing,
            key,
            kind=body.kind,
            version=version,
            now=now,
            by=who.name,
            files=files,
            settings=body.settings,
            floor=body.floor,
            life=_life(body),
            notes=body.notes,
        ).id

    return show_release(str(services().commands.write(change)))


def draft_release(body: ReleaseRequest) -> ReleaseDraft:
    """The manifest of such a release, to be signed elsewhere."""
    admit("admin")
    now = services().clock()
    version, files = _contents(body)
    with services().database.read() as reading:
        text = making.draft(
            reading,
            kind=body.kind,
            version=version,
            now=now,
            files=files,
            settings=body.settings,
            floor=body.floor,
            life=_life(body),
        )
    return ReleaseDraft(manifest=text)


def import_release(body: SignedRelease) -> ReleaseDetail:
    """Take in a release that was signed elsewhere."""
    who, now, key, blobs = admit("admin"), services().clock(), _key(), services().blobs

    def change(writing: Session) -> int:
        taken = making.admit(writing, key, blobs, body.manifest, body.signature, now=now, by=who.name, notes=body.notes)
        return taken.id

    return show_release(str(services().commands.write(change)))


def withdraw_release(release: str) -> ReleaseDetail:
    """No rollout may begin with it any more."""
    who, now, id = admit("admin"), services().clock(), show_release(release).row.id
    services().commands.write(lambda writing: making.withdraw(writing, id, now, by=who.name))
    return show_release(release)


def show_release_key() -> ReleaseKeyRow:
    """The key that devices check releases with."""
    key = _key()
    return ReleaseKeyRow(public=key.public, here=key.private is not None)


def _key() -> ReleaseKey:
    return ReleaseKey.of(services().settings.home)


def _contents(body: ReleaseRequest) -> tuple[str, tuple[ReleaseFile, ...]]:
    """Version and files. Copied on the caller's thread: meanwhile devices are still answered."""
    if body.kind == "config":
        if not body.version:
            raise ShoalError("bad-request", "version is missing: settings have none of their own")
        return body.version, ()
    if body.settings:
        raise ShoalError("bad-request", "settings are given, but the kind is agent")
    folder = services().settings.home / bundles.FOLDER
    version, files = making.agent_files(folder, services().blobs, body.agent)
    return body.version or version, files


def _life(body: ReleaseRequest) -> float:
    if not 0 < body.days <= 3650:
        raise ShoalError("bad-request", f"days is {body.days:g}, expected more than 0 and at most 3650")
    return body.days * 86_400


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/releases",
        call=list_releases,
        access="viewer",
        query=ReleaseQuery,
        answer=tuple[ReleaseRow, ...],
    ),
    Endpoint(method="GET", path="/releases/<release>", call=show_release, access="viewer", answer=ReleaseDetail),
    Endpoint(
        method="POST",
        path="/releases",
        call=create_release,
        access="admin",
        body=ReleaseRequest,
        answer=ReleaseDetail,
        status=201,
    ),
    Endpoint(
        method="POST",
        path="/release-drafts",
        call=draft_release,
        access="admin",
        body=ReleaseRequest,
        answer=ReleaseDraft,
    ),
    Endpoint(
        method="POST",
        path="/signed-releases",
        call=import_release,
        access="admin",
        body=SignedRelease,
        answer=ReleaseDetail,
        status=201,
    ),
    Endpoint(
        method="POST",
        path="/releases/<release>/withdraw",
        call=withdraw_release,
        access="admin",
        answer=ReleaseDetail,
    ),
    Endpoint(method="GET", path="/release-key", call=show_release_key, access="viewer", answer=ReleaseKeyRow),
)
