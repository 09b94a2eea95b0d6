"""Models as ONNX files. They take channels last, as the ModelSpec does; inside, channels come first as ONNX has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatchmethod
from typing import Any

import numpy as np

from protocol.weights import Array

from . import kinds
from .fields import Shape
from .onnx_file import library
from .spec import ModelSpec

OPSET = 20  # the first with Gelu
_IR_VERSION = 9
_PLAIN: dict[type[kinds.Layer], str] = {kinds.Relu: "Relu", kinds.Sigmoid: "Sigmoid", kinds.Tanh: "Tanh"}
_GATES = {kinds.Lstm: (0, 3, 1, 2), kinds.Gru: (1, 0, 2)}
"""Where ONNX's gates stand among ours."""


def onnx_file(spec: ModelSpec, weights: Mapping[str, Array], batch: int | None = None) -> bytes:
    """The model without batch norms (see :func:`.rewrite.folded`) and its weights, checked; ``batch`` None is any."""
    onnx = library()
    writer = _Writer(onnx, spec, weights)
    result = writer.write()
    first = "batch" if batch is None else batch
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [first, *spec.input])
    made = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [first, spec.classes])
    writer.node("Identity", [result], output="logits")
    graph = onnx.helper.make_graph(writer.nodes, spec.name, [given], [made], writer.constants)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="shoal")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


