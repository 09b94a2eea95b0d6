"""Where assignments are carried out: one thread that fetches blobs and trains, one thing at a time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from random import Random

from attrs import field, frozen

from protocol.messages import Assignment
from protocol.subnetwork import CLASSES, Region, groups

from . import memory
from .conversation import Failed, Fetched, Progressed
from .dataset import Dataset
from .download import Blobs, DownloadFailed, Fetching
from .feedback import Base, read_base
from .gate import Gate
from .runtime import TrainStep
from .trainer import Cancelled, Diverged, LocalResult, seeded, train

PROGRESS = 0.5  # seconds between two reports of progress

log = logging.getLogger(__name__)


@frozen
class Finished:
    """An assignment was trained; what it changed is not yet encoded."""

    assignment: Assignment
    result: LocalResult
    region: Region = field(repr=False)
    region_text: str = field(repr=False)
    shape_epoch: int


class Unfit(Exception):
    """Assignment, blobs and data do not go together."""


class Workshop:
    """Reports Fetched, Progressed, :class:`Finished` or Failed through ``report``, from its own thread."""

    def __init__(
        self,
        blobs: Blobs,
        gate: Gate,
        backend: str | None,
        threads: int,
        pace: float,
        report: Callable[[object], None],
    ) -> None:
        self._blobs = blobs
        self._gate = gate
        self.dataset: Dataset | None = None  # what the next assignment trains on
        self._backend = backend
        self._threads = threads
        self._pace = pace
        self._report = report
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._step: tuple[str, TrainStep] | None = None
        self._past = 0.0  # seconds of training before the present one
        self._training_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="workshop", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        """Stop what is being done, at the latest between two steps."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join(timeout)

    def fetch(self, assignment: Assignment) -> None:
        self._jobs.put(lambda: self._fetch(assignment))

    def train(self, assignment: Assignment) -> None:
        self._jobs.put(lambda: self._train(assignment))

    @property
    def training(self) -> float:
        """Seconds spent training since the start, pacing included."""
        since = self._training_since
        return self._past + (0.0 if since is None else self._gate.clock() - since)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _fetch(self, assignment: Assignment) -> None:
        started = time.monotonic()
        chance = Random()  # noqa: S311  # jitter, no secrets
        fetching = Fetching(assignment.lease, self._stopping.is_set, self._stopping.wait, chance)
        pair = (assignment.artifact, assignment.weights)
        try:
            size = sum(self._blobs.fetch(blob, pair, fetching) for blob in pair)
        except DownloadFailed as error:
            if not self._stopping.is_set():
                self._report(Failed(assignment.id, "download-failed", str(error)))
            return
        self._report(Fetched(assignment.id, time.monotonic() - started, size))

    def _train(self, assignment: Assignment) -> None:
        self._training_since = self._gate.clock()
        try:
            self._report(self._trained(assignment))
        except Cancelled:
            pass
        except (Unfit, Diverged, ValueError, RuntimeError, MemoryError) as error:
            self._fail(assignment, error)
        except Exception as error:  # whatever it is, the agent has to go on with other work
            log.exception("training-broke assignment=%s", assignment.id)
            self._fail(assignment, error)
        finally:
            self._past, self._training_since = self.training, None

    def _trained(self, assignment: Assignment) -> Finished:
        base = self._base(assignment)
        result = self._run(assignment, base)
        finished = Finished(assignment, result, base.region, base.region_text, base.shape_epoch)
        del base  # the weights it began with go before the update is encoded
        memory.give_back()
        return finished

    def _fail(self, assignment: Assignment, error: Exception) -> None:
        self._report(Failed(assignment.id, "training-failed", str(error) or type(error).__name__))

    def _base(self, assignment: Assignment) -> Base:
        blob = self._blobs.cached(assignment.weights)
        if blob is None:
            raise Unfit("its weights are no longer in the cache")
        return read_base(blob)

    def _run(self, assignment: Assignment, base: Base) -> LocalResult:
        dataset = self.dataset
        if dataset is None:
            raise Unfit("there is no training data that can be used")
        step = self._prepared(assignment)
        _check(assignment, base, step, dataset)
        reported = -PROGRESS

        def progress(number: int, loss: float | None) -> None:
            nonlocal reported
            now = time.monotonic()
            if number == 0 or now - reported >= PROGRESS:
                reported = now
                self._report(Progressed(assignment.id, number, loss))

        return train(
            step,
            base.weights,
            assignment.plan,
            dataset,
            seeded(assignment.id),
            on_progress=progress,
            cancelled=lambda: not self._gate.passed(self._stopping),
            pace=self._pace,
            clock=self._gate.clock,
            sleep=self._stopping.wait,
        )

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
