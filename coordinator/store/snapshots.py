"""Which snapshots of a run are kept: what recovery reads, and some versions of the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import field, frozen, validators
from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from coordinator.store.models import Release, Snapshot

NEEDED: Final = 2
"""Recovery reads the newest snapshot, and the one before should that be damaged."""


@frozen(kw_only=True)
class Thinning:
    """The ``last`` snapshots are kept, and the first one of every ``every`` versions (0: of none)."""

    last: int = field(default=NEEDED, validator=validators.ge(NEEDED))
    every: int = field(default=0, validator=validators.ge(0))

    def marks(self, before: int, version: int) -> bool:
        """Whether a multiple of ``every`` was reached since version ``before``."""
        return bool(self.every) and version // self.every > before // self.every

    def spare(self, versions: Sequence[int]) -> list[int]:
        """Of the versions of a run's snapshots, oldest first, the places of those that may go."""
        before, found = -self.every, []
        for place, version in enumerate(versions):
            if self.marks(before, version):
                before = version
            elif place < len(versions) - self.last:
                found.append(place)
        return found


def needed_from(session: Session, run: str) -> int:
    """The input from whose snapshot on a run that goes on may have to be recovered; 0 if that is the first."""
    newest = select(Snapshot.seq).where(Snapshot.run_id == run).order_by(Snapshot.seq.desc()).limit(NEEDED)
    found = session.scalars(newest).all()
    return found[-1] if len(found) == NEEDED else 0


def promoted() -> ColumnElement[bool]:
    """Of a snapshot: a release was made of its version, so it is kept whatever its age."""
    return exists().where(Release.run_id == Snapshot.run_id, Release.model_version == Snapshot.version)
