"""A trained model as a graph for inference only: weights inside, LiteRT's own layers instead of matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import singledispatchmethod
from typing import Any

import numpy as np

from protocol.subnetwork import FULL
from protocol.weights import Array

from . import kinds
from .autodiff import Tape
from .fields import Pair, Shape
from .graph import NONE, RELU, Graph, Tensor
from .network import Network, Tail
from .rewrite import affine
from .spec import ModelSpec
from .targets import TARGETS
from .writers import write_layer

_PADDING = {"same": 0, "valid": 1}
_OPERATORS: dict[type[kinds.Layer], tuple[str, str, dict[str, Any]]] = {
    kinds.Relu: ("RELU", "", {}),
    kinds.Relu6: ("RELU6", "", {}),
    kinds.Sigmoid: ("LOGISTIC", "", {}),
    kinds.Tanh: ("TANH", "", {}),
    kinds.Gelu: ("GELU", "GeluOptions", {"approximate": True}),
}
"""Operator, table of options and its content of the activations without a field."""


def inference_graph(
    spec: ModelSpec, weights: Mapping[str, Array], batch: int, statistics: Mapping[str, Array] | None = None
) -> Graph:
    """Signature ``infer``: ``x`` [batch, *input] to ``logits`` and ``features`` (what the last layer reads).

    ``weights`` are full-size; ``statistics`` are those of batch norms.
    """
    graph = Graph("infer")
    x = graph.input("x", (batch, *spec.input))
    constants = _Constants(graph, weights)
    writer = _LayerWriter(graph, weights, statistics or {})
    net = Network(Tape(graph), spec, FULL, constants, "inference", TARGETS["litert"], writer)
    values = {-1: x}
    logits = net.write(values, 0, len(spec.layers) - 1)
    features = values[spec.sources[-1][0]]
    graph.output("logits", logits)
    graph.output("features", graph.emit("RESHAPE", [features, graph.numbers(features.shape)], features.shape))
    return graph


class _Constants(Mapping[str, Tensor]):
    """Weights as constants, put into the graph when they are asked for."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array]) -> None:
        self._graph, self._weights = graph, weights

    def __getitem__(self, name: str) -> Tensor:
        return self._graph.constant(self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _LayerWriter:
    """Writes layers by operators that compute a whole layer; what has none is written as for training."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array], statistics: Mapping[str, Array]) -> None:
        self._graph, self._weights, self._statistics = graph, weights, statistics

    def __call__(self, layer: kinds.Layer, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._write(layer, inputs, tail) or write_layer(layer, net, inputs, tail)

    @singledispatchmethod
    def _write(self, layer: kinds.Layer, inputs: Sequence[Tensor], tail: Tail) -> Tensor | None:
        if type(layer) not in _OPERATORS:
            return None
        operator, options, fields = _OPERATORS[type(layer)]
        return self._graph.emit(operator, [inputs[0]], inputs[0].shape, options, **fields)

    @_write.register
    def _(self, layer: kinds.Dense, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        fields: dict[str, Any] = {"fusedActivationFunction": RELU if tail.relu else NONE}
        read = [inputs[0], self._turned(layer, (1, 0)), self._bias(layer, layer.units)]
        shape = (inputs[0].shape[0], layer.units)
        return self._graph.emit("FULLY_CONNECTED", read, shape, "FullyConnectedOptions", **fields)

    @_write.register
    def _(self, layer: kinds.Conv2D, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._convolved(layer, layer, inputs[0], self._turned(layer, (3, 0, 1, 2)), tail)

    @_write.register
    def _(self, layer: kinds.Conv1D, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        kernel = self._graph.constant(self._weights[f"{layer.name}.weight"].transpose(2, 0, 1)[:, None])
        return self._as_image(inputs[0], lambda x: self._convolved(layer, layer.over_images, x, kernel, tail))

    def _convolved(self, layer: kinds.Layer, over: kinds.Conv2D, x: Tensor, kernel: Tensor, tail: Tail) -> Tensor:
        shape = (x.shape[0], *over.output(x.shape[1:]))
        x, padding = self._padded(x, over)
        fields = _window(over.stride, padding) | {
            "fusedActivationFunction": RELU if tail.relu else NONE,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
        }
        read = [x, kernel, self._bias(layer, over.filters)]
        y = self._graph.emit("CONV_2D", read, shape, "Conv2DOptions", **fields)
        for size in tail.pools:
            y = self._pooled("MAX_POOL_2D", y, size)
        return y

    @_write.register
    def _(self, layer: kinds.DepthwiseConv2D, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        shape = (inputs[0].shape[0], *layer.output(inputs[0].shape[1:]))
        x, padding = self._padded(inputs[0], layer.dense)
        fields = _window(layer.stride, padding) | {
            "fusedActivationFunction": RELU if tail.relu else NONE,
            "depthMultiplier": 1,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
        }
        kernel = self._graph.constant(self._weights[f"{layer.name}.weight"][None])
        read = [x, kernel, self._bias(layer, x.shape[-1])]
        return self._graph.emit("DEPTHWISE_CONV_2D", read, shape, "DepthwiseConv2DOptions", **fields)

    @_write.register
    def _(self, layer: kinds.TransposedConv2D, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        graph, x = self._graph, inputs[0]
        shape = (x.shape[0], *layer.output(x.shape[1:]))
        read = [graph.numbers(shape), self._turned(layer, (3, 0, 1, 2)), x]
        y = graph.emit("TRANSPOSE_CONV", read, shape, "TransposeConvOptions", **_window(layer.stride, layer.padding))
        return graph.add(y, self._bias(layer, layer.filters), RELU if tail.relu else NONE)

    @_write.register
    def _(self, layer: kinds.MaxPool, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._as_image(inputs[0], lambda x: self._pooled("MAX_POOL_2D", x, layer.size))

    @_write.register
    def _(self, layer: kinds.AveragePool, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._as_image(inputs[0], lambda x: self._pooled("AVERAGE_POOL_2D", x, layer.size))

    @_write.register
    def _(self, layer: kinds.GlobalAveragePool, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        (batch, *positions, channels) = inputs[0].shape
        read = [inputs[0], self._graph.numbers(range(1, len(positions) + 1))]
        return self._graph.emit("MEAN", read, (batch, channels), "ReducerOptions", keepDims=False)

    @_write.register
    def _(self, layer: kinds.LeakyRelu, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._graph.emit("LEAKY_RELU", [inputs[0]], inputs[0].shape, "LeakyReluOptions", alpha=layer.slope)

    @_write.register
    def _(self, layer: kinds.Silu, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._graph.multiply(inputs[0], self._graph.sigmoid(inputs[0]))

    @_write.register(kinds.Flatten)
    @_write.register(kinds.Reshape)
    def _(self, layer: kinds.Layer, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        return self._reshaped(inputs[0], layer.output(inputs[0].shape[1:]))

    @_write.register
    def _(self, layer: kinds.BatchNorm, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
        own = {name: self._weights[f"{layer.name}.{name}"] for name in ("scale", "shift")}
        factor, offset = (value.astype(np.float32) for value in affine(layer, own, self._statistics))
        scaled = self._graph.multiply(inputs[0], self._graph.constant(factor))
        return self._graph.add(scaled, self._graph.constant(offset), RELU if tail.relu else NONE)

    def _padded(self, x: Tensor, over: kinds.Conv2D) -> tuple[Tensor, str]:
        """What the operator reads, and its padding.

        Where a stride leaves out the last positions of one side, tflite-runtime 2.14 misplaces the other side's zeros:
        they are written out.
        """
        sides = zip(x.shape[1:3], over.kernel, over.stride, strict=True)
        totals = [(-(-n // s) - 1) * s + k - n for n, k, s in sides]
        if over.padding == "valid" or min(totals) >= 0:
            return x, over.padding
        widths = [(max(total, 0) // 2, max(total, 0) - max(total, 0) // 2) for total in totals]
        return self._graph.pad(x, [(0, 0), *widths, (0, 0)]), "valid"

    def _pooled(self, operator: str, x: Tensor, size: Shape) -> Tensor:
        """Windows that do not overlap; rows and columns left over are dropped."""
        high, wide = (1, *size)[-2:]
        shape = (x.shape[0], x.shape[1] // high, x.shape[2] // wide, x.shape[3])
        fields = _window((high, wide), "valid") | {"filterHeight": high, "filterWidth": wide}
        return self._graph.emit(operator, [x], shape, "Pool2DOptions", **fields, fusedActivationFunction=NONE)

    def _as_image(self, x: Tensor, write: Callable[[Tensor], Tensor]) -> Tensor:
        """Over a signal x[B, T, C] as an image of one row."""
        if len(x.shape) == 4:
            return write(x)
        y = write(self._reshaped(x, (1, *x.shape[1:])))
        return self._reshaped(y, y.shape[2:])

    def _reshaped(self, x: Tensor, sample: Shape) -> Tensor:
        shape = (x.shape[0], *sample)
        return self._graph.emit("RESHAPE", [x, self._graph.numbers(shape)], shape)

    def _turned(self, layer: kinds.Layer, order: tuple[int, ...]) -> Tensor:
        return self._graph.constant(self._weights[f"{layer.name}.weight"].transpose(order))

    def _bias(self, layer: kinds.Layer, channels: int) -> Tensor:
        return self._graph.constant(self._weights.get(f"{layer.name}.bias", np.zeros(channels, np.float32)))


def _window(stride: Pair, padding: str) -> dict[str, Any]:
    return {"padding": _PADDING[padding], "strideH": stride[0], "strideW": stride[1]}
