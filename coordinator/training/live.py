"""A run that is going on: its engine, what its devices fetch, and how it is recovered."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from coordinator.compiler.compile import compile_model
from coordinator.compiler.cost import flops
from coordinator.compiler.optimiser import Training
from coordinator.compiler.rewrite import narrower
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from coordinator.compiler.targets import reads, target_of
from coordinator.errors import ShoalError
from coordinator.store import ledger, models
from coordinator.store.blobs import Blobs
from coordinator.store.ledger import Delivery
from coordinator.store.snapshots import Thinning, promoted
from coordinator.strategies.base import Cost
from coordinator.training import initial, journal, recipe
from coordinator.training.engine import Engine, Setting
from coordinator.training.evaluation import Evaluation
from coordinator.training.inputs import Offered, Refreshed
from coordinator.training.work import FRESH
from protocol import tensors
from protocol.errors import ProtocolError
from protocol.messages import Plan
from protocol.subnetwork import Region, Subnetwork, layout_to_json, nested
from protocol.weights import Weights

log = logging.getLogger(__name__)

SNAPSHOT_INPUTS = 200
"""A snapshot is taken after this many inputs: recovery replays no more than these."""


class LiveRun:
    """One run in memory. Belongs to the steward's thread. ShoalError not-found if its first weights are gone."""

    def __init__(
        self,
        row: models.Run,
        spec: ModelSpec,
        evaluation: Evaluation | None,
        blobs: Blobs,
        thinning: Thinning = Thinning(),  # noqa: B008 - a value
    ) -> None:
        self.id = row.id
        self.spec = spec
        self.evaluation = evaluation
        self._blobs = blobs
        self.engine = begun(row, spec, blobs)
        self._artifacts: dict[tuple[float, int, Training, int, str], tuple[str, int]] = {}
        self._current: dict[tuple[float, int], tuple[str, int]] = {}
        self._version = -1
        self._users: Counter[str] = Counter()
        self._unused: set[str] = set()
        self._weights_of: defaultdict[str, list[str]] = defaultdict(list)
        self._since_snapshot = 0
        self._thinning = thinning
        self._marked = 0

    # -- what devices fetch --------------------------------------------------------------------------------------

    def delivery(self, offer: Offered, runtime: str) -> Delivery:
        """Artifact and cut weights for a new offer, stored as blobs; ``runtime`` is what the device trains with."""
        artifact = self._artifact(offer.plan, target_of(runtime))
        weights = self._cut(offer.plan)
        self._use(offer.assignment, weights[0])
        return Delivery(*artifact, *weights)

    def fresh(self, refresh: Refreshed) -> tuple[str, int]:
        """Hash and size of the cut weights that a device is to merge."""
        weights = self._cut(refresh.plan)
        self._use(refresh.assignment, weights[0])
        return weights

    def delivery_again(self, session: Session, offer: Offered, runtime: str) -> Delivery:
        """What was offered before; ShoalError not-found if its weights are gone. An artifact that is gone, or that the
        device's runtime does not read any more, is compiled anew."""
        artifact, weights = ledger.delivery(session, offer.assignment)
        target = target_of(runtime)
        if not self._readable(artifact, target):
            artifact = self._artifact(offer.plan, target)[0]
            # Another compiler than the one before may have made other bytes: devices fetch what their row names.
            mine = models.Assignment.id == offer.assignment
            session.execute(update(models.Assignment).where(mine).values(artifact_sha256=artifact))
        return Delivery(artifact, self._blobs.size(artifact), weights, self._blobs.size(weights))

    def lacks(self, assignment: str) -> bool:
        """Whether this is an open assignment whose first weights are gone from the disk."""
        weights = self._weights_of.get(assignment)
        return weights is not None and not self._blobs.has(weights[0])

    def released(self, assignment: str) -> None:
        """An assignment has ended: nobody needs its weights for it any more."""
        for weights in self._weights_of.pop(assignment, ()):
            self._users[weights] -= 1
            self._unused.add(weights)

    def sweep(self) -> None:
        """After a commit: remove the weights that no open assignment names and no new one will."""
        current = {sha256 for sha256, _ in self._current.values()}
        for sha256 in self._unused - current:
            if self._users[sha256] <= 0:
                self._blobs.remove(sha256)
                del self._users[sha256]
        self._unused.clear()

    def retire(self) -> None:
        """The run has ended, and nobody fetches anything for it any more."""
        for sha256 in {sha256 for sha256, _ in self._current.values()} | set(self._users):
            self._blobs.remove(sha256)

    def _use(self, assignment: str, weights: str) -> None:
        """The assignment needs these weights beside its first ones, and beside other fresh models still on the way."""
        mine = self._weights_of[assignment]
        mine.append(weights)
        self._users[weights] += 1
        if len(mine) > 1 + FRESH:
            old = mine.pop(1)
            self._users[old] -= 1
            self._unused.add(old)

    def _artifact(self, plan: Plan, target: str) -> tuple[str, int]:
        wanted = training(plan)
        key = plan.width, plan.batch, wanted, self.engine.core.shape_epoch, target
        known = self._artifacts.get(key)
        if known is None or not self._blobs.has(*known):
            part = nested(self.engine.core.layout, plan.width)  # counts mean the same in the layout of the spec
            made = compile_model(self.spec, part, plan.batch, "train", training=wanted, target=target)
            content = made.for_backend(target)
            known = self._artifacts[key] = self._blobs.put(content), len(content)
        return known

    def _readable(self, artifact: str, target: str) -> bool:
        try:
            return reads(target, self._blobs.get(artifact))
        except ShoalError:
            return False

    def _cut(self, plan: Plan) -> tuple[str, int]:
        """The part of the current version that a plan trains; cut once per version, and again should it have gone."""
        core = self.engine.core
        if core.version != self._version:
            self._unused |= {sha256 for sha256, _ in self._current.values()}
            self._current, self._version = {}, core.version
        key = plan.width, plan.roll
        known = self._current.get(key)
        if known is None or not self._blobs.has(*known):
            region = self.engine.region(plan)
            content = tensors.encode(region.cut(core.weights), self._described(region))
            known = self._current[key] = self._blobs.put(content), len(content)
        return known

    def _described(self, region: Region) -> dict[str, str]:
        # Run and version make the bytes the run's own: removing them can hurt nobody else.
        return {
            "layout": json.dumps(layout_to_json(region.layout)),
            "channels": json.dumps(dict(region.subnetwork.channels)),
            "run": self.id,
            "version": str(self.engine.core.version),
            "shape_epoch": str(self.engine.core.shape_epoch),
        }

    # -- survival ------------------------------------------------------------------------------------------------

    def recover(self, session: Session, read: Callable[[int, int, int], bytes]) -> int:
        """Become what the store says: the newest snapshot, then every input after it. Returns how many.

        ShoalError ``database-unusable`` if that is not what the ledger says.
        """
        after = (models.Input.run_id == self.id, models.Input.seq > self._restore(session))
        rows = session.execute(select(models.Input).where(*after).order_by(models.Input.seq)).scalars().all()
        for row in rows:
            self.engine.handle(journal.from_row(row.kind, row.body, read), row.at)
        version = session.scalar(select(models.Run.version).where(models.Run.id == self.id))
        if self.engine.core.version != version:
            reached = f"its snapshots and inputs lead to version {self.engine.core.version}"
            raise ShoalError("database-unusable", f"Run {self.id} is at version {version} in the ledger, but {reached}")
        for assignment, weights in ledger.open_weights(session, self.id):
            self._use(assignment, weights)
        self._since_snapshot = len(rows)
        return len(rows)

    def _restore(self, session: Session) -> int:
        """Take the newest snapshot that can be read; returns its input's number. Without one, all inputs are left."""
        mine = select(models.Snapshot.seq, models.Snapshot.sha256).where(models.Snapshot.run_id == self.id)
        for seq, sha256 in session.execute(mine.order_by(models.Snapshot.seq.desc())).all():
            try:
                self.engine.restore(self._blobs.get(sha256))
            except (ShoalError, ProtocolError) as error:
                log.warning("snapshot-unusable run=%s seq=%d reason=%s", self.id, seq, error)
                if isinstance(error, ShoalError):
                    self._blobs.remove(sha256)  # damaged: the same bytes may be stored anew
            else:
                self._marked = self.engine.core.version
                return int(seq)
        return 0

    def counted(self) -> bool:
        """One input more; True when it is time for a snapshot, also because the version is one to be kept."""
        self._since_snapshot += 1
        marked = self._thinning.marks(self._marked, self.engine.core.version)
        return marked or self._since_snapshot >= SNAPSHOT_INPUTS

    @property
    def unsaved(self) -> bool:
        """Whether there were inputs since the newest snapshot."""
        return self._since_snapshot > 0

    def snapshot(self, session: Session, seq: int, now: float) -> None:
        """Keep the engine's state after input ``seq``; of the older ones those that are not kept go."""
        sha256 = self._blobs.put(self.engine.snapshot(), durable=True)
        values = {"run_id": self.id, "seq": seq, "version": self.engine.core.version, "sha256": sha256, "at": now}
        session.merge(models.Snapshot(**values))  # one of the same input may be there, unreadable
        session.flush()
        kept = session.execute(
            select(models.Snapshot.seq, models.Snapshot.version, models.Snapshot.sha256, promoted().label("promoted"))
            .where(models.Snapshot.run_id == self.id)
            .order_by(models.Snapshot.seq)
        ).all()
        spare = [kept[place] for place in self._thinning.spare([row.version for row in kept])]
        for old in (row for row in spare if not row.promoted):
            session.execute(
                delete(models.Snapshot).where(models.Snapshot.run_id == self.id, models.Snapshot.seq == old.seq)
            )
            # Runs that began alike have equal snapshots for a while.
            if session.scalar(select(models.Snapshot.seq).where(models.Snapshot.sha256 == old.sha256).limit(1)) is None:
                self._blobs.remove(old.sha256)
        self._since_snapshot, self._marked = 0, self.engine.core.version


