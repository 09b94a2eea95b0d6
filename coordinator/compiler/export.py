"""Trained models as files for other programs: LiteRT in float32 and in 8 bits, ONNX, safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Literal, get_args

import numpy as np

from protocol import tensors
from protocol.errors import ProtocolError
from protocol.subnetwork import FULL, Region, Subnetwork
from protocol.weights import Array, Weights

from .deployment import inference_graph
from .onnx_export import onnx_file
from .quantise import Interpreters, calibrate, quantised
from .rewrite import folded, narrowed
from .shapes import layout
from .spec import ModelSpec, ModelSpecError

Format = Literal["tflite", "tflite-int8", "onnx", "safetensors"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


class ExportError(ValueError):
    """What was asked for cannot be written. The text says what is missing."""


def export(
    spec: ModelSpec,
    weights: Weights,
    subnetwork: Subnetwork = FULL,
    form: Format = "tflite",
    *,
    batch: int = 1,
    statistics: Mapping[str, Array] | None = None,
    calibration: Array | None = None,
    interpreters: Interpreters | None = None,
) -> bytes:
    """The part of a model that a subnetwork keeps, with its weights; ``weights`` are full-size.

    ``tflite`` and ``tflite-int8`` have one signature ``infer``: ``x`` [batch, *input] float32 to ``logits`` and
    ``features``; ``onnx`` takes ``x`` in batches of any size to ``logits``; ``safetensors`` holds the tensors by name
    and the spec in its metadata. ``statistics`` of batch norms (``statistic/<norm>.mean`` and ``.variance``) are those
    the subnetwork has over its data. 8 bits need ``calibration`` samples [n, *input] and ``interpreters`` to run them.
    Raises ExportError, ModelSpecError or ProtocolError.
    """
    spec, weights = narrowed(spec, weights, subnetwork)
    if form == "safetensors":
        return weights_file(spec, weights, statistics or {})
    spec, weights = folded(spec, weights, statistics or {})
    if form == "onnx":
        return onnx_file(spec, weights)
    graph = inference_graph(spec, weights, batch)
    if form == "tflite":
        return graph.pack()
    if calibration is None or interpreters is None or len(calibration) < batch:
        raise ExportError(f"8 bits need a calibration set of at least {batch} samples")
    whole = len(calibration) // batch * batch
    batches = (np.ascontiguousarray(calibration[i : i + batch], np.float32) for i in range(0, whole, batch))
    return quantised(graph, calibrate(graph, inference_graph(spec, weights, batch), interpreters, batches)).pack()


def weights_file(spec: ModelSpec, weights: Weights, statistics: Mapping[str, Array]) -> bytes:
    """A safetensors file of a model."""
    return tensors.encode({**weights, **statistics}, {"spec": json.dumps(spec.to_json())})


def read_weights(content: bytes, spec: ModelSpec | None = None) -> tuple[ModelSpec, Weights, Weights]:
    """Spec, weights and statistics of a safetensors file; ``spec`` is what the weights must fit, if it is known.

    ExportError if the file is none, names no spec, or does not fit.
    """
    try:
        found, metadata = tensors.decode(content)
        spec = spec or ModelSpec.from_json(metadata["spec"])
        own = {name: value for name, value in found.items() if not name.startswith("statistic/")}
        Region(layout(spec)).check(own)
    except KeyError:
        raise ExportError("the weights file does not say which model it is of: name its specification") from None
    except (ProtocolError, ModelSpecError) as error:
        raise ExportError(f"the weights file does not fit: {error}") from None
    for name, value in found.items():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise ExportError(f"the weights file: tensor {name!r} must hold finite float32 numbers")
    statistics = {name: value.copy() for name, value in found.items() if name not in own}
    return spec, {name: own[name].copy() for name in layout(spec)}, statistics
