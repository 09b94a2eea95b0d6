"""Where assignments are carried out: one thread fetches blobs, another trains, each one thing at a time."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from random import Random

from protocol.messages import Assignment, Blob, Fresh, Plan
from protocol.subnetwork import CLASSES, groups

from . import holdout, memory
from .bench import Bench
from .checkpoint import CheckpointLost, Checkpoints, parted
from .conversation import Failed, Fetched, FreshFailed, FreshFetched
from .dataset import Dataset
from .download import Blobs, DownloadFailed, Fetching
from .feedback import Base
from .gate import Gate
from .position import Checkpoint
from .runtime import TrainStep
from .tally import Diverged
from .trainer import Cancelled, Start, Training, Unfit

log = logging.getLogger(__name__)


class _Lane:
    """A thread that does one job after the other."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float) -> None:
        self._jobs.put(None)
        self._thread.join(timeout)

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Workshop:
    """Reports through ``report``, from its own threads, what happens to the assignment in hand.

    Fetched, FreshFetched or FreshFailed, :class:`~device_agent.bench.Finished` for every commit, Failed, and what a
    :class:`~device_agent.bench.Bench` reports besides. ``checkpoint_every`` in seconds.
    """

    def __init__(
        self,
        blobs: Blobs,
        gate: Gate,
        checkpoints: Checkpoints,
        backend: str | None,
        threads: int,
        pace: float,
        checkpoint_every: float,
        report: Callable[[object], None],
    ) -> None:
        self._blobs = blobs
        self._gate = gate
        self.dataset: Dataset | None = None  # what the next assignment trains on
        self.held_out: Dataset | None = None  # what it is measured on
        self._checkpoints = checkpoints
        self._backend = backend
        self._threads = threads
        self._pace = pace
        self._checkpoint_every = checkpoint_every
        self._report = report
        self._stopping = threading.Event()
        self._step: tuple[str, TrainStep] | None = None
        self._wanted: str | None = None  # the assignment in hand
        self._bench: Bench | None = None
        self._past = 0.0  # seconds of training before the present one
        self._training_since: float | None = None
        self._fetching, self._training = _Lane("fetching"), _Lane("training")

    def open(self) -> None:
        self._fetching.open()
        self._training.open()

    def close(self, timeout: float = 0.3) -> None:
        """Stop what is being done, at the latest between two steps."""
        self._stopping.set()
        self._training.close(timeout)
        self._fetching.close(timeout)

    def fetch(self, assignment: Assignment) -> None:
        self._wanted = assignment.id
        self._fetching.put(lambda: self._fetch(assignment))

    def fetch_fresh(self, assignment: Assignment, fresh: Fresh) -> None:
        self._fetching.put(lambda: self._fetch_fresh(assignment, fresh))

    def train(self, assignment: Assignment, commits: int, checkpoint: Checkpoint | None) -> None:
        """Train from ``checkpoint`` on, where ``commits`` commits have been made, or from the start."""
        bench = self._bench = Bench(
            assignment, self._blobs, self._checkpoints, self._gate, self._stopping, self._report
        )
        self._training.put(lambda: self._train(bench, commits, checkpoint))

    def allow(self, assignment: str, commit: int) -> None:
        if bench := self._bench_of(assignment):
            bench.allow(commit)

    def taken(self, assignment: str) -> None:
        """A commit that was reported is in the spool, and whether another may follow has been said."""
        if bench := self._bench_of(assignment):
            bench.taken()

    def amend(self, assignment: str, plan: Plan) -> None:
        if bench := self._bench_of(assignment):
            bench.plan = plan

    def merge(self, assignment: str, fresh: Fresh) -> None:
        if bench := self._bench_of(assignment):
            bench.fresh = fresh

    def stop(self, assignment: str) -> None:
        """Fetch and train no further."""
        if self._wanted == assignment:
            self._wanted = None
        if bench := self._bench_of(assignment):
            bench.stop()
            self._bench = None

    @property
    def training(self) -> float:
        """Seconds spent training since the start, pacing included."""
        since = self._training_since
        return self._past + (0.0 if since is None else self._gate.clock() - since)

    def _bench_of(self, assignment: str) -> Bench | None:
        bench = self._bench
        return bench if bench is not None and bench.assignment.id == assignment else None

    # Fetching.

    def _fetch(self, assignment: Assignment) -> None:
        started = time.monotonic()
        try:
            size = self._download(assignment, assignment.artifact, assignment.weights)
        except DownloadFailed as error:
            if not self._unwanted(assignment):
                self._report(Failed(assignment.id, "download-failed", str(error)))
            return
        self._report(Fetched(assignment.id, time.monotonic() - started, size))

    def _fetch_fresh(self, assignment: Assignment, fresh: Fresh) -> None:
        started = time.monotonic()
        try:
            size = self._download(assignment, fresh.weights)
        except DownloadFailed as error:
            if not self._unwanted(assignment):
                self._report(FreshFailed(assignment.id, fresh.version, str(error)))
            return
        self._report(FreshFetched(assignment.id, fresh.version, time.monotonic() - started, size))

    def _download(self, assignment: Assignment, *blobs: Blob) -> int:
        """Have ``blobs`` in the cache; the bytes that came over the wire."""
        chance = Random()  # noqa: S311  # jitter, no secrets
        fetching = Fetching(assignment.lease, lambda: self._unwanted(assignment), self._stopping.wait, chance)
        keep = (assignment.artifact, assignment.weights, *blobs)
        return sum(self._blobs.fetch(blob, keep, fetching) for blob in blobs)

    def _unwanted(self, assignment: Assignment) -> bool:
        return self._stopping.is_set() or self._wanted != assignment.id

    # Training.

    def _train(self, bench: Bench, commits: int, checkpoint: Checkpoint | None) -> None:
        self._training_since = self._gate.clock()
        try:
            self._trained(bench, commits, checkpoint)
        except Cancelled:
            pass
        except (Unfit, Diverged, ValueError, RuntimeError, MemoryError) as error:
            self._fail(bench, error)
        except Exception as error:  # whatever it is, the agent has to go on with other work
            log.exception("training-broke assignment=%s", bench.assignment.id)
            self._fail(bench, error)
        finally:
            self._past, self._training_since = self.training, None
            memory.give_back()

    def _fail(self, bench: Bench, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        self._report(Failed(bench.assignment.id, "training-failed", reason))

    def _trained(self, bench: Bench, commits: int, checkpoint: Checkpoint | None) -> None:
        dataset = self.dataset
        if dataset is None:
            raise Unfit("there is no training data that can be used")
        step = self._prepared(bench.assignment)
        # Nothing here may hold on to the weights it begins with: they go with the first commit.
        Training(
            step,
            self._start(bench, step, dataset, commits, checkpoint),
            dataset,
            bench,
            checkpoint_every=self._every(bench, step),
            pace=self._pace,
            clock=self._gate.clock,
            sleep=self._stopping.wait,
        ).run()

    def _start(
        self, bench: Bench, step: TrainStep, dataset: Dataset, commits: int, checkpoint: Checkpoint | None
    ) -> Start:
        """The step with its weights, and what they are to be compared with."""
        assignment, base = bench.assignment, bench.begin()
        _check(assignment, base, step, dataset)
        if commits and (checkpoint is None or checkpoint.position.commit != commits):
            raise Unfit(f"{commits} commits of it were made, but where it stood then is lost")
        if checkpoint is not None:
            try:
                return self._resumed(bench, step, base, checkpoint)
            except CheckpointLost as error:
                if commits:
                    raise Unfit(str(error)) from error
                log.warning("begun-anew assignment=%s cause=%r", assignment.id, str(error))
        step.load(base.weights)
        found = None
        if bench.plan.evaluate and self.held_out is not None:
            found = holdout.measure(step, self.held_out, bench.plan)
            step.load(base.weights)
        return Start(assignment=assignment.id, version=assignment.version, base=base.weights, holdout=found)

    def _resumed(self, bench: Bench, step: TrainStep, base: Base, checkpoint: Checkpoint) -> Start:
        states = self._checkpoints.read(checkpoint.weights)
        weights, rest = parted(states, step.shapes)
        momentum, rest = parted(rest, step.shapes) if step.remembers else (None, rest)
        if len(rest):
            raise CheckpointLost("the checkpoint is not one of this artifact")
        step.load(weights, base.weights, momentum)
        start = base.weights
        if checkpoint.base is not None:
            same = checkpoint.base == checkpoint.weights
            start, _ = parted(states if same else self._checkpoints.read(checkpoint.base), step.shapes)
        place = checkpoint.position
        log.info("resumed assignment=%s step=%d commits=%d", bench.assignment.id, place.step, place.commit)
        return Start(
            assignment=bench.assignment.id,
            version=bench.assignment.version,
            base=start,
            owned=checkpoint.base is not None,
            checkpoint=checkpoint,
        )

    def _every(self, bench: Bench, step: TrainStep) -> float:
        """Seconds between two checkpoints; Unfit if there is no room for those that commits need."""
        weights = 4 * sum(math.prod(shape) for shape in step.shapes.values())
        # While one is written, its predecessor is still there.
        needed = 2 * (weights + weights * (1 + step.remembers))
        if needed <= self._checkpoints.limit:
            return self._checkpoint_every
        if bench.plan.commits > 1:
            raise Unfit(f"its checkpoints need {needed} bytes, the spool has {self._checkpoints.limit} for them")
        return math.inf

    def _prepared(self, assignment: Assignment) -> TrainStep:
        """The compiled step; the last one is kept, for the next assignment often has the same."""
        name = assignment.artifact.sha256
        if self._step is None or self._step[0] != name:
            artifact = self._blobs.cached(assignment.artifact)
            if artifact is None:
                raise Unfit("its artifact is no longer in the cache")
            self._step = None  # two interpreters at once would be the agent's peak of memory
            self._step = name, TrainStep(artifact, self._backend, self._threads)
        return self._step[1]


def _check(assignment: Assignment, base: Base, step: TrainStep, dataset: Dataset) -> None:
    """Unfit unless plan, artifact, weights and data go together."""
    if step.batch != assignment.plan.batch:
        raise Unfit(f"the artifact takes batches of {step.batch}, the plan says {assignment.plan.batch}")
    if tuple(step.input_shape) != dataset.input:
        raise Unfit(
            f"the artifact takes samples of shape {tuple(step.input_shape)}, the data has {dataset.input}"
        )
    if dict(step.shapes) != base.region.shapes:
        raise Unfit("the artifact's tensors are not those of the weights")
    classes = groups(base.region.layout).get(CLASSES)
    if classes is not None and dataset.classes > classes:
        raise Unfit(f"the model has {classes} classes, the data {dataset.classes}")
