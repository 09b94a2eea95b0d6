"""A version of a run's model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.compiler.export import ExportError, Format, export
from coordinator.compiler.onnx_file import OnnxError
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import BatchNorm, ModelSpec, ModelSpecError
from coordinator.errors import ShoalError
from coordinator.store import segments
from coordinator.store.blobs import Blobs
from coordinator.store.models import Run
from coordinator.training.evaluation import read_dataset, statistics_of
from coordinator.training.live import weights_of
from protocol.errors import ProtocolError
from protocol.subnetwork import Subnetwork, nested
from protocol.weights import Weights

ENDINGS: Final[dict[Format, str]] = {"tflite": "tflite", "safetensors": "safetensors", "onnx": "onnx"}
"""What can be had, and how such a file's name ends."""
_SAMPLES: Final = 256
"""Of the run's test set, for the statistics of batch norms."""


def product(
    session: Session, home: Path, run: str, *, form: Format, width: float = 1.0, version: int | None = None
) -> tuple[bytes, str]:
    """The file's bytes and name: the part of a version (the newest by default) that ``width`` (0 to 1) keeps.

    ShoalError not-found for a run or version that is not there, bad-model if it cannot be written.
    """
    if form not in ENDINGS:
        raise ShoalError("bad-request", f"format is {form[:40]!r}, expected one of {', '.join(ENDINGS)}")
    if not 0 < width <= 1:
        raise ShoalError("bad-request", f"width is {width:g}, expected a number above 0, at most 1")
    folder = home / "segments"
    try:
        spec, weights, number = weights_of(
            session, Blobs(home / "blobs"), lambda *place: segments.read(folder, *place), run, version
        )
        part = nested(layout(spec), width)
        found = _statistics(session, run, spec, part, weights)
        content = export(spec, weights, part, form, statistics=found)
    except (ExportError, ModelSpecError, ProtocolError, OnnxError) as error:
        raise ShoalError("bad-model", f"The model of run {run} cannot be written as {form}: {error}") from error
    size = "" if width == 1 else f"-w{width:g}"
    return content, f"{run}-v{number}{size}.{ENDINGS[form]}"


def _statistics(session: Session, run: str, spec: ModelSpec, part: Subnetwork, weights: Weights) -> Weights:
    """Of batch norms, over some samples of the run's test set; none where there is no test set."""
    place = session.scalar(select(Run.dataset).where(Run.id == run))
    if not place or not any(isinstance(layer, BatchNorm) for layer in spec.layers):
        return {}
    x = read_dataset(Path(place), spec).x
    chosen = np.random.default_rng(0).permutation(len(x))[:_SAMPLES]
    return statistics_of(spec, part, weights, x[chosen])
