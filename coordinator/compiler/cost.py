"""What a training step costs: arithmetic per sample and memory for activations."""

from __future__ import annotations

import math
from itertools import accumulate

from protocol.subnetwork import FULL, Subnetwork

from .flatbuffer import Writer
from .shapes import layout
from .spec import Conv2D, ModelSpec

_ITEM_BYTES = 4


def flops(spec: ModelSpec, subnetwork: Subnetwork = FULL) -> int:
    """Floating-point operations of one sample, forward and backward, a multiply-add counted as 2.

    Counts the products with weights, which dominate: once forward, once for the gradient of the weight and,
    except in the first such layer, once for the gradient of the input.
    """
    forward = forward_flops(spec, subnetwork)
    return 3 * sum(forward) - forward[0]


def forward_flops(spec: ModelSpec, subnetwork: Subnetwork = FULL) -> list[int]:
    """Operations of one sample's forward pass in every parametrised layer."""
    axes = layout(spec)
    counts: list[int] = []
    for layer, shape in zip(spec.layers, spec.shapes, strict=True):
        name = f"{getattr(layer, 'name', '')}.weight"
        if name in axes:
            positions = math.prod(shape[:2]) if isinstance(layer, Conv2D) else 1
            kept = [axis.repeat * subnetwork.count(axis.group, axis.channels) for axis in axes[name]]
            counts.append(2 * positions * math.prod(kept))
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
    for position, (operator, reads, writes) in enumerate(graph.operators):
        for index in writes:
            owner[index] = owner.get(reads[0], reads[0]) if operator == "RESHAPE" else index
        for index in {owner.get(index, index) for index in (*reads, *writes)} - outside:
            born.setdefault(index, position)
            dies[index] = position
    change = [0] * (len(graph.operators) + 1)
    for index, start in born.items():
        size = graph.tensors[index].size * _ITEM_BYTES
        change[start] += size
        change[dies[index] + 1] -= size
    return max(accumulate(change))
