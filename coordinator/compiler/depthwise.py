"""Depthwise convolution: every channel with its own kernel.

Forward and the gradient by the input run as DEPTHWISE_CONV_2D or as shifted multiply-adds, whichever the target is
faster at. The gradient by the weight has no operator of its own: every tap is a product of two images, summed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from attrs import evolve

from .autodiff import Tape
from .graph import Graph, Tensor
from .kinds import DepthwiseConv2D
from .patches import Index, Patches
from .primitives import Step, rows

Lowering = Literal["operator", "taps"]


def depthwise(tape: Tape, x: Tensor, weight: Tensor, layer: DepthwiseConv2D, lowering: Lowering) -> Tensor:
    """x[B, H, W, C] with weight[kh, kw, C]; the bias is not added here."""
    graph = tape.graph
    patches = Patches(layer.dense, (x.shape[1], x.shape[2]))
    made = (x.shape[0], *patches.pooled, x.shape[3])
    padded = _padded(graph, x, patches)
    kernel = graph.reshape(weight, (patches.taps, x.shape[3]))
    reads: list[Tensor] = []

    def read() -> list[Tensor]:
        if not reads:
            reads.extend(_read(graph, padded, patches))
        return reads

    y = graph.depthwise(padded, weight, layer.stride) if lowering == "operator" else _weighed(graph, read(), kernel)

    def backward(gradient: Tensor) -> Step:
        gradient = graph.reshape(gradient, made)
        products = [graph.sum(rows(graph, graph.multiply(tap, gradient)), 0, keep=True) for tap in read()]
        yield weight, graph.reshape(graph.concatenate(products, 0), weight.shape)
        if tape.tracks(x):
            yield x, _by_input(graph, gradient, kernel, patches, x, lowering)

    return tape.record(graph.reshape(y, made), (x, weight), backward)


def _padded(graph: Graph, x: Tensor, patches: Patches) -> Tensor:
    """x with the rows and columns its kernel reads and no others."""
    (above, left), stride, kernel = patches.before, patches.layer.stride, patches.layer.kernel
    needed = [(n - 1) * s + k for n, s, k in zip(patches.pooled, stride, kernel, strict=True)]
    below, right = needed[0] - above - x.shape[1], needed[1] - left - x.shape[2]
    if below < 0 or right < 0:
        kept = (x.shape[0], x.shape[1] + min(below, 0), x.shape[2] + min(right, 0), x.shape[3])
        x = graph.slice(x, (0, 0, 0, 0), kept)
    return graph.pad(x, ((0, 0), (above, max(below, 0)), (left, max(right, 0)), (0, 0)))


def _read(graph: Graph, padded: Tensor, patches: Patches) -> list[Tensor]:
    """What every tap reads: one image [B, rows, columns, C] each."""
    made = (padded.shape[0], *patches.pooled, padded.shape[3])
    corners = np.ndindex(*patches.layer.kernel)
    if patches.layer.stride == (1, 1):
        return [graph.slice(padded, (0, row, column, 0), made) for row, column in corners]
    inside = Patches(evolve(patches.layer, padding="valid"), (padded.shape[1], padded.shape[2])).forward()[0]
    return [graph.reshape(part, made) for part in _gathered(graph, padded, inside)]


def _gathered(graph: Graph, x: Tensor, index: Index) -> list[Tensor]:
    """Pixels of x[B, …, C] that every column of ``index`` names."""
    pixels = graph.reshape(x, (x.shape[0], x.size // (x.shape[0] * x.shape[-1]), x.shape[-1]))
    return [graph.gather(pixels, np.ascontiguousarray(column), 1) for column in index.T]


def _weighed(graph: Graph, reads: list[Tensor], kernel: Tensor) -> Tensor:
    """Σ tap·its weight per channel."""
    total: Tensor | None = None
    for tap, weight in zip(reads, graph.split(kernel, 0, len(reads)), strict=True):
        product = graph.multiply(tap, graph.reshape(weight, (kernel.shape[1],)))
        total = product if total is None else graph.add(total, product)
    assert total is not None
    return total


def _by_input(
    graph: Graph, gradient: Tensor, kernel: Tensor, patches: Patches, x: Tensor, lowering: Lowering
) -> Tensor:
    """Itself a depthwise convolution: of the gradient, with the kernel turned round."""
    (high, wide), (above, left) = patches.layer.kernel, patches.before
    if patches.layer.stride != (1, 1):
        index = patches.backward()
        pixels = graph.reshape(gradient, (x.shape[0], patches.positions, x.shape[3]))
        reads = _gathered(graph, graph.pad(pixels, ((0, 0), (1, 0), (0, 0))), index + 1)
        return graph.reshape(_weighed(graph, reads, kernel), x.shape)
    first = high - 1 - above, wide - 1 - left
    rest = [x.shape[i + 1] + (high, wide)[i] - 1 - first[i] - gradient.shape[i + 1] for i in (0, 1)]
    padded = graph.pad(gradient, ((0, 0), (first[0], rest[0]), (first[1], rest[1]), (0, 0)))
    turned = graph.gather(kernel, np.arange(patches.taps, dtype=np.int32)[::-1].copy(), 0)
    if lowering == "operator":
        return graph.depthwise(padded, graph.reshape(turned, (high, wide, x.shape[3])))
    reads = [graph.slice(padded, (0, a, b, 0), x.shape) for a, b in np.ndindex(high, wide)]
    return _weighed(graph, reads, turned)
