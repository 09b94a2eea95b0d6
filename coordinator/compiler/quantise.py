"""Post-training quantisation: a float32 graph for inference as one of 8-bit whole numbers.

Whole numbers stand for scale·(q - zero). Weights of convolutions have a scale per channel, everything else has one per
tensor, as LiteRT's 8-bit specification has it (Jacob et al., CVPR 2018). The scales of activations come from the
extremes seen on a calibration set. What goes in and comes out stays float32. Operators that lose too much or do not
exist in 8 bits (layer and group norm, recurrent layers, embeddings) go on in float32; their weights are kept in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from protocol.weights import Array

from .flatbuffer import Operation, Scale, Tensor, Writer

Interpreters = Callable[[bytes], Any]
"""Makes an interpreter of a model file: LiteRT's or tflite-runtime's class."""
Ranges = Mapping[int, tuple[float, float]]
"""Smallest and greatest value by number of the tensor."""

_LEAST, _MOST = -128, 127
_FIXED = {"LOGISTIC": Scale((1 / 256,), -128), "TANH": Scale((1 / 128,))}
"""Scale and zero that the specification demands of an operator's output."""
_SAME = ("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "PAD")
"""Operators whose output has the scale of their input."""
_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": None}
"""Operators that read x, weight and bias; the axis of the weight that has a scale per channel."""
_FREE = ("ADD", "MUL", "MEAN", "RELU", "RELU6", "LEAKY_RELU", "GELU", "CONCATENATION")
_ROOM = 1 << 30  # sums of products, in steps, that biases may take up
_LARGE = 256  # numbers of a constant that are worth keeping in 8 bits


def spanning(low: float, high: float) -> Scale:
    """The scale that reaches from ``low`` to ``high`` and has a whole number for 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = float(np.float32(max((high - low) / (_MOST - _LEAST), 1e-9)))
    return Scale((step,), int(np.clip(round(_LEAST - low / step), _LEAST, _MOST)))


def calibrate(graph: Writer, again: Writer, interpreters: Interpreters, x: Iterable[Array]) -> Ranges:
    """The extremes of everything that ``graph`` computes of batches ``x``; ``again`` is the same graph, once more."""
    named = {tensor.index for tensor in again.outputs.values()}
    for operation in again.operations:
        for index in operation.writes:
            if index not in named:
                again.output(f"t{index}", again.tensors[index])
    interpreter = interpreters(again.pack())
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    numbers = {tensor.index for tensor in again.outputs.values()}
    places = {name: tensor.index for name, tensor in again.outputs.items()}
    details = [(places[d["name"]], d["index"]) for d in interpreter.get_output_details()]
    assert len(details) == len(numbers)
    found: dict[int, tuple[float, float]] = {}

    def see(index: int, value: Array) -> None:
        low, high = found.get(index, (0.0, 0.0))
        found[index] = min(low, float(value.min())), max(high, float(value.max()))

    inside = next(iter(graph.inputs.values())).index
    for batch in x:
        see(inside, batch)
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        for index, place in details:
            see(index, interpreter.get_tensor(place))
    return found


def quantised(graph: Writer, ranges: Ranges) -> Quantiser:
    """The graph in whole numbers; its inputs and outputs keep their names and types."""
    writer = Quantiser(graph, ranges)
    for name, tensor in graph.inputs.items():
        writer.floats[tensor.index] = writer.input(name, tensor.shape, tensor.dtype)
    for operation in graph.operations:
        writer.write(operation)
    for name, tensor in graph.outputs.items():
        writer.output(name, writer.as_float(tensor.index))
    return writer


class Quantiser(Writer):
    """Writes a float32 graph again, each tensor as whole numbers, as float32 or, where both are read, as both."""

    def __init__(self, source: Writer, ranges: Ranges) -> None:
        super().__init__(source.signature)
        self.floats: dict[int, Tensor] = {}
        """Tensors in float32, and those that hold no floats, by their number in the source."""
        self.whole: dict[int, Tensor] = {}
        self._source, self._ranges = source, ranges

    def write(self, operation: Operation) -> None:
        """The operator in whole numbers if it can be, else in float32.

        Operators without a weight follow what they read, so that no layer changes between both inside.
        """
        if operation.operator in _WEIGHTED and operation.reads[1] in self._source.constants:
            self._write_weighted(operation)
        elif operation.operator in (*_SAME, *_FREE, *_FIXED) and self._reads_whole(operation):
            self._write_plain(operation)
        else:
            self._write_float(operation)

    def as_float(self, index: int) -> Tensor:
        if index not in self.floats:
            constant = self._source.constants.get(index)
            if constant is None:
                self.floats[index] = self._dequantised(self.whole[index])
            elif constant.dtype == np.float32 and constant.size >= _LARGE:
                self.floats[index] = self._dequantised(self._symmetric(constant, None))
            else:
                self.floats[index] = self.constant(constant)
        return self.floats[index]

    def as_whole(self, index: int) -> Tensor:
        if index not in self.whole:
            constant = self._source.constants.get(index)
            if constant is None:
                self.whole[index] = self._quantised(self.floats[index], spanning(*self._ranges[index]))
            else:
                scale = spanning(float(constant.min()), float(constant.max()))
                content = np.clip(np.round(constant / scale.steps[0]) + scale.zero, _LEAST, _MOST).astype(np.int8)
                self.whole[index] = self.constant(content, scale)
        return self.whole[index]

    def _reads_whole(self, operation: Operation) -> bool:
        return any(index in self.whole and index not in self._source.constants for index in operation.reads)

    def _write_float(self, operation: Operation) -> None:
        reads = [self.as_float(index) for index in operation.reads]
        made = [self._source.tensors[index] for index in operation.writes]
        shapes = [tensor.shape for tensor in made]
        fields = operation.fields
        written = self.emit_many(operation.operator, reads, shapes, operation.options, made[0].dtype, **fields)
        self.floats.update(zip(operation.writes, written, strict=True))

    def _write_plain(self, operation: Operation) -> None:
        (made,) = operation.writes
        tensors = self._source.tensors
        scale: Scale | None = spanning(*self._ranges[made])
        if operation.operator in _SAME:
            scale = self.as_whole(operation.reads[0]).scale
        elif operation.operator in _FIXED:
            scale = _FIXED[operation.operator]
        reads = [
            self.as_whole(index) if tensors[index].dtype == "float32" else self.as_float(index)
            for index in operation.reads
        ]
        assert scale is not None
        if operation.operator == "CONCATENATION":
            reads = [read if read.scale == scale else self._quantised(read, scale) for read in reads]
        self._emit_whole(operation, reads, scale)

    def _write_weighted(self, operation: Operation) -> None:
        """Products of whole numbers add up in int32, to which the bias belongs: its steps are theirs."""
        source, weight, bias = operation.reads
        x = self.as_whole(source)
        assert x.scale is not None
        content, offset = self._source.constants[weight], self._source.constants[bias]
        least = np.abs(offset) / x.scale.steps[0] / _ROOM
        kernel = self._symmetric(content, _WEIGHTED[operation.operator], least)
        assert kernel.scale is not None
        steps = np.asarray(kernel.scale.steps) * x.scale.steps[0]
        added = self.constant(np.round(offset / steps).astype(np.int32), Scale(tuple(map(float, steps))))
        self._emit_whole(operation, [x, kernel, added], spanning(*self._ranges[operation.writes[0]]))

    def _symmetric(self, content: Array, axis: int | None, least: Array | None = None) -> Tensor:
        """A weight from -127 to 127, no step below ``least``, so that biases do not overflow."""
        others = None if axis is None else tuple(i for i in range(content.ndim) if i != axis)
        step = np.abs(content).max(axis=others, keepdims=True) / _MOST
        if least is not None:
            step = np.maximum(step, least.max() if axis is None else least.reshape(step.shape))
        step = np.maximum(step, 1e-12).astype(np.float32)
        whole = np.clip(np.round(content / step), -_MOST, _MOST).astype(np.int8)
        return self.constant(whole, Scale(tuple(map(float, step.reshape(-1))), 0, axis or 0))

    def _emit_whole(self, operation: Operation, reads: list[Tensor], scale: Scale) -> None:
        (made,) = operation.writes
        shape = self._source.tensors[made].shape
        fields = operation.fields
        self.whole[made] = self.emit(operation.operator, reads, shape, operation.options, "int8", scale, **fields)

    def _quantised(self, x: Tensor, scale: Scale) -> Tensor:
        return self.emit("QUANTIZE", [x], x.shape, "QuantizeOptions", "int8", scale)

    def _dequantised(self, x: Tensor) -> Tensor:
        return self.emit("DEQUANTIZE", [x], x.shape, "DequantizeOptions")
