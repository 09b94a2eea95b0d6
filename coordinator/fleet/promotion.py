"""From a version of a run to a release that devices can run: compiled, put where they fetch it from, signed."""

from __future__ import annotations

from collections.abc import Iterable
from threading import BoundedSemaphore
from typing import Final

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.fleet import model_release, releases
from coordinator.fleet.model_release import NO_LIMITS, Limits, Promotion
from coordinator.fleet.releases import ReleaseKey
from coordinator.services import Services
from coordinator.store.blobs import Blobs
from protocol.deployments import ReleaseFile

PATIENCE: Final = 10.0
_compiling = BoundedSemaphore(1)
"""A promotion is seconds of work and holds a model in memory: one at a time."""


@frozen(kw_only=True)
class Promoted:
    """``release`` is its number in the table, ``version`` its name; of version ``model_version`` of ``run``.
    ``unsigned`` is the manifest, where it is to be signed elsewhere and there is no release yet."""

    release: int | None
    version: str
    run: str
    model_version: int
    sizes: tuple[Width, ...]
    unsigned: str = ""


@frozen(kw_only=True)
class Width:
    """What a width of a released model costs, and its accuracy on the run's test set."""

    width: float
    flops: int
    bytes: int
    memory: int
    accuracy: float | None


def promote(
    services: Services,
    run: str,
    which: str = model_release.NEWEST,
    *,
    by: str,
    name: str = "",
    notes: str = "",
    widths: Iterable[float] = (),
    limits: Limits = NO_LIMITS,
    unsigned: bool = False,
) -> Promoted:
    """Release a version of a run: ``newest``, ``best`` or a number. ``name`` is the release's version, by default made
    of run and number; ``unsigned`` makes everything but the signature.

    ShoalError not-found, bad-model, conflict for a name there is already, busy while another one is compiled.
    """
    if not _compiling.acquire(timeout=PATIENCE):
        raise ShoalError("busy", "Another model is being compiled: ask again in a moment")
    try:
        made = _compiled(services, run, which, widths, limits)
        files = stored(services.blobs, made)
    finally:
        _compiling.release()
    version = name or f"{made.card.run}-v{made.card.version}"
    now, facts = services.clock(), made.facts
    if unsigned:
        with services.database.read() as session:
            text = releases.draft(session, kind="model", version=version, now=now, files=files, facts=facts)
        return _promoted(made, version, None, text)
    key = ReleaseKey.of(services.settings.home)

    def write(session: Session) -> int:
        row = releases.create(
            session,
            key,
            kind="model",
            version=version,
            now=now,
            files=files,
            facts=facts,
            by=by,
            notes=notes,
            run=made.card.run,
            model_version=made.card.version,
        )
        return row.id

    return _promoted(made, version, services.commands.write(write))


def _compiled(services: Services, run: str, which: str, widths: Iterable[float], limits: Limits) -> Promotion:
    with services.database.read() as session:
        number = model_release.chosen(session, run, which)
        # A run that goes on has a newer one by now: the newest is whatever it is when it is worked out.
        version = None if which == model_release.NEWEST else number
        return model_release.files(session, services.settings.home, run, version, widths=widths, limits=limits)


def stored(blobs: Blobs, made: Promotion) -> tuple[ReleaseFile, ...]:
    """The files in the blob store, as a manifest names them."""
    return tuple(releases.stored(blobs, name, content) for name, content in made.files.items())


def _promoted(made: Promotion, version: str, release: int | None, unsigned: str = "") -> Promoted:
    sizes = tuple(
        Width(width=s.width, flops=s.flops, bytes=s.bytes, memory=s.memory, accuracy=s.accuracy)
        for s in made.card.sizes
    )
    card = made.card
    return Promoted(
        release=release, version=version, run=card.run, model_version=card.version, sizes=sizes, unsigned=unsigned
    )
