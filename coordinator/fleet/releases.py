"""Releases: what devices may be told to run. They are made here, signed, and never change.

The key is an Ed25519 key of the coordinator's own: ``release.key`` in its home, PEM, readable by nobody else, made when
it is first asked for. Where only ``release.pub`` is left there, the private half is kept elsewhere: releases are then
exported, signed where it is, and brought back.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.fleet import bundles
from coordinator.store.blobs import Blobs
from coordinator.store.models import Event, ModelVersion, Release
from protocol import model_card
from protocol.deployments import KINDS, MAX_MANIFEST, Manifest, ReleaseFile
from protocol.errors import ProtocolError
from protocol.model_card import ModelCard
from protocol.remote_settings import read_settings
from protocol.wire import decode, encode

PRIVATE: Final = "release.key"
PUBLIC: Final = "release.pub"
LIFE: Final = 365 * 86_400.0
"""Seconds after which no device begins with a release any more, unless it is made for longer or shorter."""


@frozen
class ReleaseKey:
    """What releases are signed with; ``private`` is None where that half is kept elsewhere."""

    public: str
    """The 32 bytes of the public key in hexadecimal digits, as devices are told when they join."""
    private: Ed25519PrivateKey | None = None

    @classmethod
    def of(cls, home: Path) -> ReleaseKey:
        """The key in ``home``, made if there is none. ShoalError home-unusable for one that cannot be read."""
        private, public = home / PRIVATE, home / PUBLIC
        if not private.exists() and not public.exists():
            _make(private)
        if not private.exists():
            return cls(_raw(_load_public(public)))
        return cls.read(private)

    @classmethod
    def read(cls, path: Path) -> ReleaseKey:
        """From a private key in PEM, such as ``openssl genpkey -algorithm ed25519`` writes it."""
        key = _load_private(path)
        return cls(_raw(key.public_key()), key)

    def sign(self, manifest: str) -> str:
        """128 hexadecimal digits over the text as it stands; ShoalError conflict without the private half."""
        if self.private is None:
            raise ShoalError(
                "conflict",
                "The private half of the release key is kept elsewhere: sign what shoal release export-unsigned "
                "writes where the key is, and bring it back with shoal release import",
            )
        return self.private.sign(manifest.encode()).hex()


def verify(public: str, manifest: str, signature: str) -> bool:
    """Whether ``signature`` (hexadecimal) over the text is by the key whose public half is ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), manifest.encode())
    except (ValueError, InvalidSignature):
        return False
    return True


def draft(
    session: Session,
    *,
    kind: str,
    version: str,
    now: float,
    files: Sequence[ReleaseFile] = (),
    settings: str = "",
    facts: Mapping[str, float] | None = None,
    floor: int = 0,
    life: float = LIFE,
) -> str:
    """The manifest of a new release, not yet signed. Its number is one above all of its kind.

    ShoalError bad-request for what no manifest can hold, conflict for a version there is already.
    """
    if kind in KINDS and _named(session, kind, version):
        raise ShoalError("conflict", f"There is a release {kind} {version} already: releases never change")
    newest = session.scalar(select(func.max(Release.number)).where(Release.kind == kind)) or 0
    try:
        if kind == "config":
            read_settings(settings)
        manifest = Manifest(
            kind=kind,
            version=version,
            number=newest + 1,
            created_at=now,
            expires_at=now + life,
            floor=floor,
            files=tuple(files),
            settings=settings,
            facts=dict(facts or {}),
        )
        text = encode(manifest).decode()
    except ProtocolError as error:
        raise ShoalError("bad-request", f"This cannot be released: {error}") from error
    if len(text) > MAX_MANIFEST:
        raise ShoalError("bad-request", f"The manifest has {len(text)} characters, expected at most {MAX_MANIFEST}")
    if floor > manifest.number:
        raise ShoalError("bad-request", f"floor is {floor}, expected at most the release's number {manifest.number}")
    return text


def create(
    session: Session,
    key: ReleaseKey,
    *,
    kind: str,
    version: str,
    now: float,
    by: str,
    files: Sequence[ReleaseFile] = (),
    settings: str = "",
    facts: Mapping[str, float] | None = None,
    floor: int = 0,
    life: float = LIFE,
    notes: str = "",
    run: str | None = None,
    model_version: int | None = None,
) -> Release:
    """Make and sign a release; its ``files`` are in the blob store already (:func:`stored`).

    Errors as of :func:`draft`, and conflict where the private key is not here.
    """
    text = draft(
        session,
        kind=kind,
        version=version,
        now=now,
        files=files,
        settings=settings,
        facts=facts,
        floor=floor,
        life=life,
    )
    signature = key.sign(text)
    return _add(session, text, signature, now=now, by=by, notes=notes, run=run, model_version=model_version)


