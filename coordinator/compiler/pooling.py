"""Pooling over windows that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .autodiff import Tape
from .graph import RELU, Graph, Tensor
from .primitives import Step


def _filled(graph: Graph, x: Tensor, window: tuple[int, int]) -> Tensor:
    """x without the rows and columns that fill no window."""
    batch, height, width, channels = x.shape
    shape = (batch, height // window[0] * window[0], width // window[1] * window[1], channels)
    return x if shape == x.shape else graph.slice(x, (0, 0, 0, 0), shape)


def _left_over(graph: Graph, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient with zeros where :func:`_filled` dropped something of a tensor of ``shape``."""
    (height, width), (rows, columns) = shape[1:3], gradient.shape[1:3]
    return graph.pad(gradient, ((0, 0), (0, height - rows), (0, width - columns), (0, 0)))


def max_pool(tape: Tape, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Maximum over windows of x[B, H, W, C] where no convolution could take it along.

    The gradient goes to the first element in row order that holds the maximum.
    """
    graph = tape.graph
    high, wide = window
    if window == (1, 1):
        return x
    filled = _filled(graph, x, window)
    batch, height, width, channels = filled.shape
    windows = graph.reshape(filled, (batch * height // high, high, width // wide, wide, channels))
    phases = graph.transpose(windows, (1, 3, 0, 2, 4))
    parts = graph.split(graph.reshape(phases, (high * wide, filled.size // (high * wide))), 0, high * wide)
    y, share = first_maximum(graph, parts)

    def backward(gradient: Tensor) -> Step:
        shares = share(graph.reshape(gradient, y.shape))
        together = graph.reshape(graph.concatenate(shares, 0), phases.shape)
        back = graph.reshape(graph.transpose(together, (2, 0, 3, 1, 4)), filled.shape)
        yield x, _left_over(graph, back, x.shape)

    return tape.record(graph.reshape(y, (batch, height // high, width // wide, channels)), (x,), backward)


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


def average_pool(tape: Tape, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Mean over windows of x[B, H, W, C]."""
    graph = tape.graph
    high, wide = window
    filled = _filled(graph, x, window)
    batch, height, width, channels = filled.shape

    def backward(gradient: Tensor) -> Step:
        part = graph.scale(gradient, 1 / (high * wide))
        part = graph.reshape(part, (batch * height // high, 1, width // wide, 1, channels))
        whole = graph.spread(part, (batch * height // high, high, width // wide, wide, channels))
        yield x, _left_over(graph, graph.reshape(whole, filled.shape), x.shape)

    return tape.record(graph.average_pool(filled, window), (x,), backward)
