"""Networks from ONNX files, as PyTorch's and Keras' exporters write them, with their weights.

docs/exchange.md lists the operators and what of each is supported. Batch norms are folded into what they follow: their
running statistics are known once and for all, as exporters take them, while a ModelSpec's batch norm has those of the
batch while it trains.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from protocol.errors import ProtocolError
from protocol.subnetwork import Region
from protocol.weights import Weights

from .fields import ModelSpecError, Shape
from .onnx_file import FOLDED, MAX_NUMBERS, OnnxError, attributes, first_line, label, numbers, read, worked_out
from .onnx_layers import LAYERS
from .onnx_movement import MOVEMENTS, Handler
from .onnx_numbers import NUMBERS
from .onnx_trace import Positions, Trace, Value
from .shapes import layout
from .spec import ModelSpec

HANDLERS: dict[str, Handler] = {**LAYERS, **NUMBERS, **MOVEMENTS}
"""By operator, all that is supported besides Constant, Shape, and Softmax and LogSoftmax at the end."""
_ENDS = ("Softmax", "LogSoftmax")
_KNOWN = {*HANDLERS, *FOLDED, *_ENDS, "Constant", "Shape"}
_PICTURES = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"),
    *("InstanceNormalization", "GroupNormalization"),
)
"""Operators that say of what they read that its channels come first."""
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of attributes and shapes that contradict each other."""
_NEUTRAL = {"Identity", "Cast", "Add", "Sub", "Mul", "Div", "Relu", "Dropout", "Clip"}


def import_onnx(source: bytes | str | Path, name: str = "") -> tuple[ModelSpec, Weights]:
    """The model of an ONNX file and its weights, full-size.

    The model takes channels last, whatever the file does: images [H, W, C], signals [T, C]. OnnxError names the node
    that cannot be imported and what was expected of it; ModelSpecError says what a whole model lacks.
    """
    model = read(source)
    graph = model.graph
    for node in graph.node:
        if node.op_type not in _KNOWN or node.domain not in ("", "ai.onnx"):
            raise OnnxError(f"{label(node)} is not supported; supported are {', '.join(sorted({*HANDLERS, *_ENDS}))}")
    reader = _Reader(model)
    for node in graph.node:
        reader.read(node)
    results = [reader.known.get(output.name) for output in graph.output]
    if len(results) != 1 or not isinstance(results[0], Value):
        raise OnnxError(f"the graph has {len(results)} outputs; expected one that depends on its input")
    title = "".join(letter for letter in str(name or graph.name) if letter.isprintable())[:64]
    spec, weights = reader.trace.finished(title or "imported", results[0])
    _check(spec, weights)
    return spec, weights


def _check(spec: ModelSpec, weights: Weights) -> None:
    """That the file's numbers are those of the model."""
    try:
        Region(layout(spec)).check(weights)
    except ProtocolError as error:
        raise OnnxError(f"the file's weights do not fit its layers: {error}") from None
    for tensor, value in weights.items():
        if not np.isfinite(value).all():
            raise OnnxError(f"the weights hold numbers that are not finite, in {tensor!r}")


class _Reader:
    """The graph, node by node; ``known`` holds what every tensor is by name."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.known: dict[str, Any] = {tensor.name: numbers(tensor) for tensor in graph.initializer}
        self._outputs = {output.name for output in graph.output}
        inputs = [value for value in graph.input if value.name not in self.known]
        if len(inputs) != 1:
            raise OnnxError(f"the graph has {len(inputs)} inputs; expected one")
        self.batch, shape = _sample(inputs[0])
        self.trace = Trace(*_arranged(graph, inputs[0].name, shape))
        self.known[inputs[0].name] = self.trace.start
        if any(node.op_type == "Gather" and inputs[0].name in node.input for node in graph.node) and len(shape) > 1:
            raise OnnxError(f"input {inputs[0].name!r}: expected a flat row of whole numbers for an embedding")

    def read(self, node: Any) -> None:
        self.trace.label = label(node)
        reads = [self.known.get(name) if name else None for name in node.input]
        try:
            found = self._made(node, reads)
        except (OnnxError, ModelSpecError):
            raise
        except _MALFORMED as error:
            raise OnnxError(f"{label(node)}: its attributes do not fit what it reads: {first_line(error)}") from None
        for name, value in zip(node.output, found, strict=False):
            if name and value is not None:
                self.known[name] = value

    def _made(self, node: Any, reads: list[Any]) -> list[Any]:
        operator = node.op_type
        if operator == "Constant":
            return [_constant(node)]
        if operator == "Shape":
            return [self._shape(reads[0], attributes(node))]
        if operator in _ENDS:
            if node.output[0] not in self._outputs:
                self.trace.refuse("stands inside the network; expected at its end, where the loss takes its place")
            return [reads[0]]
        if not any(isinstance(read, Value) for read in reads):
            return list(worked_out(node, reads, self.opset))
        if operator not in HANDLERS:
            self.trace.refuse("is supported for constants only; here it depends on the input")
        absent = next((n for n, value in zip(node.input, reads, strict=True) if n and value is None), None)
        if absent:
            self.trace.refuse(f"reads {absent!r}, which is no output that can be imported")
        return HANDLERS[operator](self.trace, attributes(node), reads)

    def _shape(self, value: Any, given: dict[str, Any]) -> Any:
        if not isinstance(value, Value):
            return np.array(value.shape, np.int64)
        sizes = [*value.positions.shape[: value.batch], self.batch, *value.positions.shape[value.batch :]]
        return np.array(sizes[given.get("start", 0) : given.get("end")], np.int64)


def _constant(node: Any) -> Any:
    (value,) = attributes(node).values()
    dtype = np.float32 if isinstance(value, float) else None
    return value if isinstance(value, np.ndarray) else np.asarray(value, dtype)


def _sample(value: Any) -> tuple[int, Shape]:
    """Batch (1 if any) and shape of one sample of the graph's input."""
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
    if not 2 <= len(sizes) <= 4 or any(n < 1 for n in sizes[1:]):
        raise OnnxError(f"input {value.name!r} has shape {sizes}; expected a batch and one to three known sizes")
    if math.prod(sizes[1:]) > MAX_NUMBERS:
        raise OnnxError(f"input {value.name!r} has samples of {sizes[1:]}, at most {MAX_NUMBERS} numbers are allowed")
    return max(sizes[0], 1), tuple(sizes[1:])


def _arranged(graph: Any, name: str, shape: Shape) -> tuple[Shape, Positions]:
    """The input with its channels last, and where ONNX has each number."""
    if len(shape) == 1 or not _channels_first(graph, name, len(shape)):
        return shape, np.arange(math.prod(shape)).reshape(shape)
    last = (*shape[1:], shape[0])
    return last, np.moveaxis(np.arange(math.prod(last)).reshape(last), -1, 0)


def _channels_first(graph: Any, name: str, axes: int) -> bool:
    """True if what reads the input first takes its channels to be first; images do where nothing says otherwise."""
    names = {name}
    for node in graph.node:
        if names.isdisjoint(node.input):
            continue
        if node.op_type in _PICTURES:
            return True
        if node.op_type == "Transpose":
            order = list(attributes(node).get("perm", ()))
            return axes == 3 and order != [0, 3, 1, 2]
        if node.op_type in _NEUTRAL:
            names.update(node.output)
    return axes == 3