class _Writer:
    """Nodes of one graph. Values are [N, F], [N, C, T] or [N, C, H, W]."""

    def __init__(self, onnx: Any, spec: ModelSpec, weights: Mapping[str, Array]) -> None:
        self._onnx, self._spec, self._weights = onnx, spec, weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def write(self) -> str:
        """All layers; the name of what the last one makes."""
        spec = self._spec
        names = {-1: self._first("x", spec.input) if not isinstance(spec.layers[0], kinds.Embedding) else "x"}
        for index, (layer, sources) in enumerate(zip(spec.layers, spec.sources, strict=True)):
            before = spec.input if sources[0] < 0 else spec.shapes[sources[0]]
            names[index] = self._layer(layer, [names[source] for source in sources], before, spec.shapes[index])
        return names[len(spec.layers) - 1]

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _numbers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _weight(self, layer: kinds.Layer, name: str) -> Array:
        return self._weights[f"{layer.name}.{name}"]

    def _bias(self, layer: kinds.Layer) -> list[str]:
        name = f"{layer.name}.bias"
        return [self._constant(self._weights[name])] if name in self._weights else []

    def _first(self, x: str, shape: Shape) -> str:
        """Channels first."""
        order = [0, len(shape), *range(1, len(shape))]
        return self.node("Transpose", [x], perm=order) if len(shape) > 1 else x

    def _last(self, x: str, shape: Shape) -> str:
        """Channels last; ``shape`` as the spec has it."""
        order = [0, *range(2, len(shape) + 1), 1]
        return self.node("Transpose", [x], perm=order) if len(shape) > 1 else x

    def _side(self, layer: Any, sizes: Shape, strides: Shape, pixels: Shape) -> dict[str, Any]:
        """Kernel, strides and padding, the odd pixel at the end."""
        found: dict[str, Any] = {"kernel_shape": list(sizes), "strides": list(strides)}
        if layer.padding == "same":
            sides = zip(pixels, sizes, strides, strict=True)
            totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sides]
            found["pads"] = [total // 2 for total in totals] + [total - total // 2 for total in totals]
        return found

    @singledispatchmethod
    def _layer(self, layer: kinds.Layer, x: list[str], before: Shape, after: Shape) -> str:
        return self.node(_PLAIN[type(layer)], x)

    @_layer.register
    def _(self, layer: kinds.Dense, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("Gemm", [*x, self._constant(self._weight(layer, "weight")), *self._bias(layer)])

    @_layer.register
    def _(self, layer: kinds.Conv2D, x: list[str], before: Shape, after: Shape) -> str:
        weight = self._constant(self._weight(layer, "weight").transpose(3, 2, 0, 1))
        side = self._side(layer, layer.kernel, layer.stride, before[:2])
        return self.node("Conv", [*x, weight, *self._bias(layer)], **side)

    @_layer.register
    def _(self, layer: kinds.Conv1D, x: list[str], before: Shape, after: Shape) -> str:
        weight = self._constant(self._weight(layer, "weight").transpose(2, 1, 0))
        side = self._side(layer, (layer.kernel,), (layer.stride,), before[:1])
        return self.node("Conv", [*x, weight, *self._bias(layer)], **side)

    @_layer.register
    def _(self, layer: kinds.DepthwiseConv2D, x: list[str], before: Shape, after: Shape) -> str:
        weight = self._constant(self._weight(layer, "weight").transpose(2, 0, 1)[:, None])
        side = self._side(layer, layer.kernel, layer.stride, before[:2])
        return self.node("Conv", [*x, weight, *self._bias(layer)], group=before[2], **side)

    @_layer.register
    def _(self, layer: kinds.TransposedConv2D, x: list[str], before: Shape, after: Shape) -> str:
        weight = self._constant(self._weight(layer, "weight").transpose(2, 3, 0, 1))
        sides: dict[str, Any] = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride)}
        if layer.padding == "same":
            cut = [k - s for k, s in zip(layer.kernel, layer.stride, strict=True)]
            halves = [max(c, 0) // 2 for c in cut]
            sides["pads"] = halves + [max(c, 0) - half for c, half in zip(cut, halves, strict=True)]
            sides["output_padding"] = [max(-c, 0) for c in cut]
        return self.node("ConvTranspose", [*x, weight, *self._bias(layer)], **sides)

    @_layer.register(kinds.MaxPool)
    @_layer.register(kinds.AveragePool)
    def _(self, layer: Any, x: list[str], before: Shape, after: Shape) -> str:
        operator = "MaxPool" if isinstance(layer, kinds.MaxPool) else "AveragePool"
        return self.node(operator, x, kernel_shape=list(layer.size), strides=list(layer.size))

    @_layer.register
    def _(self, layer: kinds.GlobalAveragePool, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("Flatten", [self.node("GlobalAveragePool", x)])

    @_layer.register
    def _(self, layer: kinds.Relu6, x: list[str], before: Shape, after: Shape) -> str:
        bounds = [self._constant(np.array(bound, np.float32)) for bound in (0, 6)]
        return self.node("Clip", [*x, *bounds])

    @_layer.register
    def _(self, layer: kinds.LeakyRelu, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("LeakyRelu", x, alpha=layer.slope)

    @_layer.register
    def _(self, layer: kinds.Gelu, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("Gelu", x, approximate="tanh")

    @_layer.register
    def _(self, layer: kinds.Silu, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("Mul", [*x, self.node("Sigmoid", x)])

    @_layer.register(kinds.Flatten)
    @_layer.register(kinds.Reshape)
    def _(self, layer: kinds.Layer, x: list[str], before: Shape, after: Shape) -> str:
        rows = self.node("Reshape", [self._last(x[0], before), self._numbers(-1, *after)])
        return self._first(rows, after)

    @_layer.register
    def _(self, layer: kinds.Add, x: list[str], before: Shape, after: Shape) -> str:
        total = x[0]
        for other in x[1:]:
            total = self.node("Add", [total, other])
        return total

    @_layer.register
    def _(self, layer: kinds.Concat, x: list[str], before: Shape, after: Shape) -> str:
        return self.node("Concat", x, axis=1)

    @_layer.register
    def _(self, layer: kinds.GroupNorm, x: list[str], before: Shape, after: Shape) -> str:
        """As an instance norm over groups, then scale and shift per channel."""
        groups, channels = layer.groups, before[-1]
        rows = self.node("Reshape", [*x, self._numbers(0, groups, -1)])
        ones, zeros = (self._constant(np.full(groups, value, np.float32)) for value in (1, 0))
        normal = self.node("InstanceNormalization", [rows, ones, zeros], epsilon=layer.epsilon)
        y = self.node("Reshape", [normal, self._numbers(-1, channels, *before[:-1])])
        for operator, name in (("Mul", "scale"), ("Add", "shift")):
            shape = (channels, *(1,) * (len(before) - 1))
            y = self.node(operator, [y, self._constant(self._weight(layer, name).reshape(shape))])
        return y

    @_layer.register
    def _(self, layer: kinds.LayerNorm, x: list[str], before: Shape, after: Shape) -> str:
        own = [self._constant(self._weight(layer, name)) for name in ("scale", "shift")]
        last = self._last(x[0], before)
        return self._first(self.node("LayerNormalization", [last, *own], axis=-1, epsilon=layer.epsilon), after)

    @_layer.register
    def _(self, layer: kinds.Dropout, x: list[str], before: Shape, after: Shape) -> str:
        return x[0]

    @_layer.register
    def _(self, layer: kinds.Embedding, x: list[str], before: Shape, after: Shape) -> str:
        chosen = self.node("Cast", x, to=int(self._onnx.TensorProto.INT64))
        return self._first(self.node("Gather", [self._constant(self._weight(layer, "table")), chosen]), after)

    @_layer.register(kinds.Lstm)
    @_layer.register(kinds.Gru)
    def _(self, layer: Any, x: list[str], before: Shape, after: Shape) -> str:
        gates, units = _GATES[type(layer)], layer.units
        steps = self.node("Transpose", x, perm=[2, 0, 1])
        names = ("weight", "recurrent")
        blocks = [self._weight(layer, n).T.reshape(len(gates), units, -1)[list(gates)] for n in names]
        first = self._weight(layer, "bias")
        late = self._weights.get(f"{layer.name}.recurrent_bias", np.zeros_like(first))
        biases = np.stack([first, late]).reshape(2, len(gates), units)[:, list(gates)].reshape(1, -1)
        reads = [steps, *(self._constant(b.reshape(1, len(gates) * units, -1)) for b in blocks), self._constant(biases)]
        more = {} if isinstance(layer, kinds.Lstm) else {"linear_before_reset": 1}
        operator = "LSTM" if isinstance(layer, kinds.Lstm) else "GRU"
        output = f"v{len(self.nodes)}"
        outputs = [output] if layer.sequences else ["", output]
        name = f"{operator.lower()}{len(self.nodes)}"
        made = self._onnx.helper.make_node(operator, reads, outputs, name=name, hidden_size=units, **more)
        self.nodes.append(made)
        if not layer.sequences:
            return self.node("Squeeze", [output, self._numbers(0)])
        return self.node("Transpose", [self.node("Squeeze", [output, self._numbers(1)])], perm=[1, 2, 0])

