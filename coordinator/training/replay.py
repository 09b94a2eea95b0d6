"""A run once more, from its ledger alone: every input in its order, without any snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import field, frozen
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.store import models
from coordinator.store.blobs import Blobs
from coordinator.training import journal
from coordinator.training.inputs import Versioned
from coordinator.training.live import begun
from protocol.weights import Weights, digest

Read = Callable[[int, int, int], bytes]
BATCH = 200
"""Inputs that are read at a time."""


@frozen
class Replay:
    """What came out: ``version`` with ``weights`` and their hash, after so many ``inputs``.

    ``compared`` versions of the ledger had hashes to compare with; ``differs`` is the first of them with another one.
    ``snapshot`` is the whole state of the engine.
    """

    spec: ModelSpec
    version: int
    weights: Weights = field(repr=False)
    inputs: int
    compared: int
    differs: int | None
    snapshot: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return digest(self.weights)


def replay(
    session: Session,
    blobs: Blobs,
    read: Read,
    run: str,
    without: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Feed a run's inputs to a new engine, and compare every version with what the ledger says.

    The differences of devices ``without`` count as zero: a re-sum, since the others would have trained on other models
    had these not been there; nothing is compared then. ``read`` gives the body of an update by segment, offset and
    size. ShoalError not-found if there is no such run, database-unusable if inputs or bodies have been pruned.
    """
    row = session.get(models.Run, run)
    if row is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    spec = ModelSpec.from_json(session.scalars(select(models.Model.spec).filter_by(id=row.model_id)).one())
    engine = begun(row, spec, blobs, without)
    known = {} if without else dict(_hashes(session, run))
    total = session.scalar(select(func.count()).where(models.Input.run_id == run)) or 0
    differs, compared = None, 0
    for done, entry in enumerate(_inputs(session, run), 1):
        for effect in engine.handle(journal.from_row(entry.kind, entry.body, read), entry.at):
            if isinstance(effect, Versioned) and effect.version in known:
                compared += 1
                if known[effect.version] != effect.sha256 and differs is None:
                    differs = effect.version
        progress(done, total)
    core = engine.core
    if not without and core.version != row.version:
        reason = f"its inputs lead to version {core.version}, the ledger has {row.version}: some may have been pruned"
        raise ShoalError("database-unusable", f"Run {run} cannot be replayed: {reason}")
    return Replay(spec, core.version, core.weights, total, compared, differs, engine.snapshot())


def _hashes(session: Session, run: str) -> Iterator[tuple[int, str]]:
    mine = select(models.ModelVersion.version, models.ModelVersion.sha256).where(models.ModelVersion.run_id == run)
    yield from ((version, sha256) for version, sha256 in session.execute(mine) if version)


def _inputs(session: Session, run: str) -> Iterator[models.Input]:
    mine = select(models.Input).where(models.Input.run_id == run).order_by(models.Input.seq)
    yield from session.execute(mine.execution_options(yield_per=BATCH)).scalars()
