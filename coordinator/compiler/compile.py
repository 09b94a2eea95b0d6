"""One artifact of one (spec, subnetwork, batch, signature)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs
from attrs import field, frozen

from protocol.subnetwork import CLASSES, FULL, Region, Subnetwork, groups

from . import layers
from .autodiff import Tape
from .convolution import convolve
from .cost import activation_bytes, flops, forward_flops
from .graph import Graph, Tensor
from .loss import cross_entropy
from .shapes import layout
from .spec import Conv2D, Dense, Flatten, Layer, MaxPool, ModelSpec, Parametrised, Relu

Signature = Literal["train", "infer"]
MAX_BATCH = 1024


class CompileError(ValueError):
    """What was asked of the compiler is outside what it makes."""


@frozen
class Manifest:
    """What stands beside an artifact. ``flops`` is per sample of its signature; a multiply-add counts 2."""

    signature: Signature
    batch: int
    input: tuple[int, ...]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of every weight, in the order of the artifact's inputs."""
    groups: Mapping[str, int]
    """Channels kept of every group."""
    parameters: int
    flops: int
    activation_bytes: int

    def to_json(self) -> dict[str, Any]:
        value = attrs.asdict(self)
        value["input"] = list(self.input)
        value["tensors"] = [[name, list(shape)] for name, shape in self.tensors]
        return value


@frozen
class Artifact:
    """A compiled model file, named by its hash."""

    content: bytes = field(repr=lambda content: f"<{len(content)} bytes>")
    sha256: str
    manifest: Manifest


def compile_model(
    spec: ModelSpec, subnetwork: Subnetwork = FULL, batch: int = 32, signature: Signature = "train"
) -> Artifact:
    """Compile the part of a model a subnetwork keeps.

    ``train`` is one step of plain SGD without memory. Inputs: ``x`` [B, *input], ``y`` [B] int32 in 0 …
    classes-1 (the caller's duty), ``sample_weight`` [B] ≥ 0, ``learning_rate`` [1], then ``w/<tensor>``.
    Outputs: ``loss_sum`` [1] = Σ sw·l, ``correct`` [1] = Σ sw·[argmax = y], ``squared_gradient`` [T], the
    squared norm per tensor of the gradient of Σ sw·l / Σ sw, then ``new/<tensor>`` = w -
    learning_rate·gradient. Rows of weight 0 change nothing.
    ``infer``: ``x``, ``w/<tensor>`` to ``logits`` [B, classes] and ``features`` [B, F], the input of the last
    layer.

    ``batch`` is a power of two from 1 to 1024. Raises CompileError, or ProtocolError if the subnetwork is
    none of the model's.
    """
    if signature not in get_args(Signature):
        raise CompileError(f"signature {signature!r} is not one of {', '.join(get_args(Signature))}")
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH or batch & (batch - 1):
        raise CompileError(f"batch {batch!r} is not a power of two from 1 to {MAX_BATCH}")
    if CLASSES in subnetwork.channels:
        raise CompileError("a graph keeps every output class: the group 'classes' cannot be cut")
    axes = layout(spec)
    region = Region(axes, subnetwork)
    graph = Graph(signature)
    write = _write_training if signature == "train" else _write_inference
    write(graph, spec, batch, region.shapes)
    content = graph.pack()
    manifest = Manifest(
        signature,
        batch,
        spec.input,
        tuple(region.shapes.items()),
        {group: subnetwork.count(group, full) for group, full in groups(axes).items()},
        region.parameters,
        flops(spec, subnetwork) if signature == "train" else sum(forward_flops(spec, subnetwork)),
        activation_bytes(graph),
    )
    return Artifact(content, hashlib.sha256(content).hexdigest(), manifest)


def _write_training(graph: Graph, spec: ModelSpec, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    x = graph.input("x", (batch, *spec.input))
    labels = graph.input("y", (batch,), "int32")
    sample_weight = graph.input("sample_weight", (batch,))
    learning_rate = graph.input("learning_rate", (1,))
    weights = {name: graph.input(f"w/{name}", shape) for name, shape in shapes.items()}
    tape = Tape(graph)
    for weight in weights.values():
        tape.watch(weight)
    logits, _ = _forward(tape, spec, x, weights)
    loss = cross_entropy(graph, logits, labels, sample_weight)
    gradients = tape.gradients(logits, loss.gradient, list(weights.values()))
    squares: list[Tensor] = []
    updated: list[Tensor] = []
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        squares.append(_squared_norm(graph, gradient))
        updated.append(graph.subtract(weight, graph.multiply(gradient, learning_rate)))
    graph.output("loss_sum", loss.loss_sum)
    graph.output("correct", loss.correct)
    graph.output("squared_gradient", graph.concatenate(squares, 0))
    for name, weight in zip(weights, updated, strict=True):
        graph.output(f"new/{name}", weight)


def _write_inference(graph: Graph, spec: ModelSpec, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    x = graph.input("x", (batch, *spec.input))
    weights = {name: graph.input(f"w/{name}", shape) for name, shape in shapes.items()}
    logits, features = _forward(Tape(graph), spec, x, weights)
    graph.output("logits", logits)
    graph.output("features", graph.copy(features, features.shape))


def _squared_norm(graph: Graph, x: Tensor) -> Tensor:
    """Σ x² [1], by columns first: faster than one long sum, and rounding grows with the longer axis only."""
    columns = layers.rows(graph, x)
    return graph.sum(graph.sum(graph.multiply(columns, columns), 0), 0, keep=True)


def _forward(tape: Tape, spec: ModelSpec, x: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and what the last layer sees."""
    features = x
    pending = list(spec.layers)
    while pending:
        features = x
        layer = pending.pop(0)
        if isinstance(layer, Parametrised):
            weight, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
            pools, rectified = _take_followers(pending)
            if isinstance(layer, Conv2D):
                x = convolve(tape, x, weight, layer, pools.pop(0).size if pools else (1, 1))
            else:
                x = layers.dense(tape, x, weight)
            for pool in pools:
                x = layers.max_pool(tape, x, pool.size)
            x = layers.bias(tape, x, bias, rectified)
        else:
            x = _plain(tape, x, layer)
    return x, features


def _take_followers(pending: list[Layer]) -> tuple[list[MaxPool], bool]:
    """Remove the pools and rectifiers right behind a parametrised layer.

    A maximum commutes with adding a constant and with max(·, 0), so pooling goes first: the bias and the
    rectifier then have fewer elements to pass, in one operator.
    """
    pools: list[MaxPool] = []
    rectified = False
    while pending and isinstance(pending[0], MaxPool | Relu):
        layer = pending.pop(0)
        if isinstance(layer, MaxPool):
            pools.append(layer)
        else:
            rectified = True
    return pools, rectified


def _plain(tape: Tape, x: Tensor, layer: Layer) -> Tensor:
    match layer:
        case MaxPool(size):
            return layers.max_pool(tape, x, size)
        case Relu():
            return layers.relu(tape, x)
        case Flatten():
            return layers.reshape(tape, x, (x.shape[0], x.size // x.shape[0]))
        case Dense() | Conv2D():
            raise AssertionError("layers with weights are written by their callers")
