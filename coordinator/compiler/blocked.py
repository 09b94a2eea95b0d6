"""Convolution without pooling behind it, as matrix products over gathered blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .autodiff import Tape
from .blocks import Blocks, Line
from .fields import Pair
from .graph import Graph, Tensor
from .primitives import Step

_LARGE = 2048  # entries of an index table that is rather added up by the runtime than written into the file


def blocked(tape: Tape, x: Tensor, weight: Tensor, forward: Blocks, backward: Blocks, patch_bytes: int) -> Tensor:
    """x[B, H, W, C] with weight[kh, kw, C, filters]; ``backward`` makes the gradient by x of what ``forward`` makes."""
    graph = tape.graph
    high, wide, channels, filters = weight.shape
    kernel = graph.reshape(weight, (high * wide, channels, filters))
    made = (forward.rows.outputs, forward.columns.outputs)
    slices = _slices(graph, x, forward, patch_bytes)
    kept: list[Tensor] = []

    def patches(number: int) -> Tensor:
        """Gathered once where all fit the cache, otherwise again in the backward pass."""
        if len(slices) > 1:
            return _gathered(graph, slices[number], forward)
        if not kept:
            kept.append(_gathered(graph, slices[0], forward))
        return kept[0]

    matrix = _matrix(graph, kernel, forward)
    parts = [graph.matmul(patches(number), matrix) for number in range(len(slices))]
    y = _apart(graph, graph.concatenate(parts, 0), forward, x.shape[0])

    def unfold(gradient: Tensor) -> Step:
        gradient = graph.reshape(gradient, (x.shape[0], *made, filters))
        blocks = graph.split(_together(graph, gradient, forward), 0, len(slices))
        total: Tensor | None = None
        for number, part in enumerate(blocks):
            product = graph.matmul_tn(patches(number), part)
            total = product if total is None else graph.add(total, product)
        assert total is not None
        yield weight, graph.reshape(_by_kernel(graph, total, forward, (channels, filters)), weight.shape)
        if tape.tracks(x):
            turned = _matrix(graph, graph.transpose(kernel, (0, 2, 1)), backward)
            sources = _slices(graph, gradient, backward, patch_bytes)
            found = [graph.matmul(_gathered(graph, source, backward), turned) for source in sources]
            yield x, _apart(graph, graph.concatenate(found, 0), backward, x.shape[0])

    return tape.record(y, (x, weight), unfold)


def _slices(graph: Graph, x: Tensor, blocks: Blocks, patch_bytes: int) -> list[Tensor]:
    """The image as ``blocks`` reads it, in equal slices of the batch whose patches fit ``patch_bytes``."""
    batch, count = x.shape[0], 1
    padded = _fitted(graph, x, (blocks.rows.padding, blocks.columns.padding))
    while count < batch and batch // count * blocks.count * blocks.reads * x.shape[3] * 4 > patch_bytes:
        count *= 2
    return graph.split(padded, 0, count)


def _fitted(graph: Graph, x: Tensor, widths: Sequence[Pair]) -> Tensor:
    """x[B, H, W, C] with rows and columns of zeros added, or dropped where ``widths`` are negative."""
    begin = [max(-before, 0) for before, _ in widths]
    size = [n + min(b, 0) + min(a, 0) for n, (b, a) in zip(x.shape[1:3], widths, strict=True)]
    if size != list(x.shape[1:3]):
        x = graph.slice(x, (0, *begin, 0), (x.shape[0], *size, x.shape[3]))
    return graph.pad(x, ((0, 0), *((max(b, 0), max(a, 0)) for b, a in widths), (0, 0)))


def _gathered(graph: Graph, x: Tensor, blocks: Blocks) -> Tensor:
    """Patches [B·blocks, reads·C] of a fitted image."""
    batch, height, width, channels = x.shape
    pixels = graph.reshape(x, (batch, height * width, channels))
    found = graph.look_up_at(pixels, _positions(graph, blocks))
    return graph.reshape(found, (batch * blocks.count, blocks.reads * channels))


def _positions(graph: Graph, blocks: Blocks) -> Tensor:
    rows, columns = blocks.positions()
    count = blocks.count * blocks.reads
    if count <= _LARGE:
        return graph.constant((rows + columns).reshape(-1))
    return graph.copy(graph.add(graph.constant(rows), graph.constant(columns)), (count,))


def _matrix(graph: Graph, kernel: Tensor, blocks: Blocks) -> Tensor:
    """kernel[taps, C, F] as the matrix [reads·C, outputs·F] of a block."""
    _, channels, filters = kernel.shape
    index = blocks.taps()
    shape = (blocks.reads * channels, blocks.width * filters)
    if blocks.plain:
        return graph.reshape(kernel, shape)
    if (index < 0).any():
        kernel, index = graph.pad(kernel, ((1, 0), (0, 0), (0, 0))), index + 1
    spread = graph.reshape(graph.gather(kernel, index, 0), (blocks.reads, blocks.width, channels, filters))
    return graph.reshape(graph.transpose(spread, (0, 2, 1, 3)), shape)


def _by_kernel(graph: Graph, by_matrix: Tensor, blocks: Blocks, shape: Pair) -> Tensor:
    """The gradient by the kernel [taps, C, F] from that by the matrix of a block."""
    channels, filters = shape
    taps = math.prod(blocks.kernel)
    if blocks.plain:
        return graph.reshape(by_matrix, (taps, channels, filters))
    apart = graph.reshape(by_matrix, (blocks.reads, channels, blocks.width, filters))
    apart = graph.reshape(graph.transpose(apart, (0, 2, 1, 3)), (blocks.reads * blocks.width, channels * filters))
    meetings = blocks.meetings()
    if (meetings < 0).any():
        apart, meetings = graph.pad(apart, ((1, 0), (0, 0))), meetings + 1
    found = graph.reshape(graph.gather(apart, meetings, 0), (taps, meetings.shape[1], channels * filters))
    return graph.sum(found, 1) if meetings.shape[1] > 1 else found


def _split(line: Line) -> tuple[int, int]:
    return line.blocks, line.width


def _apart(graph: Graph, product: Tensor, blocks: Blocks, batch: int) -> Tensor:
    """Blocks [B·blocks, outputs·C] as an image [B, H, W, C]."""
    (down, high), (across, wide) = _split(blocks.rows), _split(blocks.columns)
    channels = product.shape[1] // blocks.width
    if high > 1:
        image = graph.reshape(product, (batch * down, across, high, wide * channels))
        product = graph.transpose(image, (0, 2, 1, 3))
    image = graph.reshape(product, (batch, down * high, across * wide, channels))
    return _fitted(graph, image, ((0, blocks.rows.outputs - down * high), (0, blocks.columns.outputs - across * wide)))


def _together(graph: Graph, image: Tensor, blocks: Blocks) -> Tensor:
    """Inverse of :func:`_apart`."""
    (down, high), (across, wide) = _split(blocks.rows), _split(blocks.columns)
    batch, height, width, channels = image.shape
    image = _fitted(graph, image, ((0, down * high - height), (0, across * wide - width)))
    if high > 1:
        rows = graph.reshape(image, (batch * down, high, across, wide * channels))
        image = graph.transpose(rows, (0, 2, 1, 3))
    return graph.reshape(image, (batch * blocks.count, blocks.width * channels))
