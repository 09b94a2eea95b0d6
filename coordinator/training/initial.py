"""The weights a run begins with: drawn by its seed, or taken from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coordinator.compiler.export import ExportError, read_weights, weights_file
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.store.blobs import Blobs
from coordinator.store.models import Run
from protocol.subnetwork import Region
from protocol.weights import Weights

_REST = 1 << 24
"""Bytes that a file may hold beside the weights: the specification, statistics of batch norms."""


def read_file(path: Path, spec: ModelSpec) -> bytes:
    """A safetensors file with exactly the model's tensors, as it is kept; ShoalError ``bad-model``."""
    most = 4 * Region(layout(spec)).parameters + _REST
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write into it
            raise FileNotFoundError("there is no such file")
        if path.stat().st_size > most:
            raise ShoalError("bad-model", f"{path} has {path.stat().st_size} bytes, expected at most {most}")
        weights = read_weights(path.read_bytes(), spec)[1]
    except OSError as error:
        raise ShoalError("bad-model", f"{path} cannot be read: {error.strerror or error}") from error
    except ExportError as error:
        raise ShoalError("bad-model", f"{path}: {error}") from error
    return weights_file(spec, weights, {})


def weights(run: Run, spec: ModelSpec, blobs: Blobs) -> Weights:
    """Of version 0; ShoalError not-found if the file the run began with is gone."""
    if run.initial_sha256 is None:
        return initial_weights(spec, np.random.default_rng(run.seed))
    try:
        content = blobs.get(run.initial_sha256)
    except ShoalError as error:
        raise ShoalError("not-found", f"The weights that run {run.id} began with are gone: {error.detail}") from error
    return read_weights(content, spec)[1]