def admit(
    session: Session, key: ReleaseKey, blobs: Blobs, text: str, signature: str, *, now: float, by: str, notes: str = ""
) -> Release:
    """Take in a release that was signed elsewhere. ShoalError bad-request if it is not signed by our key, conflict if
    it was overtaken by another one of its kind, not-found if its files are not here."""
    if not verify(key.public, text, signature):
        raise ShoalError("bad-request", f"The signature is not one of the key {key.public[:16]}… over this manifest")
    try:
        manifest = decode(Manifest, text.encode())
    except ProtocolError as error:
        raise ShoalError("bad-request", f"The manifest cannot be read: {error}") from error
    newest = session.scalar(select(func.max(Release.number)).where(Release.kind == manifest.kind)) or 0
    if manifest.number <= newest or _named(session, manifest.kind, manifest.version):
        raise ShoalError(
            "conflict",
            f"{manifest.kind} {manifest.version} is number {manifest.number}, and {newest} is there already: export "
            "and sign it again",
        )
    for file in manifest.files:
        if not blobs.has(file.sha256, file.size):
            raise ShoalError("not-found", f"The file {file.name} with sha256 {file.sha256} is not here")
    run, version = _source(session, blobs, manifest)
    return _add(session, text, signature, now=now, by=by, notes=notes, run=run, model_version=version)


def _source(session: Session, blobs: Blobs, manifest: Manifest) -> tuple[str | None, int | None]:
    """The version of a run of ours that a model was made from, as its card says."""
    file = manifest.file(model_card.CARD)
    if manifest.kind != "model" or file is None:
        return None, None
    try:
        card = decode(ModelCard, blobs.get(file.sha256))
    except ProtocolError:
        return None, None
    known = session.get(ModelVersion, (card.run, card.version))
    return (card.run, card.version) if known is not None and known.sha256 == card.sha256 else (None, None)


def withdraw(session: Session, id: int, now: float, *, by: str) -> None:
    """No rollout may begin with it any more; those that go on do. ShoalError not-found or conflict."""
    release = session.get(Release, id)
    if release is None:
        raise ShoalError("not-found", f"There is no release {id}")
    if release.withdrawn_at is not None:
        raise ShoalError("conflict", f"Release {release.kind} {release.version} is withdrawn already")
    release.withdrawn_at = now
    session.add(Event(at=now, kind="release-withdrawn", text=f"{by} withdrew {release.kind} {release.version}"))
    session.flush()


def manifest_of(release: Release) -> Manifest:
    return decode(Manifest, release.manifest.encode())


def stored(blobs: Blobs, name: str, content: bytes) -> ReleaseFile:
    """Put a file of a release where devices fetch it from; it is never removed from there."""
    return ReleaseFile(name=name, sha256=blobs.put(content, durable=True), size=len(content))


def agent_files(folder: Path, blobs: Blobs, version: str = "") -> tuple[str, tuple[ReleaseFile, ...]]:
    """The newest bundles of an agent's ``version`` (by default that of the newest bundle there is), copied out of their
    folder, so that they outlive it. ShoalError not-found if there is none."""
    listed = bundles.listed(folder)
    if not version and listed:
        version = max(listed, key=lambda one: one.made_at).version
    found = {one.target: one for one in reversed(listed) if one.version == version}
    if not found:
        which = f"of version {version[:40]} " if version else ""
        raise ShoalError("not-found", f"There is no bundle {which}in {folder}: make some with shoal bundle build")
    return version, tuple(stored(blobs, name, one.read()) for name, one in sorted(found.items()))


def _named(session: Session, kind: str, version: str) -> bool:
    named = select(Release.id).where(Release.kind == kind, Release.version == version)
    return session.scalar(named) is not None


def _add(
    session: Session,
    text: str,
    signature: str,
    *,
    now: float,
    by: str,
    notes: str,
    run: str | None = None,
    model_version: int | None = None,
) -> Release:
    manifest = decode(Manifest, text.encode())
    release = Release(
        kind=manifest.kind,
        version=manifest.version,
        number=manifest.number,
        manifest=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        signature=signature,
        run_id=run,
        model_version=model_version,
        notes=notes,
        created_by=by,
        created_at=now,
    )
    session.add(release)
    about = f"{by} released {release.kind} {release.version}"
    session.add(Event(at=now, kind="release-created", run_id=run, text=about))
    session.flush()
    return release


# -- the key ---------------------------------------------------------------------------------------------------------


def take_out(home: Path, path: Path) -> ReleaseKey:
    """Move the private half to ``path``, a file that is not there yet, and leave the public one: from then on nobody
    who takes over this machine can sign. ShoalError conflict if it is elsewhere already."""
    key = ReleaseKey.of(home)
    if key.private is None:
        raise ShoalError("conflict", f"The private half of the release key is not in {home}")
    public = key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(path, _pem(key.private), 0o600)
    with suppress(FileExistsError):
        _write(home / PUBLIC, public, 0o644)
    (home / PRIVATE).unlink()
    return ReleaseKey(key.public)


def _make(path: Path) -> None:
    with suppress(FileExistsError):  # somebody else was faster: theirs is the one
        _write(path, _pem(Ed25519PrivateKey.generate()), 0o600)


def _pem(key: Ed25519PrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _raw(key: Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def _load_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ShoalError("home-unusable", f"{path} is damaged: it should be an unencrypted Ed25519 key in PEM form")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)  # a backup may have restored it readable by others
    return key


def _load_public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ShoalError("home-unusable", f"{path} is damaged: it should be an Ed25519 public key in PEM form")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShoalError("home-unusable", f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that must not be there yet, durably and in one step; nobody else can read it at any moment."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise ShoalError("home-unusable", f"{path} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
