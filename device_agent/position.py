"""Where training stands, as values."""

from __future__ import annotations

from attrs import frozen

from protocol.messages import Merge, Message

from .batches import Order
from .tally import Sums


@frozen(kw_only=True)
class Position(Message):
    """Where training of an assignment stands after ``step`` steps, of which ``commit`` commits have told a part.

    The next difference builds on ``version``, and on ``merges`` since the last commit, which was ``seconds`` of
    training ago. ``asked`` is the refresh point at which the fresh model was asked for last.
    """

    step: int
    commit: int
    version: int
    seconds: float
    sums: Sums
    order: Order
    merges: tuple[Merge, ...] = ()
    asked: int | None = None

    @property
    def newest(self) -> int:
        return self.merges[-1].version if self.merges else self.version


@frozen(kw_only=True)
class File(Message):
    """One file of a checkpoint."""

    number: int
    size: int
    sha256: str


@frozen(kw_only=True)
class Checkpoint(Message):
    """``weights`` and, behind them, momentum; ``base`` is None while that is what the assignment came with."""

    assignment: str
    position: Position
    weights: File
    base: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        return (self.weights,) if self.base is None or self.base == self.weights else (self.weights, self.base)
