"""All runs that are going on: starting, steering and recovering them, and turning inputs into rows and answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen
from sqlalchemy import func, insert, select

from coordinator.compiler.spec import ModelSpec, ModelSpecError
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.store import ledger, models
from coordinator.store.blobs import Blobs
from coordinator.store.ledger import Ledger
from coordinator.store.segments import Segments
from coordinator.store.snapshots import Thinning
from coordinator.training import computations, initial, journal, recipe
from coordinator.training.attendance import Attendance
from coordinator.training.consequences import Consequences
from coordinator.training.evaluation import Evaluation, read_dataset
from coordinator.training.inputs import (
    Answered,
    Changed,
    CheckedIn,
    Departed,
    Effect,
    Evaluated,
    Input,
    Operated,
    Requested,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.live import LiveRun
from coordinator.training.turn import Turn
from protocol.messages import CheckIn
from protocol.weights import digest

Submit = Callable[[str, Evaluation, int, Any], None]
"""Asks for an evaluation: run, its test set, version, weights."""

Compute = Callable[[str, int, Callable[[], dict[str, float]]], None]
"""Has a question answered: run, number, and what finds the answer."""
Trace = Callable[[str, Effect, float, float | None], None]
"""Hears what was committed: run, effect, when, and when its assignment was offered."""

log = logging.getLogger(__name__)

ENDED = ("stopped", "finished")

_INPUT = insert(models.table_of(models.Input))


@frozen(eq=False)
class Wanted:
    """What a run is to be made of, read and checked; ``dataset`` is the path of its test set, or nothing, ``weights``
    the file it begins with, if not with weights its seed draws."""

    spec: ModelSpec
    recipe: recipe.Recipe
    evaluation: Evaluation | None
    dataset: str
    target: float | None
    seed: int
    weights: bytes | None = field(default=None, repr=False)


@define
class Runs:
    """Belongs to the steward's thread."""

    blobs: Blobs
    segments: Segments
    heartbeat: float
    submit: Submit
    compute: Compute
    thinning: Thinning = field(factory=Thinning)
    trace: Trace | None = None
    live: dict[str, LiveRun] = field(factory=dict)
    attendance: Attendance = field(init=False)
    seq: int = 0
    pace: float = 2.0
    """Seconds after which a device without work is to come back."""

    def __attrs_post_init__(self) -> None:
        self.attendance = Attendance(self.heartbeat)

    # -- inputs --------------------------------------------------------------------------------------------------

    def check_in(self, turn: Turn, run: LiveRun, given: CheckedIn) -> None:
        """A device offers itself. Work that it holds, but whose weights are gone, is taken as not held: it is
        cancelled, and the device gets other work."""
        self.attendance.came(given.device.id, run.id)
        held = given.check_in.held
        if held is None or not run.lacks(held):
            self.handle(turn, run, given)
            return
        self.handle(turn, run, evolve(given, check_in=evolve(given.check_in, held=None)), lost=held)

    def handle(
        self, turn: Turn, run: LiveRun, given: Input, place: journal.Place | None = None, lost: str | None = None
    ) -> None:
        """Journal an input, let the engine decide, write what follows and answer. All in the turn's transaction.

        ``lost`` is an assignment that the input makes the engine close because its weights are gone."""
        kind, body = journal.to_row(given, place)
        self.seq += 1
        row = {"seq": self.seq, "run_id": run.id, "kind": kind, "body": body, "at": turn.now}
        turn.session.execute(_INPUT, row)
        book = Ledger(turn.session, run.id, turn.now, self.heartbeat)
        if isinstance(given, Evaluated):
            book.evaluated(given)
        runtime = given.check_in.runtime if isinstance(given, CheckedIn) else ""
        follow = Consequences(turn, run, book, self.pace, runtime, place or (0, 0), lost)
        for effect in run.engine.handle(given, turn.now):
            self._told(turn, run, effect)
            follow.of(effect)
            match effect:
                case Versioned():
                    self._evaluate(turn, run, effect.version)
                case Requested():
                    self._request(turn, run, effect.number)
                case Changed() if effect.state in ENDED:
                    turn.after.append(lambda: self._retire(run))
        if run.counted() or run.engine.core.state in ENDED:
            run.snapshot(turn.session, self.seq, turn.now)
        turn.after.append(run.sweep)

    def _told(self, turn: Turn, run: LiveRun, effect: Effect) -> None:
        """Whoever traces hears of it after the commit."""
        if self.trace is None:
            return
        of = effect.update.assignment if isinstance(effect, Settled) else getattr(effect, "assignment", None)
        offered = ledger.offered_at(turn.session, of) if of is not None else None
        turn.after.append(partial(self.trace, run.id, effect, turn.now, offered))

    def _retire(self, run: LiveRun) -> None:
        """The run has ended: from now on it lives in the store only."""
        self.live.pop(run.id, None)
        run.retire()

    def _evaluate(self, turn: Turn, run: LiveRun, version: int) -> None:
        if (evaluation := run.evaluation) is not None:
            weights = run.engine.core.weights
            turn.after.append(lambda: self.submit(run.id, evaluation, version, weights))

    def _request(self, turn: Turn, run: LiveRun, number: int) -> None:
        """Have a member's question answered, on the thread that measures."""
        question, evaluation = run.engine.core.questions[number], run.evaluation
        version, weights = run.engine.core.version, run.engine.core.weights
        work = partial(computations.found, question, evaluation, version, weights)
        turn.after.append(lambda: self.compute(run.id, number, work))

    def answered(self, turn: Turn, run: str, answer: Answered) -> None:
        """A member's question was answered."""
        if (live := self.live.get(run)) is not None:
            self.handle(turn, live, answer)

    def measured(self, turn: Turn, run: str, result: Evaluated) -> None:
        """An evaluation is done; one for a run that has ended meanwhile is only written down."""
        live = self.live.get(run)
        if live is not None:
            self.handle(turn, live, result)
        else:
            Ledger(turn.session, run, turn.now, self.heartbeat).evaluated(result)

    def tick(self, turn: Turn, run: str) -> None:
        """Leases of a run that have run out, and what its members wanted to be woken for."""
        live = self.live.get(run)
        if live is not None and live.engine.deadline is not None and live.engine.deadline <= turn.now:
            self.handle(turn, live, Ticked())

    def depart(self, turn: Turn, device: str) -> None:
        """A device was revoked."""
        for run in self.live.values():
            self.handle(turn, run, Departed(device))

    # -- choosing ------------------------------------------------------------------------------------------------

    def fitting(self, device: str, check_in: CheckIn) -> LiveRun | None:
        """The run a device should work for: the one it holds work of, else the least busy that fits its data."""
        running = [run for run in self.live.values() if run.engine.core.state == "running"]
        for run in running:
            held = run.engine.core.open.get(check_in.held or "")
            if held is not None and held.device.id == device:
                return run
        ready = [run for run in running if fits(run.spec, check_in)]
        return min(ready, key=lambda run: len(run.engine.core.open), default=None)

    # -- operators -----------------------------------------------------------------------------------------------

    def start(self, turn: Turn, wanted: Wanted, *, by: str, name: str | None) -> str:
        """Create a run and let it begin; returns its id."""
        spec, cookbook = wanted.spec, wanted.recipe
        row = models.Run(
            id=self._free_id(turn, name or spec.name),
            model_id=self._model_id(turn, spec),
            recipe=cookbook.to_toml(),
            recipe_name=cookbook.name,
            seed=wanted.seed,
            initial_sha256=None if wanted.weights is None else self.blobs.put(wanted.weights, durable=True),
            target=wanted.target,
            dataset=wanted.dataset,
            control=wanted.evaluation is not None and wanted.evaluation.has_control,
            state="running",
            created_by=by,
            created_at=turn.now,
        )
        run = LiveRun(row, spec, wanted.evaluation, self.blobs, self.thinning)
        turn.session.add(row)
        turn.session.flush()
        first = {"run_id": row.id, "version": 0, "sha256": digest(run.engine.core.weights), "step_norm": 0.0}
        turn.session.execute(insert(models.ModelVersion).values(**first, updates=0, at=turn.now))
        book = Ledger(turn.session, row.id, turn.now, self.heartbeat)
        book.event("run-started", f"{by} started {row.id}: {spec.name} by {cookbook.name}")
        row_id = row.id
        turn.after.append(lambda: self.live.setdefault(row_id, run))
        self._evaluate(turn, run, 0)
        return row_id

    def operate(self, turn: Turn, run: str, action: str, by: str) -> None:
        """Pause, resume or stop a run."""
        if action not in ("pause", "resume", "stop"):
            raise ShoalError("bad-request", f"{action!r} is no command for a run, expected pause, resume or stop")
        live = self.live.get(run)
        if live is None and turn.session.get(models.Run, run) is None:
            raise ShoalError("not-found", f"There is no run {run[:80]!r}")
        state = live.engine.core.state if live else "over"
        allowed = {"pause": ("running",), "resume": ("paused",), "stop": ("running", "paused")}[action]
        if live is None or state not in allowed:
            raise ShoalError("conflict", f"Run {run} is {state}: it cannot {action}")
        self.handle(turn, live, Operated(action, by))

    def _free_id(self, turn: Turn, name: str) -> str:
        stem = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:30] or "run"
        pattern = models.Run.id.like(f"{stem}-%")
        number = (turn.session.scalar(select(func.count()).where(pattern)) or 0) + 1
        while turn.session.get(models.Run, f"{stem}-{number}") is not None:
            number += 1
        return f"{stem}-{number}"

    def _model_id(self, turn: Turn, spec: ModelSpec) -> int:
        known = turn.session.scalar(select(models.Model.id).where(models.Model.spec_sha256 == spec.sha256))
        if known is not None:
            return known
        row = models.Model(name=spec.name, spec_sha256=spec.sha256, spec=spec.to_json(), created_at=turn.now)
        turn.session.add(row)
        turn.session.flush()
        return row.id

    # -- survival ------------------------------------------------------------------------------------------------

    def recover(self, turn: Turn) -> None:
        """Load every run that has not ended, and go on where the last commit was."""
        live: dict[str, LiveRun] = {}
        going = models.Run.state.not_in(ENDED) & ~models.Run.simulated
        for row in turn.session.execute(select(models.Run).where(going)).scalars().all():
            book = Ledger(turn.session, row.id, turn.now, self.heartbeat)
            try:
                run = self._rebuild(row, turn, book)
                inputs = run.recover(turn.session, self.segments.read)
            except ShoalError as error:
                # One run whose past is lost must not keep the others from going on.
                log.error("run-unrecoverable run=%s reason=%s", row.id, error)
                book.event("run-unrecoverable", str(error))
                continue
            live[row.id] = run
            version = run.engine.core.version
            book.event("run-recovered", f"{row.id} goes on at version {version}, after replaying {inputs} inputs")
            if turn.session.get(models.Metric, (row.id, version, "accuracy")) is None:
                self._evaluate(turn, run, version)
            for number in run.engine.core.questions:
                self._request(turn, run, number)
        self.seq = turn.session.scalar(select(func.max(models.Input.seq))) or 0
        self.live = live

    def _rebuild(self, row: models.Run, turn: Turn, book: Ledger) -> LiveRun:
        spec = ModelSpec.from_json(turn.session.scalars(select(models.Model.spec).filter_by(id=row.model_id)).one())
        try:
            return self._build(row, spec)
        except ShoalError as error:
            if error.code != "bad-dataset":
                raise
            # A test set that was moved away must not keep the whole coordinator from starting.
            book.event("dataset-lost", f"{row.id} goes on, but its versions are not measured: {error}")
            return LiveRun(row, spec, None, self.blobs, self.thinning)

    def _build(self, row: models.Run, spec: ModelSpec) -> LiveRun:
        evaluation = Evaluation(spec, read_dataset(Path(row.dataset), spec)) if row.dataset else None
        return LiveRun(row, spec, evaluation, self.blobs, self.thinning)

    def snapshot(self, turn: Turn) -> None:
        """Before a clean end: the next start has nothing to replay."""
        for run in self.live.values():
            if run.unsaved:
                run.snapshot(turn.session, self.seq, turn.now)


