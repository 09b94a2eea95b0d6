"""``shoal model import`` and ``export``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from coordinator import settings
from coordinator.cli import trial
from coordinator.cli.client import home_option
from coordinator.cli.db import opened
from coordinator.cli.networks import read_model
from coordinator.cli.output import facts, json_option, print_json
from coordinator.compiler.export import FORMATS, ExportError, Format, export, read_weights, weights_file
from coordinator.compiler.onnx_file import OnnxError
from coordinator.compiler.onnx_import import import_onnx
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec, ModelSpecError
from coordinator.errors import ShoalError
from coordinator.store import segments
from coordinator.store.blobs import Blobs
from coordinator.training.evaluation import Dataset, read_dataset, statistics_of
from coordinator.training.live import weights_of
from protocol.errors import ProtocolError
from protocol.subnetwork import Region, Subnetwork, nested
from protocol.weights import Weights

_ENDINGS = {"tflite": "tflite", "tflite-int8": "tflite", "onnx": "onnx", "safetensors": "safetensors"}
_CALIBRATION = 256
_JUDGED = {"onnx": 256}
"""Samples that are measured at most; the reference evaluator of ONNX is slow."""


@click.command("import")
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The specification (default: FILE.json).")
@click.option("--weights", type=click.Path(path_type=Path), help="Also write the weights, to this safetensors file.")
@click.option("--name", default="", help="The model's name (default: the file's).")
@json_option
def import_model(file: Path, output: Path | None, weights: Path | None, name: str, as_json: bool) -> None:
    """Read a network from an ONNX file, as PyTorch and Keras export it.

    The specification is what `shoal run start --model` and `shoal demo --model` take. Samples are channels last:
    images [height, width, channels], signals [steps, channels].

    \b
    Example:
      shoal model import net.onnx -o net.json --weights net.safetensors
    """
    try:
        spec, values = import_onnx(file, name or file.stem)
    except (OnnxError, ModelSpecError) as error:
        raise ShoalError("bad-model", str(error)) from error
    output = output or file.with_suffix(".json")
    write(output, json.dumps(spec.to_json(), indent=1).encode() + b"\n")
    if weights is not None:
        write(weights, weights_file(spec, values, {}))
    found = {
        "model": spec.name,
        "input": list(spec.input),
        "classes": spec.classes,
        "layers": len(spec.layers),
        "parameters": sum(value.size for value in values.values()),
        "specification": str(output),
        "weights": None if weights is None else str(weights),
    }
    print_json(found) if as_json else facts(found.items())


@click.command("export")
@click.argument("source", metavar="RUN|SPEC")
@click.option("--width", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--format", "form", type=click.Choice(FORMATS), default="tflite", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="The weights of a SPEC, a safetensors file.")
@click.option("--data", type=click.Path(path_type=Path), help="Samples x, y (npz) to calibrate 8 bits and to measure.")
@click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of a tflite file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
@home_option
@json_option
def export_model(
    source: str,
    width: float,
    form: Format,
    weights: Path | None,
    data: Path | None,
    batch: int,
    output: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Write a trained model for other programs: the newest version of a run, or a specification with its weights.

    With --data it prints the accuracy before and after. tflite-int8 needs --data, and so do models with batch norm:
    up to 256 of the samples give the scales, or the statistics, and the others are measured.

    \b
    Example:
      shoal model export digits-1 --width 0.5 --format tflite-int8 --data test.npz -o digits.tflite
    """
    spec, values, statistics, version = _source(source, weights, home)
    try:
        subnetwork = nested(layout(spec), width)
        trial_of = _Trial(spec, values, subnetwork, statistics, read_dataset(data, spec) if data else None)
        content = export(
            spec,
            values,
            subnetwork,
            form,
            batch=batch,
            statistics=trial_of.statistics,
            calibration=trial_of.calibration,
            interpreters=trial.first_interpreters() if form == "tflite-int8" else None,
        )
    except (ExportError, ModelSpecError, ProtocolError, OnnxError) as error:
        hint = "" if data else " (give --data)"
        raise ShoalError("bad-model", f"{spec.name} cannot be exported: {error}{hint}") from error
    output = output or Path(f"{source.replace('/', '-')}.{_ENDINGS[form]}")
    write(output, content)
    found = {
        "file": str(output),
        "format": form,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "version": version,
        "width": width,
        "parameters": Region(layout(spec), subnetwork).parameters,
        **trial_of.accuracies(form, content if batch == 1 else None),
    }
    print_json(found) if as_json else facts(found.items())


class _Trial:
    """A model with the samples to calibrate it by and those to measure it on, which are others."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, subnetwork: Subnetwork, given: Weights, dataset: Dataset | None
    ) -> None:
        self._spec, self._weights, self._subnetwork, self._dataset = spec, weights, subnetwork, dataset
        self.statistics = given
        self.calibration = None
        if dataset is not None:
            order = np.random.default_rng(0).permutation(len(dataset.y))
            count = min(_CALIBRATION, (len(order) + 1) // 2)
            self.calibration, self._judged = dataset.x[order[:count]], order[count:]
            self.statistics = given or statistics_of(spec, subnetwork, weights, self.calibration)

    def accuracies(self, form: Format, content: bytes | None) -> dict[str, Any]:
        """Before and after, as ``accuracy_before`` and ``accuracy_after``."""
        if self._dataset is None or self.calibration is None or not len(self._judged):
            return {}
        judged = self._judged[: _JUDGED.get(form)]
        x, y = self._dataset.x[judged], self._dataset.y[judged]
        before = trial.accuracy_of_model(self._spec, self._subnetwork, self._weights, self.statistics, x, y)
        after = before if form == "safetensors" else content and trial.accuracy_of_file(content, x, y)
        return {
            "accuracy_before": before,
            "accuracy_after": after,
            "measured_samples": len(y),
            "calibration_samples": len(self.calibration),
        }


def _source(source: str, weights: Path | None, home: Path | None) -> tuple[ModelSpec, Weights, Weights, int | None]:
    """Spec, weights, statistics of batch norms, and the version if it is a run's."""
    spec = read_model(source, missing=None)
    if spec is None:
        if weights is not None:
            raise click.UsageError(f"{source!r} is a run, which has weights of its own: leave --weights out")
        with opened(home) as database, database.read() as session:
            folder = settings.load({"home": home}).home
            place = folder / "segments"
            found = weights_of(session, Blobs(folder / "blobs"), lambda *where: segments.read(place, *where), source)
        return found[0], found[1], {}, found[2]
    if weights is None:
        raise click.UsageError(f"{source!r} is a specification without weights: name them with --weights")
    try:
        return *read_weights(weights.read_bytes(), spec), None
    except ExportError as error:
        raise ShoalError("bad-model", f"{weights}: {error}") from error
    except OSError as error:
        raise ShoalError("bad-request", f"{weights} cannot be read: {error.strerror}") from error


def write(path: Path, content: bytes) -> None:
    """The file, or a sentence that says why not."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ShoalError("bad-request", f"{path} cannot be written: {error.strerror}") from error
