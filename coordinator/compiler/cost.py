"""What a training step costs: arithmetic per sample and memory for activations."""

from __future__ import annotations

import math
from itertools import accumulate

from protocol.subnetwork import FULL, Subnetwork

from .flatbuffer import Writer
from .shapes import layout
from .spec import ModelSpec

_ITEM_BYTES = 4


def flops(spec: ModelSpec, subnetwork: Subnetwork = FULL) -> int:
    """Floating-point operations of one sample, forward and backward, a multiply-add counted as 2.

    Counts the products with weights, which dominate: once forward, once for the gradient of the weight and, where
    what the layer reads depends on weights, once for the gradient of the input.
    """
    forward = forward_flops(spec, subnetwork)
    learned: set[int] = set()  # layers that depend on weights
    total = 0
    for index, (layer, read) in enumerate(zip(spec.layers, spec.sources, strict=True)):
        behind = any(source in learned for source in read)
        total += forward[index] * (3 if behind else 2)
        if behind or layer.tensors():
            learned.add(index)
    return total


def forward_flops(spec: ModelSpec, subnetwork: Subnetwork = FULL) -> list[int]:
    """Operations of one sample's forward pass in every layer."""
    axes = layout(spec)
    counts: list[int] = []
    for layer, read, after in zip(spec.layers, spec.sources, spec.shapes, strict=True):
        before = spec.input if read[0] < 0 else spec.shapes[read[0]]
        kept = [[subnetwork.size(axis) for axis in axes[f"{layer.name}.{name}"]] for name in layer.tensors()]
        products = sum(math.prod(sizes) for sizes in kept if len(sizes) > 1)
        counts.append(2 * layer.positions(before, after) * products)
    return counts


def activation_bytes(graph: Writer) -> int:
    """Peak size of what is alive at once between operators, without inputs, outputs and constants.

    An estimate of the runtime's arena: reshapes count as views, fragmentation and scratch space come on top.
    """
    outside = {tensor.index for tensor in (*graph.inputs.values(), *graph.outputs.values())}
    outside |= graph.constants.keys()
    owner: dict[int, int] = {}
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    for position, operation in enumerate(graph.operations):
        for index in operation.writes:
            first = operation.reads[0]
            owner[index] = owner.get(first, first) if operation.operator == "RESHAPE" else index
        for index in {owner.get(index, index) for index in (*operation.reads, *operation.writes)} - outside:
            born.setdefault(index, position)
            dies[index] = position
    change = [0] * (len(graph.operations) + 1)
    for index, start in born.items():
        size = graph.tensors[index].size * _ITEM_BYTES
        change[start] += size
        change[dies[index] + 1] -= size
    return max(accumulate(change))
