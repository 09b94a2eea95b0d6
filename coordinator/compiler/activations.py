"""Activations and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

from .autodiff import Tape
from .graph import Tensor
from .primitives import elementwise

_GELU, _CUBE = math.sqrt(2 / math.pi), 0.044715


def relu(tape: Tape, x: Tensor) -> Tensor:
    graph = tape.graph
    y = graph.relu(x)
    return elementwise(tape, x, y, lambda: graph.positive(y))


def relu6(tape: Tape, x: Tensor) -> Tensor:
    graph = tape.graph
    y = graph.relu6(x)
    return elementwise(
        tape, x, y, lambda: graph.multiply(graph.positive(y), graph.positive(graph.subtract(graph.scalar(6), y)))
    )


def leaky_relu(tape: Tape, x: Tensor, slope: float) -> Tensor:
    graph = tape.graph
    y = graph.maximum(x, graph.multiply(x, graph.scalar(slope)))
    return elementwise(
        tape, x, y, lambda: graph.add(graph.scale(graph.positive(graph.relu(x)), 1 - slope), graph.scalar(slope))
    )


def sigmoid(tape: Tape, x: Tensor) -> Tensor:
    graph = tape.graph
    y = graph.sigmoid(x)
    return elementwise(tape, x, y, lambda: graph.multiply(y, graph.subtract(graph.scalar(1), y)))


def tanh(tape: Tape, x: Tensor) -> Tensor:
    graph = tape.graph
    y = graph.tanh(x)
    return elementwise(tape, x, y, lambda: graph.subtract(graph.scalar(1), graph.multiply(y, y)))


def silu(tape: Tape, x: Tensor) -> Tensor:
    graph = tape.graph
    gate = graph.sigmoid(x)
    y = graph.multiply(x, gate)
    return elementwise(tape, x, y, lambda: graph.add(gate, graph.multiply(y, graph.subtract(graph.scalar(1), gate))))


def gelu(tape: Tape, x: Tensor) -> Tensor:
    """x/2·(1 + t), t = tanh(√(2/π)·x·(1 + c·x²))."""
    graph = tape.graph
    one = graph.scalar(1)
    square = graph.multiply(x, x)
    t = graph.tanh(graph.multiply(graph.scale(x, _GELU), graph.add(graph.scale(square, _CUBE), one)))
    half = graph.scale(x, 0.5)

    def slope() -> Tensor:
        inner = graph.scale(graph.add(graph.scale(square, 3 * _CUBE), one), _GELU)
        steep = graph.multiply(graph.multiply(half, graph.subtract(one, graph.multiply(t, t))), inner)
        return graph.add(graph.scale(graph.add(t, one), 0.5), steep)

    return elementwise(tape, x, graph.multiply(half, graph.add(t, one)), slope)


PLAIN: dict[str, Callable[[Tape, Tensor], Tensor]] = {
    "relu": relu, "relu6": relu6, "sigmoid": sigmoid, "tanh": tanh, "silu": silu, "gelu": gelu,
}  # fmt: skip
"""Those without a field, by kind."""
