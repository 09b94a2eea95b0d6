"""One artifact of one (spec, subnetwork, batch, signature)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import attrs
from attrs import field, frozen

from protocol.subnetwork import CLASSES, FULL, Region, Subnetwork, groups

from .cost import activation_bytes, flops, forward_flops
from .graph import Graph
from .kinds import BatchNorm, GroupNorm, LayerNorm
from .optimiser import Training
from .program import program
from .shapes import layout
from .signatures import SIGNATURES, SPLIT, CompileError, Request
from .spec import ModelSpec
from .targets import TARGETS

Signature = Literal["train", "grad", "infer", "evaluate", "front", "front_backward", "back_train"]
MAX_BATCH = 1024


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
    training: Training
    cut: str | None
    """Name of the layer the model is split behind."""
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        value = attrs.asdict(self)
        value["input"] = list(self.input)
        value["tensors"] = [[name, list(shape)] for name, shape in self.tensors]
        value["inputs"] = {name: list(shape) for name, shape in self.inputs.items()}
        value["outputs"] = {name: list(shape) for name, shape in self.outputs.items()}
        return value


def _brief(content: bytes) -> str:
    return f"<{len(content)} bytes>"


@frozen
class Artifact:
    """A compiled model file, named by its hash."""

    content: bytes = field(repr=_brief)
    sha256: str
    manifest: Manifest
    _graph: Graph = field(repr=False, eq=False)

    @cached_property
    def program(self) -> bytes:
        """The same graph for the NumPy runtime."""
        return program(self._graph)

    def for_backend(self, backend: str) -> bytes:
        """The form a runtime reads: ``numpy`` the program, any other the model file."""
        return self.program if backend == "numpy" else self.content


def compile_model(
    spec: ModelSpec,
    subnetwork: Subnetwork = FULL,
    batch: int = 32,
    signature: Signature = "train",
    *,
    training: Training | None = None,
    cut: str | None = None,
    target: str = "litert",
) -> Artifact:
    """Compile the part of a model a subnetwork keeps.

    ``train`` is one step without memory: ``x`` [B, *input], ``y``, ``sample_weight`` [B] ≥ 0, ``learning_rate`` [1],
    then what ``training`` asks for and ``w/<tensor>`` to ``loss_sum`` [1] = Σ sw·l, ``correct`` [1] = Σ sw·[right],
    ``squared_gradient`` [T] per tensor of the gradient of Σ sw·l / Σ sw, and ``new/<tensor>``. Rows of weight 0
    change nothing. ``y`` is [B] int32 in 0 … classes-1 or [B, outputs] (the caller's duty). ``grad`` puts out sums
    instead of new weights, ``infer`` ``logits`` and ``features`` (what the last layer reads), ``evaluate`` counts per
    class; ``front``, ``front_backward`` and ``back_train`` are the halves of a model split behind layer ``cut``.
    docs/models.md lists all inputs and outputs.

    ``batch`` is a power of two from 1 to 1024. ``target`` says which runtime the artifact should be fast on; it runs
    on all. Raises CompileError, or ProtocolError if the subnetwork is none of the model's.
    """
    wanted = request(spec, subnetwork, batch, signature, training or Training(), cut, target)
    graph = Graph(signature)
    SIGNATURES[signature](graph, wanted)
    content = graph.pack()
    shapes = {name: tensor.shape for name, tensor in graph.inputs.items()}
    tensors = tuple((name, shape) for name, shape in wanted.shapes.items() if f"w/{name}" in shapes)
    manifest = Manifest(
        signature,
        batch,
        spec.input,
        tensors,
        {group: subnetwork.count(group, full) for group, full in groups(layout(spec)).items()},
        sum(math.prod(shape) for _, shape in tensors),
        _flops(spec, subnetwork, signature, wanted.cut),
        activation_bytes(graph),
        wanted.training,
        cut,
        shapes,
        {name: tensor.shape for name, tensor in graph.outputs.items()},
    )
    return Artifact(content, hashlib.sha256(content).hexdigest(), manifest, graph)


def request(
    spec: ModelSpec,
    subnetwork: Subnetwork,
    batch: int,
    signature: str,
    training: Training,
    cut: str | None,
    target: str,
) -> Request:
    """What was asked for, checked."""
    if signature not in SIGNATURES:
        raise CompileError(f"signature {signature!r} is not one of {', '.join(SIGNATURES)}")
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH or batch & (batch - 1):
        raise CompileError(f"batch {batch!r} is not a power of two from 1 to {MAX_BATCH}")
    if target not in TARGETS:
        raise CompileError(f"target {target!r} is not one of {', '.join(TARGETS)}")
    if CLASSES in subnetwork.channels:
        raise CompileError("a graph keeps every output class: the group 'classes' cannot be cut")
    axes = layout(spec)
    region = Region(axes, subnetwork)
    narrow = any(subnetwork.count(group, full) < full for group, full in groups(axes).items())
    _check_scaler(spec, narrow)
    _check_mask(spec, training)
    split = _cut(spec, signature, cut)
    return Request(spec, subnetwork, batch, region.shapes, training, TARGETS[target], split)


def _flops(spec: ModelSpec, subnetwork: Subnetwork, signature: Signature, cut: int) -> int:
    forward = forward_flops(spec, subnetwork)
    front = sum(forward[: cut + 1])
    match signature:
        case "train" | "grad":
            return flops(spec, subnetwork)
        case "front":
            return front
        case "front_backward":
            return flops(spec, subnetwork) - 3 * (sum(forward) - front)
        case "back_train":
            return 3 * (sum(forward) - front)
    return sum(forward)


def _check_scaler(spec: ModelSpec, narrow: bool) -> None:
    normalised = any(isinstance(layer, BatchNorm | GroupNorm | LayerNorm) for layer in spec.layers)
    if spec.scaler and narrow and not normalised:
        raise CompileError(
            "the scaler makes narrow subnetworks of a model without normalisation layers diverge: "
            "add batch_norm, group_norm or layer_norm, or leave the scaler out"
        )


def _check_mask(spec: ModelSpec, training: Training) -> None:
    if training.class_mask and not spec.labelled:
        raise CompileError("a class mask needs a loss over classes, softmax_cross_entropy")


def _cut(spec: ModelSpec, signature: str, cut: str | None) -> int:
    """Number of the layer a split signature is cut behind."""
    if signature not in SPLIT:
        if cut is not None:
            raise CompileError(f"signature {signature} is not cut; {', '.join(SPLIT)} are")
        return len(spec.layers) - 1
    if cut is None:
        raise CompileError(f"signature {signature} needs the name of the layer to cut behind")
    found = spec.number(cut)
    for index in range(found + 1, len(spec.layers)):
        if any(source < found for source in spec.sources[index]):
            label = spec.layers[index].name or spec.layers[index].kind
            raise CompileError(f"the model cannot be cut behind {cut!r}: layer {index} ({label}) reads across the cut")
    if not any(layer.tensors() for layer in spec.layers[: found + 1]) or found == len(spec.layers) - 1:
        raise CompileError(f"the model cannot be cut behind {cut!r}: both halves need layers with weights")
    return found
