"""Where one assignment is trained: what the main thread wants of it, and what training has to report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from attrs import evolve, field, frozen

from protocol.errors import ProtocolError
from protocol.messages import Assignment, DeviceEvent, Fresh, Merge, Plan
from protocol.subnetwork import Region
from protocol.weights import Array, Weights
from protocol.wire import encode

from . import feedback
from .checkpoint import Checkpoints
from .conversation import Asked, Checkpointed, Failed, FreshFailed, Merged, Noticed, Progressed, Refused, Trained
from .download import Blobs
from .feedback import Base, read_base
from .gate import Gate
from .position import Checkpoint, File
from .trainer import LocalResult, Unfit

PROGRESS = 0.5  # seconds between two reports of progress
WAIT = 0.1  # seconds between two looks at whether all is to end

log = logging.getLogger(__name__)


@frozen
class Finished:
    """A commit was trained; what it changed is not yet encoded."""

    assignment: Assignment
    result: LocalResult
    region: Region = field(repr=False)
    region_text: str = field(repr=False)
    shape_epoch: int
    checkpoint: Checkpoint | None

    def encoded(self, residual: Callable[[str], bytes | None]) -> Trained | Failed:
        """As an update, with what earlier ones of the run left over; ``residual`` gives that."""
        assignment = self.assignment
        try:
            # Nobody but feedback holds the residual, which drops it as soon as it can.
            body, left = feedback.encode(
                self.result.difference, assignment.plan.coding, self.region, residual(assignment.run)
            )
        except ProtocolError as error:
            return Failed(assignment.id, "training-failed", str(error))
        slim = evolve(self.result, difference={})
        return Trained(assignment.id, slim, self.shape_epoch, body, self.region_text, left, self.checkpoint)


class Bench:
    """``plan`` and ``fresh`` are set, and :meth:`allow`, :meth:`taken` and :meth:`stop` called, by the main thread.

    Everything else is for training's.
    """

    def __init__(
        self,
        assignment: Assignment,
        blobs: Blobs,
        checkpoints: Checkpoints,
        gate: Gate,
        closing: threading.Event,
        report: Callable[[object], None],
    ) -> None:
        self.assignment = assignment
        self.plan = assignment.plan
        self.fresh: Fresh | None = None
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._gate = gate
        self._closing = closing
        self._report = report
        self._stopped = False
        self._allowed = 0
        self._away = threading.Event()  # the last commit is in the spool
        self._away.set()
        self._reported = 0.0
        self._full = False  # the disk, and it was said

    def allow(self, commit: int) -> None:
        self._allowed = commit

    def taken(self) -> None:
        """The last commit was put away, and whether another one may follow has been said."""
        self._away.set()

    def stop(self) -> None:
        self._stopped = True
        self._away.set()

    @property
    def allowed(self) -> int:
        # Were training to go on meanwhile, how much a commit tells of would be a matter of luck.
        while not self._away.wait(WAIT) and not self.stopped:
            pass
        return self._allowed

    @property
    def stopped(self) -> bool:
        """Asked before every batch; the answer waits while training has to stand still."""
        return not self._gate.passed(lambda: self._stopped or self._closing.is_set())

    def begin(self) -> Base:
        """The weights the assignment starts from; Unfit if they are not here, ProtocolError if they are none."""
        blob = self._blobs.cached(self.assignment.weights)
        if blob is None:
            raise Unfit("its weights are no longer in the cache")
        base = read_base(blob)
        self._region, self._region_text, self._shape_epoch = base.region, base.region_text, base.shape_epoch
        return base

    def read(self, fresh: Fresh) -> Weights | None:
        try:
            blob = self._blobs.cached(fresh.weights)
            if blob is None:
                raise ProtocolError("it is no longer in the cache")
            base = read_base(blob)
            if _part(base.region, base.shape_epoch) != _part(self._region, self._shape_epoch):
                raise ProtocolError("it is not the part of the model that is being trained")
            return base.weights
        except ProtocolError as error:
            self._report(FreshFailed(self.assignment.id, fresh.version, str(error)))
            return None

    def write(self, tensors: Iterable[Array]) -> File | None:
        try:
            file = self._checkpoints.write(tensors)
        except OSError as error:
            if not self._full:
                self._full = True
                text = f"a checkpoint cannot be written: {error.strerror}; training goes on without"
                self._report(Noticed(DeviceEvent(kind="checkpoint-failed", text=text)))
            return None
        self._full = False
        return file

    def progressed(self, step: int, loss: float | None) -> None:
        now = time.monotonic()
        if loss is None or now - self._reported >= PROGRESS:
            self._reported = now
            self._report(Progressed(self.assignment.id, step, loss))

    def asked(self, commit: int, step: int, version: int) -> None:
        self._report(Asked(self.assignment.id, commit, step, version))

    def merged(self, merge: Merge) -> None:
        before, after = merge.loss_before, merge.loss_after
        log.info("merged assignment=%s version=%d loss=%s→%s", self.assignment.id, merge.version, before, after)
        self._report(Merged(self.assignment.id, merge))

    def refused(self, plan: Plan, kept: Plan, reason: str) -> None:
        self._report(Refused(self.assignment.id, plan, kept, reason))

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        encode(checkpoint)  # too long a one is found out here, where it costs the assignment only
        self._report(Checkpointed(self.assignment.id, checkpoint))

    def committed(self, result: LocalResult, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            encode(checkpoint)
        self._away.clear()
        parts = (self._region, self._region_text, self._shape_epoch)
        self._report(Finished(self.assignment, result, *parts, checkpoint))


def _part(region: Region, shape_epoch: int) -> object:
    """Which part of the model it is, to compare."""
    return region.layout, dict(region.subnetwork.channels), shape_epoch