def begun(row: models.Run, spec: ModelSpec, blobs: Blobs, without: frozenset[str] = frozenset()) -> Engine:
    """The engine of a run as it began; what comes from the devices ``without`` will count as zero."""
    cookbook, costs = recipe.parse(row.recipe), partial(cost, spec)
    measured, control = bool(row.dataset), bool(row.control)
    setting = Setting(row.id, cookbook, layout(spec), costs, row.seed, row.target, measured, control, without)
    return Engine(setting, initial.weights(row, spec, blobs))


def cost(spec: ModelSpec, part: Subnetwork) -> Cost:
    """What a part of a model costs."""
    return Cost(Region(layout(spec), part).parameters, flops(spec, part))


def training(plan: Plan) -> Training:
    """What the training graph must be able to do for a plan."""
    return Training(
        momentum=plan.momentum > 0,
        weight_decay=plan.weight_decay > 0,
        clip=plan.clip > 0,
        proximal=plan.proximal > 0,
    )


def weights_of(
    session: Session, blobs: Blobs, read: Callable[[int, int, int], bytes], run: str, version: int | None = None
) -> tuple[ModelSpec, Weights, int]:
    """Model, weights and number of a version of a run, worked out beside whoever trains it; nothing is written.

    Without ``version`` it is the newest; others can be had while a snapshot of them is kept. A model that was cut down
    is one of its own. ``read`` gives the body of an update by segment, offset and size. ShoalError not-found if there
    is no such run or version.
    """
    row = session.get(models.Run, run)
    if row is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    spec = ModelSpec.from_json(session.scalars(select(models.Model.spec).filter_by(id=row.model_id)).one())
    live = LiveRun(row, spec, None, blobs)
    if version is None or version == row.version:
        live.recover(session, read)
    else:
        live.engine.restore(blobs.get(_snapshot_of(session, row, version)))
    core = live.engine.core
    if core.shape_epoch:
        spec = narrower(spec, nested(core.layout, 1.0))
    return spec, core.weights, core.version


def _snapshot_of(session: Session, run: models.Run, version: int) -> str:
    found = session.execute(
        select(models.Snapshot.version, models.Snapshot.sha256).where(models.Snapshot.run_id == run.id)
    ).all()
    kept: dict[int, str] = {row.version: row.sha256 for row in found}
    if version not in kept:
        those = ", ".join(str(number) for number in sorted({*kept, run.version}))
        sentence = f"The weights of version {version} of {run.id} are not kept, only those of {those}"
        raise ShoalError("not-found", sentence)
    return kept[version]
