"""A version of a run's model as the files of a release: every width compiled for inference, its weights beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.compiler.compile import Artifact, compile_model
from coordinator.compiler.kinds import BatchNorm
from coordinator.compiler.shapes import layout
from coordinator.compiler.signatures import CompileError
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.store import segments
from coordinator.store.blobs import Blobs
from coordinator.store.models import Metric, ModelVersion, Run, Snapshot, Update
from coordinator.training.evaluation import Dataset, Evaluation, read_dataset
from coordinator.training.live import weights_of
from protocol import model_card, tensors
from protocol.model_card import ModelCard, ModelSize
from protocol.subnetwork import WIDTHS, Region, nested
from protocol.weights import Weights
from protocol.wire import encode

NEWEST: Final = "newest"
BEST: Final = "best"


@frozen
class Limits:
    """What a device may accept: ``accuracy_drop`` (0 to 1) against the model before on its own hold-out,
    ``milliseconds`` for one sample, ``memory`` in bytes. None: no bound."""

    accuracy_drop: float | None = None
    milliseconds: float | None = None
    memory: int | None = None

    def facts(self) -> dict[str, float]:
        """As a release tells of them; ShoalError bad-request for what bounds nothing."""
        drop = self.accuracy_drop
        if drop is not None and not 0 <= drop <= 1:
            raise ShoalError("bad-request", f"The accuracy may drop by 0 to 1, not by {drop:g}")
        for name, value in (("milliseconds", self.milliseconds), ("memory", self.memory)):
            if value is not None and not 0 < value < 1e15:
                raise ShoalError("bad-request", f"A device may accept {name} above 0, not {value:g}")
        given = {
            model_card.MAX_ACCURACY_DROP: drop,
            model_card.MAX_MILLISECONDS: self.milliseconds,
            model_card.MAX_MEMORY: self.memory,
        }
        return {name: float(value) for name, value in given.items() if value is not None}


NO_LIMITS: Final = Limits()


@frozen(kw_only=True)
class Promotion:
    """``files`` by name and ``facts`` of a release of the kind model: see :class:`protocol.deployments.Manifest`."""

    card: ModelCard
    files: Mapping[str, bytes] = field(repr=False)
    facts: Mapping[str, float]


def chosen(session: Session, run: str, which: str) -> int:
    """The number of the version meant by ``newest``, ``best`` (most accurate of those whose weights are kept; on the
    control set where the run has one, which the test set is not for) or a number; ShoalError not-found."""
    row = session.get(Run, run)
    if row is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    if which == NEWEST:
        return row.version
    if which.isdecimal() and len(which) < 10:
        return int(which)
    if which != BEST:
        raise ShoalError("bad-request", f"version is {which[:40]!r}, expected a number, {NEWEST} or {BEST}")
    kept = select(Snapshot.version).where(Snapshot.run_id == run)
    name = "control_accuracy" if row.control else "accuracy"
    measured = Metric.run_id == run, Metric.name == name, (Metric.version == row.version) | Metric.version.in_(kept)
    best = session.scalar(select(Metric.version).where(*measured).order_by(Metric.value.desc(), Metric.version.desc()))
    if best is None:
        raise ShoalError("not-found", f"No version of {run} whose weights are kept was measured: name one, or {NEWEST}")
    return best


def files(
    session: Session,
    home: Path,
    run: str,
    version: int | None = None,
    *,
    widths: Iterable[float] = (),
    limits: Limits = NO_LIMITS,
) -> Promotion:
    """A version (the newest by default) at ``widths``, or at every width that it is any good at.

    Seconds of work; nothing is written. ShoalError not-found if the version's weights are not kept, bad-model if it
    cannot be compiled.
    """
    facts = limits.facts()
    folder = home / "segments"
    spec, weights, number = weights_of(
        session, Blobs(home / "blobs"), lambda *place: segments.read(folder, *place), run, version
    )
    place = session.scalar(select(Run.dataset).where(Run.id == run))
    family = _Family(spec, weights, read_dataset(Path(place), spec) if place else None)
    wanted = list(widths)
    sizes = family.sizes(wanted) if wanted else family.all_sizes(_trained(session, run))
    card = ModelCard(
        model=spec.name[:80],
        input=spec.input,
        classes=spec.classes,
        run=run,
        version=number,
        sha256=session.get_one(ModelVersion, (run, number)).sha256,
        sizes=tuple(sizes),
    )
    for size in sizes:
        facts[f"{model_card.MEMORY}-{size.width:g}"] = float(size.memory)
        if size.accuracy is not None:
            facts[f"{model_card.ACCURACY}-{size.width:g}"] = size.accuracy
    return Promotion(card=card, files={model_card.CARD: encode(card), **family.files}, facts=facts)


def _trained(session: Session, run: str) -> set[float]:
    """Widths that devices trained, as far as it went into the model."""
    applied = Update.run_id == run, Update.outcome == "applied"
    return set(session.scalars(select(Update.width).where(*applied).distinct()))


class _Family:
    """The widths of one version; ``files`` grow as sizes are asked for."""

    def __init__(self, spec: ModelSpec, weights: Weights, dataset: Dataset | None) -> None:
        self.files: dict[str, bytes] = {}
        self._spec, self._weights = spec, weights
        self._layout = layout(spec)
        normed = any(isinstance(layer, BatchNorm) for layer in spec.layers)
        if normed and dataset is None:
            raise ShoalError(
                "bad-model",
                f"{spec.name} normalises by statistics of its data, and the run has no test set to take them from",
            )
        self._evaluation = Evaluation(spec, dataset) if dataset is not None else None

    def all_sizes(self, trained: set[float]) -> list[ModelSize]:
        """Every width of the family that is a model of its own; where nothing measures them, the full one and those
        that were trained: the others may be no good at all."""
        found: list[ModelSize] = []
        shapes: list[dict[str, tuple[int, ...]]] = []
        for width in WIDTHS:
            if width < 1 and width not in trained and self._evaluation is None:
                continue
            region = Region(self._layout, nested(self._layout, width))
            if region.shapes in shapes:
                continue
            try:
                found.append(self.size(width))
            except CompileError as error:
                if width == 1:
                    raise ShoalError("bad-model", f"{self._spec.name} cannot be compiled: {error}") from error
                continue  # too narrow for what the model has between its layers
            shapes.append(region.shapes)
        return found

    def sizes(self, widths: Iterable[float]) -> list[ModelSize]:
        """These widths; ShoalError for one that cannot be."""
        found = []
        for width in sorted(set(widths), reverse=True):
            if not 1 / 1024 <= width <= 1:
                raise ShoalError("bad-request", f"width is {width:g}, expected a number from 1/1024 to 1")
            try:
                found.append(self.size(float(f"{width:g}")))
            except CompileError as error:
                raise ShoalError("bad-model", f"{self._spec.name} at width {width:g}: {error}") from error
        return found

    def size(self, width: float) -> ModelSize:
        part = nested(self._layout, width)
        model = compile_model(self._spec, part, 1, "infer")
        program = compile_model(self._spec, part, 1, "infer", target="numpy").program
        cut = Region(self._layout, part).cut(self._weights)
        statistics = self._evaluation.statistics(cut) if self._evaluation else {}
        accuracy = self._evaluation.measure(cut, statistics)[0] if self._evaluation else None
        content = tensors.encode({**cut, **statistics})
        self.files |= {
            model_card.artifact(width, "litert"): model.content,
            model_card.artifact(width, "numpy"): program,
            model_card.weights(width): content,
        }
        return ModelSize(
            width=width,
            flops=model.manifest.flops,
            bytes=4 * model.manifest.parameters,
            memory=_memory(model, content),
            accuracy=accuracy,
        )


def _memory(model: Artifact, weights: bytes) -> int:
    return 2 * len(weights) + len(model.content) + model.manifest.activation_bytes