def prepare(
    *, model: str, recipe_text: str, dataset: str, target: float | None, seed: int, weights: str = ""
) -> Wanted:
    """Read and check everything a run is made of, and compile what measures it: seconds, on the thread of whoever
    asks. ShoalError with what does not fit."""
    spec = read_spec(model)
    cookbook = recipe.load(recipe_text)
    if target is not None and not 0 < target <= 1:
        raise ShoalError("bad-request", f"target is {target}, expected an accuracy above 0 and up to 1")
    rules = cookbook.stop
    if (target is not None or rules.target or rules.patience) and not dataset and not cookbook.plan.evaluate:
        reason = "name a dataset, or let the devices measure (evaluate = true under [plan])"
        raise ShoalError("bad-request", f"Nobody would know when the target is reached: {reason}")
    if not 0 <= seed < 1 << 31:
        raise ShoalError("bad-request", f"seed is {seed}, expected a whole number from 0 to 2147483647")
    began = initial.read_file(Path(weights), spec) if weights else None
    if not dataset:
        return Wanted(spec, cookbook, None, "", target, seed, began)
    evaluation = Evaluation(spec, read_dataset(Path(dataset), spec))
    return Wanted(spec, cookbook, evaluation, str(Path(dataset).resolve()), target, seed, began)


def read_spec(model: str) -> ModelSpec:
    """A model of the zoo by name, or a spec as JSON text; ShoalError ``bad-model``."""
    try:
        spec = ZOO[model] if model in ZOO else ModelSpec.from_json(model)
    except ModelSpecError as error:
        hint = "" if model.lstrip().startswith("{") else f" (known models: {', '.join(ZOO)})"
        raise ShoalError("bad-model", f"{error}{hint}") from error
    if not spec.labelled:
        raise ShoalError("bad-model", f"Model {spec.name} learns targets: a run trains classifiers, by labels")
    return spec


def fits(spec: ModelSpec, check_in: CheckIn) -> bool:
    """Whether a device's data have the model's shape and no label it does not know."""
    return check_in.input == spec.input and check_in.classes <= spec.classes and check_in.samples > 0
