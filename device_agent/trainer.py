"""Local training: SGD steps of one compiled step over the device's samples, committed and checkpointed on the way.

Pure but for the clock, the sleep and the desk it is given: without a clock in its plan and fresh models from outside,
the same assignment on the same data makes the same commits, wherever it was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from protocol.messages import Fresh, Holdout, Merge, Plan
from protocol.weights import Array, Weights, finite

from .batches import Batches, seeded
from .dataset import Dataset
from .pacer import Pacer
from .position import Checkpoint, File, Position
from .tally import Diverged, StepOutcome, Tally

PATIENCE = 10.0  # seconds until a commit is tried again that found no room on the disk
MERGES = 64  # merges that one commit can tell of
ANY_NORM = 1e30  # to clip at; no gradient that is finite and of use is larger
PLANNED = ("momentum", "dampening", "weight_decay", "clip", "proximal")


class Step(Protocol):
    """A compiled training step: keeps weights and momentum between the calls."""

    @property
    def batch(self) -> int: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def options(self) -> Mapping[str, tuple[int, ...]]: ...
    def step(
        self,
        x: Array,
        y: NDArray[np.int32],
        sample_weight: Array,
        learning_rate: float,
        options: Mapping[str, float | Array],
    ) -> StepOutcome: ...
    def loss(
        self, x: Array, y: NDArray[np.int32], sample_weight: Array, options: Mapping[str, float | Array]
    ) -> float: ...
    def weights(self) -> Weights: ...
    def states(self) -> Iterator[Array]: ...
    def change(self, new: Callable[[str, Array], Array]) -> None: ...


class Cancelled(Exception):
    """Training was asked to stop before its last commit."""


class Unfit(Exception):
    """Plan, artifact, weights and data do not go together."""


@frozen(kw_only=True)
class LocalResult:
    """One commit: ``difference`` = weights now − effective base; ``loss`` and ``accuracy``: means over ``samples``.

    ``squared_gradient`` (mean) and ``squared_gradient_peak`` (largest) run over the ``steps`` since the last commit,
    per tensor. ``seconds`` are those of training since then, pacing included. The difference builds on ``version`` and
    ``merges``. ``last``: no further commit follows. ``holdout`` is what was measured before the first.
    """

    difference: Weights = field(repr=False)
    commit: int
    last: bool
    version: int
    merges: tuple[Merge, ...]
    samples: int
    steps: int
    loss: float
    accuracy: float
    squared_gradient: dict[str, float]
    squared_gradient_peak: dict[str, float]
    seconds: float
    holdout: Holdout | None = None


class Desk(Protocol):
    """What training is told, looked at between two batches, and where it reports to."""

    @property
    def plan(self) -> Plan: ...
    @property
    def allowed(self) -> int:
        """The highest commit that may be made now; waits until the last one made has been put away."""

    @property
    def fresh(self) -> Fresh | None:
        """The newest fresh model that is here."""

    @property
    def stopped(self) -> bool: ...
    def read(self, fresh: Fresh) -> Weights | None:
        """Its weights; None, after saying so, if they are of no use."""

    def write(self, tensors: Iterable[Array]) -> File | None:
        """A durable file for a checkpoint; None, after saying so, if there is no room."""

    def progressed(self, step: int, loss: float | None) -> None: ...
    def asked(self, commit: int, step: int, version: int) -> None: ...
    def merged(self, merge: Merge) -> None: ...
    def refused(self, plan: Plan, kept: Plan, reason: str) -> None: ...
    def checkpointed(self, checkpoint: Checkpoint) -> None: ...
    def committed(self, result: LocalResult, checkpoint: Checkpoint | None) -> None: ...


@frozen(kw_only=True)
class Start:
    """Where training begins: weights and momentum are in the step already, ``base`` is what they are compared with.

    ``checkpoint`` is where an earlier process left off. Without ``owned`` the base may not be written to. ``holdout``
    is what the weights reach on the device's own hold-out.
    """

    assignment: str
    version: int
    base: Weights = field(repr=False)
    owned: bool = False
    checkpoint: Checkpoint | None = None
    holdout: Holdout | None = None


class Training:
    """One assignment from ``start`` to its last commit, a checkpoint at least every ``checkpoint_every`` seconds.

    The effective base is kept as a copy of the weights, the only one beside the step's own: at a commit it becomes
    the difference, and the weights taken for it the next base. ``sleep(seconds)`` may return early.
    """

    def __init__(
        self,
        step: Step,
        start: Start,
        dataset: Dataset,
        desk: Desk,
        *,
        checkpoint_every: float,
        pace: float,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        position = start.checkpoint.position if start.checkpoint else None
        self._step, self._dataset, self._desk = step, dataset, desk
        self._assignment = start.assignment
        self._base, self._owned = start.base, start.owned
        self._holdout = start.holdout
        self._base_file = start.checkpoint.base if start.checkpoint else None
        self._base_changed = False  # since it was written
        self._rng = seeded(start.assignment)
        self._batches = Batches(len(dataset), step.batch, self._rng, position.order if position else None)
        self._tally = Tally(list(step.shapes), position.sums if position else None)
        self._version = position.version if position else start.version
        self._merges = list(position.merges) if position else []
        self._number, self._commits = (position.step, position.commit) if position else (0, 0)
        self._asked = position.asked if position else None
        self._plan = self._wanted = desk.plan
        self._values = values(self._plan, step.options)
        self._tried: Fresh | None = None
        self._every, self._clock = checkpoint_every, clock
        self._pacer = Pacer(pace, clock, sleep)
        self._since = clock() - (position.seconds if position else 0.0)
        self._kept = clock()
        self._not_before = -math.inf  # no room for a checkpoint, hence for a commit, until then

    def run(self) -> None:
        """Until the last commit is made. Raises Cancelled, or Diverged when a number stops being finite."""
        self._desk.progressed(self._number, None)
        self.step()
        while not self.settle():
            self.step()

    def step(self) -> None:
        """One batch, by what the desk says now. Raises as :meth:`run` does."""
        if self._desk.stopped:
            raise Cancelled
        self._amend()
        self._one_step()

    def settle(self) -> bool:
        """What follows a batch: a commit, a question, a checkpoint. Whether the last commit was made."""
        if self._due() and self._commit():
            return True
        self._ask()
        if self._clock() - self._kept >= self._every:
            self.keep()
        return False

    # Steps.

    def _amend(self) -> None:
        """Take up a changed plan."""
        wanted = self._desk.plan
        if wanted is self._wanted:
            return
        self._wanted = wanted
        try:
            self._values = values(wanted, self._step.options)
            self._plan = wanted
        except Unfit as error:
            self._desk.refused(wanted, self._plan, str(error))

    def _one_step(self) -> None:
        indices, sample_weight = next(self._batches)
        x, y = self._dataset.batch(indices)
        options = self._options()
        trained = int(np.count_nonzero(sample_weight))
        self._pacer.begin()
        merge = self._merge(lambda: self._step.loss(x, y, sample_weight, options) / trained)
        outcome = self._step.step(x, y, sample_weight, self._plan.learning_rate, options)
        self._number += 1
        self._tally.add(outcome, trained, self._number)
        loss = outcome.loss_sum / trained
        if merge is not None:
            # A step tells the loss it began with: that of the merged weights.
            self._merges.append(evolve(merge, loss_after=_told(loss)))
            self._desk.merged(self._merges[-1])
        self._desk.progressed(self._number, loss)
        self._pacer.end()

    def _options(self) -> dict[str, float | Array]:
        """What the step takes beside its batch: the plan's values, and chances for dropout."""
        drawn = {name: shape for name, shape in self._step.options.items() if name not in self._values}
        return {**self._values, **{name: self._rng.random(shape, np.float32) for name, shape in drawn.items()}}

    # Fresh models.

    def _merge(self, loss: Callable[[], float]) -> Merge | None:
        """Merge the fresh model that is here, if it is newer than all before; what ``loss()`` was before."""
        fresh = self._desk.fresh
        if fresh is None or fresh is self._tried or fresh.version <= self._newest or len(self._merges) == MERGES:
            return None
        self._tried = fresh
        weights = self._desk.read(fresh)
        if weights is None:
            return None
        before = loss()
        self._own()
        take, keep = np.float32(fresh.merge), np.float32(fresh.keep)
        rest = np.float32(1) - take

        def merged(name: str, weight: Array) -> Array:
            base, new = self._base[name], weights[name]
            learnt = weight - base
            base *= rest
            base += take * new
            weight *= rest
            weight += take * new
            learnt *= keep
            weight += learnt
            return weight

        self._step.change(merged)
        self._base_changed = True
        return Merge(
            step=self._number, version=fresh.version, merge=fresh.merge, keep=fresh.keep, loss_before=_told(before)
        )

    def _own(self) -> None:
        if not self._owned:
            self._base, self._owned = {name: value.copy() for name, value in self._base.items()}, True

    @property
    def _newest(self) -> int:
        return self._merges[-1].version if self._merges else self._version

    def _ask(self) -> None:
        """Ask for the fresh model, once at every refresh point."""
        point = self._plan.refresh
        if point is not None and self._number >= point and self._asked != point:
            self._asked = point
            self._desk.asked(self._commits + 1, self._number, self._newest)

    # Commits and checkpoints.

    @property
    def _seconds(self) -> float:
        """Of training since the last commit."""
        return self._clock() - self._since

    @property
    def _amount(self) -> float:
        """What was trained since the last commit, in commits' worth."""
        amount = self._tally.steps / self._plan.steps
        return amount if self._plan.seconds is None else max(amount, self._seconds / self._plan.seconds)

    @property
    def _ends(self) -> bool:
        """Whether with one more commit all is done that the plan asks for."""
        left = self._plan.commits - self._commits
        if left <= 1:
            return self._amount >= 1
        all_steps = self._tally.steps >= left * self._plan.steps
        return all_steps or (self._amount >= left and self._desk.allowed <= self._commits)

    def _due(self) -> bool:
        """While no commit is allowed the next one grows, until nothing is left to train."""
        return self._amount >= 1 and (self._ends or self._desk.allowed > self._commits)

    def _commit(self) -> bool:
        """Commit what was learnt; whether it was the last time. Without room on the disk training goes on instead."""
        last, file = self._ends, None
        if not last:
            if self._clock() < self._not_before:
                return False
            file = self._desk.write(self._step.states())
            if file is None:
                self._not_before = self._clock() + PATIENCE
                return False
        result = self._result(last)
        self._commits += 1
        self._version, self._merges = self._newest, []
        self._tally = Tally(list(self._step.shapes))
        self._since = self._kept = self._clock()
        self._base_file, self._base_changed = file, False
        self._desk.committed(result, self._checkpoint(file) if file else None)
        return last

    def _result(self, last: bool) -> LocalResult:
        tally = self._tally
        return LocalResult(
            difference=self._difference(last),
            commit=self._commits + 1,
            last=last,
            version=self._version,
            merges=tuple(self._merges),
            samples=tally.samples,
            steps=tally.steps,
            loss=tally.loss,
            accuracy=tally.accuracy,
            squared_gradient=tally.squared_gradient,
            squared_gradient_peak=tally.squared_gradient_peak,
            seconds=self._seconds,
            holdout=self._holdout if self._commits == 0 else None,
        )

    def _difference(self, last: bool) -> Weights:
        now = self._step.weights()
        base, self._base = self._base, {} if last else now
        # In place: on a small board every copy of the model counts.
        room = base if self._owned else now if last else {}
        self._owned = True
        difference = {name: np.subtract(value, base[name], out=room.get(name)) for name, value in now.items()}
        if not finite(difference):
            raise Diverged(f"a weight is not finite after {self._number} steps")
        return difference

    def keep(self) -> None:
        """A checkpoint; if there is no room, the next one comes when it would have come anyway."""
        self._kept = self._clock()
        if self._base_changed:
            base = self._desk.write(self._base.values())
            if base is None:
                return
            self._base_file, self._base_changed = base, False
        file = self._desk.write(self._step.states())
        if file is not None:
            self._desk.checkpointed(self._checkpoint(file))

    def _checkpoint(self, weights: File) -> Checkpoint:
        position = Position(
            step=self._number,
            commit=self._commits,
            version=self._version,
            seconds=max(self._seconds, 0.0),
            sums=self._tally.sums(),
            order=self._batches.order(),
            merges=tuple(self._merges),
            asked=self._asked,
        )
        return Checkpoint(assignment=self._assignment, position=position, weights=weights, base=self._base_file)


def values(plan: Plan, options: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """What the plan says about the artifact's ``options``; Unfit if one of the two asks for what the other lacks."""
    foreign = [name for name in options if name not in PLANNED and not name.startswith("dropout/")]
    if foreign:
        raise Unfit(f"the artifact takes {foreign[0]!r}, which no plan says anything about")
    missing = [name for name in PLANNED if getattr(plan, name) and name not in options]
    if missing:
        raise Unfit(f"the plan asks for {missing[0]} {getattr(plan, missing[0]):g}, the artifact was made without it")
    found = {name: float(getattr(plan, name)) for name in PLANNED if name in options}
    if found.get("clip") == 0:
        found["clip"] = ANY_NORM
    return found


def _told(loss: float) -> float | None:
    """As far as a message can carry it."""
    return loss if math.isfinite(loss) and abs(loss) <= 1e30 else None
