"""ONNX's operators that layers with weights, pools, norms and joins come of."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from . import kinds
from .fields import Padding
from .onnx_movement import Attributes, Handler, Read, gather
from .onnx_trace import Trace, Value
from .onnx_windows import pads, window

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""Where our gates (input, forget, cell, output; reset, update, candidate) stand among ONNX's."""


def _constant(trace: Trace, value: Any, what: str) -> Any:
    if not isinstance(value, np.ndarray):
        trace.refuse(f"its {what} is computed at run time; expected a constant")
    return value


def _bias(trace: Trace, reads: list[Any], place: int) -> dict[str, Any]:
    given = reads[place] if len(reads) > place else None
    return {} if given is None else {"bias": np.ravel(_constant(trace, given, "bias"))}


def _plain(trace: Trace, attributes: Attributes) -> None:
    if any(n != 1 for n in attributes.get("dilations", ())):
        trace.refuse(f"has dilations {attributes['dilations']}; expected 1")


def _convolution(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value = trace.image(reads[0])
    weight = _constant(trace, reads[1], "weight")
    sides, group, channels = weight.ndim - 2, attributes.get("group", 1), value.channels
    _plain(trace, attributes)
    if sides not in (1, 2) or value.positions.ndim != sides + 1:
        trace.refuse(f"convolves over {sides} sides of values with {value.positions.ndim} axes; expected 1 or 2 sides")
    kernel, strides = weight.shape[2:], tuple(attributes.get("strides", (1,) * sides))
    pixels, padded = value.shape[:-1], pads(attributes, value.shape[:-1], weight.shape[2:])
    reach = window(pixels, kernel, strides, padded)
    if reach is None:
        trace.refuse(f"has padding {padded} on sides of {pixels}; expected one that keeps to same or valid")
    bias = _bias(trace, reads, 2)
    if group == channels and weight.shape[0] == channels > 1 and sides == 2:
        own = reach.widened(np.moveaxis(weight[:, 0], 0, -1))
        layer: kinds.Layer = kinds.DepthwiseConv2D(_two(reach.sizes), _two(strides), reach.padding, bias=bool(bias))
        return [trace.channels_first(layer, value, weight=own, **bias)]
    if group != 1:
        filters = weight.shape[0]
        trace.refuse(f"has {group} groups for {channels} channels and {filters} filters; expected 1, or as many")
    own = reach.widened(np.moveaxis(weight, (0, 1), (-1, -2)))
    filters = weight.shape[0]
    if sides == 2:
        layer = kinds.Conv2D(filters, _two(reach.sizes), _two(strides), reach.padding, bias=bool(bias))
    else:
        layer = kinds.Conv1D(filters, reach.sizes[0], strides[0], reach.padding, bias=bool(bias))
    return [trace.channels_first(layer, value, weight=own, **bias)]


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[1])


