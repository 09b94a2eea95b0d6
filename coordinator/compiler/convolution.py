"""Convolution, and the maximum over windows behind it, as matrix products over gathered patches.

A patch matrix has one row per output and one column per (kernel row, kernel column, channel). It is gathered in one
operator with an index table that all samples share, in slices of the batch that stay in the cache; the products run
three times as fast as CONV_2D with variable weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .autodiff import Tape
from .blocked import blocked
from .blocks import convolution as sliding_blocks
from .blocks import gradient as gradient_blocks
from .fields import Pair
from .graph import Graph, Tensor
from .kinds import Conv2D, TransposedConv2D
from .patches import Index, Patches
from .pooling import first_maximum, max_pool
from .primitives import Step, rows
from .targets import Target

_NARROW = 64  # patch columns up to which the transposed form is faster

Gradients = tuple[Tensor, Tensor | None]
Halves = tuple[list[Tensor], Callable[[list[Tensor]], Gradients]]
"""Outputs by phase, and the way from their gradients to those of the weight matrix and (where tracked) of x."""


def convolve(tape: Tape, x: Tensor, weight: Tensor, layer: Conv2D, window: Pair, target: Target) -> Tensor:
    """x[B, H, W, C] with weight[kh, kw, C, filters], then the maximum over non-overlapping windows.

    The gradient of a maximum goes to the first element in row order that holds it. The bias is not added here.
    """
    graph = tape.graph
    matrix = graph.reshape(weight, (math.prod(weight.shape[:3]), weight.shape[3]))
    if layer.kernel == (1, 1) and layer.stride == (1, 1):
        return max_pool(tape, _pointwise(tape, x, weight, matrix), window)
    pixels = (x.shape[1], x.shape[2])
    patches = Patches(layer, pixels, window)
    narrow = layer.stride == (1, 1) and matrix.shape[0] <= _NARROW and not tape.tracks(x)
    if window == (1, 1) and not narrow:
        shape = (layer.kernel, layer.stride, patches.before)
        forward = sliding_blocks(pixels, patches.pooled, *shape, weight.shape[3], target.columns)
        backward = gradient_blocks(patches.pooled, pixels, *shape, x.shape[3], target.columns)
        return blocked(tape, x, weight, forward, backward, target.patch_bytes)
    halves = _narrow(graph, x, matrix, patches) if narrow else _patched(tape, x, matrix, patches, target)
    parts, back = halves
    y, share = first_maximum(graph, parts)

    def unfold(gradient: Tensor) -> Step:
        by_weight, by_x = back(share(rows(graph, gradient)))
        yield weight, graph.reshape(by_weight, weight.shape)
        if by_x is not None:
            yield x, graph.reshape(by_x, x.shape)

    return tape.record(graph.reshape(y, (x.shape[0], *patches.pooled, weight.shape[3])), (x, weight), unfold)


def spread(tape: Tape, x: Tensor, weight: Tensor, layer: TransposedConv2D, target: Target) -> Tensor:
    """The transposed convolution of x[B, H, W, C] with weight[kh, kw, C, filters]; the bias is not added here."""
    made, pixels = layer.output(x.shape[1:])[:2], (x.shape[1], x.shape[2])
    before = layer.inverse.padding_before((*made, 1))
    shape = (layer.kernel, layer.stride, before)
    forward = gradient_blocks(pixels, (made[0], made[1]), *shape, weight.shape[3], target.columns)
    backward = sliding_blocks((made[0], made[1]), pixels, *shape, weight.shape[2], target.columns)
    return blocked(tape, x, weight, forward, backward, target.patch_bytes)


def _pointwise(tape: Tape, x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
    """A 1×1 kernel: every pixel is its own patch."""
    graph = tape.graph
    pixels = rows(graph, x)

    def backward(gradient: Tensor) -> Step:
        gradient = rows(graph, gradient)
        yield weight, graph.reshape(graph.matmul_tn(pixels, gradient), weight.shape)
        if tape.tracks(x):
            yield x, graph.reshape(graph.matmul_nt(gradient, matrix), x.shape)

    y = graph.reshape(graph.matmul(pixels, matrix), (*x.shape[:3], matrix.shape[1]))
    return tape.record(y, (x, weight), backward)


def _narrow(graph: Graph, x: Tensor, matrix: Tensor, patches: Patches) -> Halves:
    """A first layer of few channels: transposed patches, so that what is copied are long rows of pixels."""
    (batch, *_, channels), (high, wide) = x.shape, patches.window
    planes = _planes(graph, x, patches)
    size = (1, 1, channels * batch, *patches.pooled)

    def gather(down: int, across: int) -> Tensor:
        taps: list[Tensor] = []
        for row in range(down, down + patches.layer.kernel[0]):
            for column in range(across, across + patches.layer.kernel[1]):
                begin = (row % high, column % wide, 0, row // high, column // wide)
                taps.append(graph.reshape(graph.slice(planes, begin, size), (channels, batch * patches.positions)))
        return graph.concatenate(taps, 0)

    phases = [gather(down, across) for down in range(high) for across in range(wide)]

    def backward(gradients: list[Tensor]) -> Gradients:
        return _total(graph, [graph.matmul(p, g) for p, g in zip(phases, gradients, strict=True)]), None

    return [graph.matmul(graph.transpose(phase, (1, 0)), matrix) for phase in phases], backward


def _planes(graph: Graph, x: Tensor, patches: Patches) -> Tensor:
    """x as [row in window, column in window, channel and sample, window row, window column], padding included."""
    batch, height, width, channels = x.shape
    (high, wide), (above, left) = patches.window, patches.before
    rows_of_windows = -(-(patches.pooled[0] * high + patches.layer.kernel[0] - 1) // high)
    columns_of_windows = -(-(patches.pooled[1] * wide + patches.layer.kernel[1] - 1) // wide)
    below, right = rows_of_windows * high - above - height, columns_of_windows * wide - left - width
    by_channel = graph.reshape(x, (1, batch, height, width)) if channels == 1 else graph.transpose(x, (3, 0, 1, 2))
    kept = (channels, batch, min(height, height + below), min(width, width + right))
    if kept != by_channel.shape:
        by_channel = graph.slice(by_channel, (0, 0, 0, 0), kept)
    padded = graph.pad(by_channel, ((0, 0), (0, 0), (above, max(below, 0)), (left, max(right, 0))))
    split = graph.reshape(padded, (channels * batch, rows_of_windows, high, columns_of_windows, wide))
    if patches.window == (1, 1):
        return graph.reshape(split, (1, 1, channels * batch, rows_of_windows, columns_of_windows))
    return graph.transpose(split, (2, 4, 0, 1, 3))


def _patched(tape: Tape, x: Tensor, matrix: Tensor, patches: Patches, target: Target) -> Halves:
    """The general case. Patches that do not all fit the cache at once are gathered again in the backward pass."""
    graph = tape.graph
    index = patches.forward()
    source = _led_by_zero(graph, [graph.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))], index)
    slices = _sliced(graph, source, index[0].size, target.patch_bytes)
    single = len(index) == len(slices) == 1
    kept: list[Tensor] = []

    def gather(phase: int, number: int) -> Tensor:
        if not single:
            return _gather(graph, slices[number], index[phase], index)
        if not kept:
            kept.append(_gather(graph, slices[0], index[0], index))
        return kept[0]

    numbers = range(len(slices))
    parts = [graph.concatenate([graph.matmul(gather(p, s), matrix) for s in numbers], 0) for p in range(len(index))]

    def backward(gradients: list[Tensor]) -> Gradients:
        by_x = _input_gradient(graph, gradients, matrix, patches, x, target) if tape.tracks(x) else None
        by_matrix: list[Tensor] = []
        for phase, gradient in enumerate(gradients):
            for number, part in enumerate(graph.split(gradient, 0, len(slices))):
                by_matrix.append(graph.matmul_tn(gather(phase, number), part))
        return _total(graph, by_matrix), by_x

    return parts, backward


def _input_gradient(
    graph: Graph, gradients: Sequence[Tensor], matrix: Tensor, patches: Patches, x: Tensor, target: Target
) -> Tensor:
    """Itself a convolution: patches of the gradient times the kernel, channels and filters exchanged."""
    channels, filters = x.shape[3], matrix.shape[1]
    turned = graph.transpose(graph.reshape(matrix, (patches.taps, channels, filters)), (0, 2, 1))
    turned = graph.reshape(turned, (patches.taps * filters, channels))
    index = patches.backward()
    phases = [graph.reshape(gradient, (x.shape[0], patches.positions, filters)) for gradient in gradients]
    slices = _sliced(graph, _led_by_zero(graph, phases, index), index.size, target.patch_bytes)
    return graph.concatenate([graph.matmul(_gather(graph, part, index, index), turned) for part in slices], 0)


def _led_by_zero(graph: Graph, phases: Sequence[Tensor], index: Index) -> Tensor:
    """The phases [B, positions, C] as one tensor, led by a position of zeros where the index has holes."""
    first, *rest = phases
    if (index < 0).any():
        first = graph.pad(first, ((0, 0), (1, 0), (0, 0)))
    return graph.concatenate([first, *rest], 1)


def _sliced(graph: Graph, source: Tensor, gathered: int, most: int) -> list[Tensor]:
    """The batch in equal slices of which ``gathered`` positions per sample fit ``most`` bytes."""
    (batch, _, channels), count = source.shape, 1
    while count < batch and batch // count * gathered * channels * 4 > most:
        count *= 2
    return graph.split(source, 0, count)


def _gather(graph: Graph, source: Tensor, index: Index, whole: Index) -> Tensor:
    """Patches [B·rows, taps·C] for an ``index`` [rows, taps] that is a part of ``whole``."""
    batch, _, channels = source.shape
    gathered = graph.gather(source, index + 1 if (whole < 0).any() else index, 1)
    return graph.reshape(gathered, (batch * index.shape[0], index.shape[1] * channels))


def _total(graph: Graph, parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = graph.add(total, part)
    return total
