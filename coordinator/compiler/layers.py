"""Layers as operators: each function writes the forward pass and puts the backward pass on the tape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .autodiff import Tape
from .graph import NONE, RELU, Graph, Tensor

Step = Iterator[tuple[Tensor, Tensor]]


def rows(graph: Graph, x: Tensor) -> Tensor:
    """x[…, channels] as a matrix of one row per position."""
    return graph.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def dense(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """x[B, in] · weight[in, units]; the bias is added by :func:`bias`."""
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        yield weight, graph.matmul_tn(x, gradient)
        if tape.tracks(x):
            yield x, graph.matmul_nt(gradient, weight)

    return tape.record(graph.matmul(x, weight), (x, weight), backward)


def bias(tape: Tape, x: Tensor, value: Tensor, relu: bool) -> Tensor:
    """x[…, C] + value[C], then max(·, 0) if ``relu``: one operator."""
    graph = tape.graph
    y = graph.add(rows(graph, x), value, RELU if relu else NONE)

    def backward(gradient: Tensor) -> Step:
        gradient = rows(graph, gradient)
        if relu:
            gradient = graph.multiply(gradient, graph.positive(y))
        yield value, graph.sum(gradient, 0)
        yield x, graph.reshape(gradient, x.shape)

    tape.record(y, (value,), backward)
    return reshape(tape, y, x.shape)


def relu(tape: Tape, x: Tensor) -> Tensor:
    """max(x, 0) where no bias could take it along."""
    graph = tape.graph
    y = graph.relu(x)

    def backward(gradient: Tensor) -> Step:
        yield x, graph.multiply(gradient, graph.positive(y))

    return tape.record(y, (x,), backward)


def reshape(tape: Tape, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in another shape."""
    graph = tape.graph
    if shape == x.shape:
        return x

    def backward(gradient: Tensor) -> Step:
        yield x, graph.reshape(gradient, x.shape)

    return tape.record(graph.reshape(x, shape), (x,), backward)


def max_pool(tape: Tape, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Maximum over non-overlapping windows of x[B, H, W, C] where no convolution could take it along.

    The gradient goes to the first element in row order that holds the maximum.
    """
    graph = tape.graph
    (batch, height, width, channels), (high, wide) = x.shape, window
    if window == (1, 1):
        return x
    rows_of_windows, columns_of_windows = height // high, width // wide
    filled = (batch, rows_of_windows * high, columns_of_windows * wide, channels)
    cropped = x if filled == x.shape else graph.slice(x, (0, 0, 0, 0), filled)
    windows = graph.reshape(cropped, (batch * rows_of_windows, high, columns_of_windows, wide, channels))
    phases = graph.transpose(windows, (1, 3, 0, 2, 4))
    matrix = (high * wide, batch * rows_of_windows * columns_of_windows * channels)
    y, share = first_maximum(graph, graph.split(graph.reshape(phases, matrix), 0, high * wide))

    def backward(gradient: Tensor) -> Step:
        shares = share(graph.reshape(gradient, y.shape))
        together = graph.reshape(graph.concatenate(shares, 0), phases.shape)
        back = graph.reshape(graph.transpose(together, (2, 0, 3, 1, 4)), filled)
        yield x, graph.pad(back, ((0, 0), (0, height - filled[1]), (0, width - filled[2]), (0, 0)))

    return tape.record(graph.reshape(y, (batch, rows_of_windows, columns_of_windows, channels)), (x,), backward)


def first_maximum(graph: Graph, parts: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Element-wise maximum, and the way to hand its gradient to the first part that holds it."""
    best = [parts[0]]
    for part in parts[1:]:
        best.append(graph.maximum(best[-1], part))

    def share(gradient: Tensor) -> list[Tensor]:
        """From the last part to the first: a part wins only if it is greater than everything before it."""
        shares: list[Tensor] = []
        for before, part in zip(best[-2::-1], parts[:0:-1], strict=True):
            won = graph.positive(graph.subtract(part, before, RELU))
            shares.append(graph.multiply(won, gradient))
            gradient = graph.subtract(gradient, shares[-1])
        return [gradient, *reversed(shares)]

    return best[-1], share