def _transposed(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value = trace.image(reads[0])
    weight = _constant(trace, reads[1], "weight")
    _plain(trace, attributes)
    if weight.ndim != 4 or attributes.get("group", 1) != 1 or value.positions.ndim != 3:
        trace.refuse("expected a transposed convolution of one group over images")
    kernel, strides = weight.shape[2:], tuple(attributes.get("strides", (1, 1)))
    auto = attributes.get("auto_pad", "NOTSET")
    given, more = attributes.get("pads", [0] * 4), attributes.get("output_padding", [0, 0])
    cut = [(given[side], given[side + 2] - more[side]) for side in (0, 1)]
    same = [(max(k - s, 0) // 2, k - s - max(k - s, 0) // 2) for k, s in zip(kernel, strides, strict=True)]
    padding: Padding
    if auto == "SAME_UPPER" or (auto == "NOTSET" and cut == same):
        padding = "same"
    elif auto == "VALID" or (auto == "NOTSET" and cut == [(0, 0), (0, 0)]):
        padding = "valid"
    else:
        trace.refuse(f"cuts {cut} off its sides; expected none, or {same} for same")
    bias = _bias(trace, reads, 2)
    layer = kinds.TransposedConv2D(weight.shape[1], _two(kernel), _two(strides), padding, bias=bool(bias))
    return [trace.channels_first(layer, value, weight=np.moveaxis(weight, (0, 1), (-2, -1)), **bias)]


def _pool(kind: type[kinds.MaxPool] | type[kinds.AveragePool]) -> Handler:
    def handle(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
        value = trace.image(reads[0])
        _plain(trace, attributes)
        kernel, pixels = tuple(attributes["kernel_shape"]), value.shape[:-1]
        strides = tuple(attributes.get("strides", (1,) * len(kernel)))
        padded = pads(attributes, pixels, kernel)
        uneven = attributes.get("ceil_mode") and any(n % k for n, k in zip(pixels, kernel, strict=True))
        apart = all(k in (s, n) for k, s, n in zip(kernel, strides, pixels, strict=True))
        if not apart or uneven or any(pad != (0, 0) for pad in padded):
            trace.refuse(
                f"pools windows {kernel} every {strides} with padding {padded} over {pixels}; "
                f"expected windows side by side without padding"
            )
        return [trace.channels_first(kind(kernel), value)]

    return handle


def _mean(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value = trace.settled(reads[0])
    rank = value.positions.ndim + 1
    given = attributes.get("axes", reads[1] if len(reads) > 1 else None)
    axes = sorted(int(axis) % rank for axis in (range(2, rank) if given is None else np.ravel(given)))
    keep = attributes.get("keepdims", 1)
    full = np.expand_dims(value.positions, value.batch)
    others = [axis for axis in range(rank) if axis not in axes]
    lines = full.transpose(others + axes).reshape(*(full.shape[axis] for axis in others), -1) % value.channels
    positions = math.prod(value.shape[:-1])
    if value.batch in axes or len(value.shape) < 2 or lines.shape[-1] != positions or (lines != lines[..., :1]).any():
        trace.refuse(f"takes the mean over axes {axes}; expected all positions of every channel")
    number, shape = trace.add(kinds.GlobalAveragePool(), value)
    batch = others.index(value.batch)
    kept = lines[..., 0].squeeze(batch)
    if keep:
        kept = np.expand_dims(lines[..., 0], tuple(axes)).squeeze(value.batch)
        batch = value.batch
    return [Value(number, shape, kept, batch)]


def _gemm(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value = trace.flat(reads[0])
    weight = _constant(trace, reads[1], "weight")
    if attributes.get("transA"):
        trace.refuse("transposes its batch (transA); expected 0")
    weight = (weight.T if attributes.get("transB") else weight) * attributes.get("alpha", 1.0)
    bias = _bias(trace, reads, 2)
    if bias:
        scaled = bias["bias"] * attributes.get("beta", 1.0)
        bias = {"bias": np.broadcast_to(scaled, (weight.shape[1],))}
    return [_dense(trace, value, weight, bias)]


def _dense(trace: Trace, value: Value, weight: Any, bias: dict[str, Any]) -> Value:
    if weight.ndim != 2 or weight.shape[0] != value.positions.size:
        trace.refuse(f"multiplies rows of {value.positions.size} with a matrix of {weight.shape}")
    own = np.empty_like(weight)
    own[value.positions] = weight
    number, shape = trace.add(kinds.Dense(weight.shape[1], bias=bool(bias)), value, weight=own, **bias)
    return Value(number, shape, np.arange(shape[0]))


def _matmul(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    weight = _constant(trace, reads[1], "right side")
    if not isinstance(reads[0], Value) or weight.ndim != 2:
        trace.refuse("multiplies other things than values by a constant matrix")
    if reads[0].positions.ndim == 1:
        return [_dense(trace, trace.flat(reads[0]), weight, {})]
    if reads[0].batch != 0 or reads[0].positions.ndim > 3 or weight.shape[0] != reads[0].positions.shape[-1]:
        trace.refuse("expected rows, signals or images of channels that the matrix takes")
    value = trace.signal(reads[0])
    sides = value.positions.ndim - 1
    units = weight.shape[1]
    layer: kinds.Layer = kinds.Conv2D(units, (1, 1), bias=False)
    if sides == 1:
        layer = kinds.Conv1D(units, 1, bias=False)
    number, shape = trace.add(layer, value, weight=weight.reshape((1,) * sides + weight.shape))
    return [Value(number, shape, np.arange(math.prod(shape)).reshape(shape))]


def _concat(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    if not all(isinstance(read, Value) for read in reads):
        trace.refuse("joins values with constants; expected values")
    values = [trace.settled(value) for value in reads]
    if len(values) == 1:
        return [values[0]]
    axis = attributes["axis"] % (values[0].positions.ndim + 1)
    if values[0].positions.ndim == 1:
        values = [trace.flat(value) for value in values]
        starts = np.cumsum([0, *(value.positions.size for value in values)])
        places = np.concatenate([start + value.positions for start, value in zip(starts, values, strict=False)])
    else:
        values = [trace.image(value) for value in values]
    if axis != 1 or any(value.batch != 0 or len(value.shape) != len(values[0].shape) for value in values):
        trace.refuse(f"joins along axis {axis}; expected the channels, axis 1")
    layer = kinds.Concat(tuple(f"v{place}" for place in range(len(values))))
    made = trace.channels_first(layer, *values)
    return [made if len(made.shape) > 1 else attrs.evolve(made, positions=places)]


def _instance_norm(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    scale, shift = (np.ravel(_constant(trace, read, "scale")) for read in reads[1:3])
    return [_grouped(trace, attributes, reads[0], len(scale), scale, shift)]


def _group_norm(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    groups, value = attributes["num_groups"], trace.settled(reads[0])
    scale, shift = (np.ravel(_constant(trace, read, "scale")) for read in reads[1:3])
    made = _grouped(trace, attributes, value, groups, np.ones(groups), np.zeros(groups))
    each = value.channels // len(scale)
    rank = (-1, *(1,) * (value.positions.ndim - 1))
    return [trace.affine(made, np.repeat(scale, each).reshape(rank), np.repeat(shift, each).reshape(rank))]


def _grouped(trace: Trace, attributes: Attributes, read: Any, groups: int, scale: Any, shift: Any) -> Value:
    """A norm over equal groups of neighbouring channels, which ONNX has on axis 1."""
    value = trace.settled(read)
    if value.batch != 0 or value.channels % groups or value.positions.size % groups or len(value.shape) < 2:
        trace.refuse(f"normalises {groups} groups of {value.channels} channels; expected a divisor")
    each = value.channels // groups
    group = (value.positions % value.channels // each).reshape(groups, -1)
    if (group != np.arange(groups)[:, None]).any():
        trace.refuse("normalises groups that are not neighbouring channels")
    layer = kinds.GroupNorm(groups=groups, epsilon=attributes.get("epsilon", 1e-5))
    return trace.in_place(layer, value, scale=np.repeat(scale, each), shift=np.repeat(shift, each))


def _layer_norm(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value = trace.settled(reads[0])
    rows = value.positions.reshape(-1, value.positions.shape[-1])
    last = attributes.get("axis", -1) in (-1, value.positions.ndim) and value.batch != value.positions.ndim
    channel = rows % value.channels
    if not last or rows.shape[1] != value.channels or (channel != channel[:1]).any():
        trace.refuse("normalises over other axes than the channels; expected the last axis, and channels there")
    found: dict[str, Any] = {"scale": np.ones(value.channels), "shift": np.zeros(value.channels)}
    for name, given in zip(("scale", "shift"), reads[1:3], strict=False):
        found[name][channel[0]] = np.broadcast_to(_constant(trace, given, name), (value.channels,))
    return [trace.in_place(kinds.LayerNorm(epsilon=attributes.get("epsilon", 1e-5)), value, **found)]


def _recurrent(kind: str) -> Handler:
    def handle(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
        (value, weight, recurrent), rest = reads[:3], [*reads[3:], *[None] * 5]
        _check_recurrent(trace, kind, attributes, rest)
        if value.batch != 1:
            trace.refuse("expected its steps on axis 0 and the batch on axis 1")
        value = trace.signal(value)
        gates, units = _GATES[kind], attributes["hidden_size"]
        tensors: dict[str, Any] = {}
        for name, given in (("weight", weight), ("recurrent", recurrent)):
            blocks = _constant(trace, given, name)[0].reshape(len(gates), units, -1)[list(gates)]
            tensors[name] = blocks.reshape(len(gates) * units, -1).T
        given = np.zeros((1, 2 * len(gates) * units), np.float32) if rest[0] is None else rest[0]
        biases = given[0].reshape(2, len(gates), units)[:, list(gates)].reshape(2, -1)
        if kind == "LSTM":
            layer: kinds.Layer = kinds.Lstm(units, True)
            tensors["bias"] = biases[0] + biases[1]
        else:
            layer = kinds.Gru(units, True)
            tensors |= {"bias": biases[0], "recurrent_bias": biases[1]}
        number, shape = trace.add(layer, value, **tensors)
        places = np.arange(math.prod(shape)).reshape(shape)
        return [Value(number, shape, places[:, None], 2), Value(number, shape, places[-1:], 1), None]

    return handle


def _check_recurrent(trace: Trace, kind: str, attributes: Attributes, rest: list[Any]) -> None:
    """``rest``: bias, lengths of sequences, initial states, peepholes."""
    if attributes.get("direction", "forward") != "forward":
        trace.refuse(f"runs {attributes['direction']}; expected forward")
    usual = ["Sigmoid", "Tanh", "Tanh"][: len(_GATES[kind]) - 1]
    if attributes.get("activations", usual) not in (usual, [name.encode() for name in usual]):
        trace.refuse(f"has activations {attributes['activations']}; expected {usual}")
    if kind == "GRU" and not attributes.get("linear_before_reset"):
        trace.refuse("resets before the product; expected linear_before_reset = 1")
    if attributes.get("layout") or attributes.get("clip"):
        trace.refuse("has a layout or a clip of its own; expected neither")
    for read in rest[1:]:
        if read is not None and (isinstance(read, Value) or np.any(read)):
            trace.refuse("starts from a state, or takes lengths or peepholes; expected zeros")


def _gather(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    """Either an embedding, or a choice of numbers."""
    table, chosen = reads
    if isinstance(table, Value):
        return gather(trace, attributes, reads)
    if attributes.get("axis", 0) or table.ndim != 2 or chosen.source != -1 or chosen.positions.ndim != 1:
        trace.refuse("looks rows up by other numbers than the model's input; expected an embedding of a flat input")
    number, shape = trace.add(kinds.Embedding(*table.shape), chosen, table=table)
    return [Value(number, shape, np.arange(math.prod(shape)).reshape(shape))]


LAYERS: dict[str, Handler] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MaxPool": _pool(kinds.MaxPool),
    "AveragePool": _pool(kinds.AveragePool),
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "LSTM": _recurrent("LSTM"),
    "GRU": _recurrent("GRU"),
    "Gather": _gather,
}
