"""Operators with their gradients: what layers are made of that have no better way of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from .autodiff import Gradient, Product, Tape
from .graph import NONE, RELU, Graph, Tensor

Step = Iterator[tuple[Tensor, Gradient]]


def rows(graph: Graph, x: Tensor) -> Tensor:
    """x[…, channels] as a matrix of one row per position."""
    return graph.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def unbroadcast(graph: Graph, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of a tensor of ``shape`` that was repeated to the shape of ``gradient``."""
    ahead = len(gradient.shape) - len(shape)
    repeated = tuple(i for i, n in enumerate(gradient.shape) if i < ahead or shape[i - ahead] == 1 < n)
    return graph.reshape(graph.sum(gradient, repeated) if repeated else gradient, shape)


def matrix(tape: Tape, x: Tensor) -> Tensor:
    """:func:`rows`, with its gradient."""
    return reshape(tape, x, (math.prod(x.shape[:-1]), x.shape[-1]))


def product(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """x[B, in] · weight[in, units]."""
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        yield weight, Product(x, gradient)
        if tape.tracks(x):
            yield x, graph.matmul_nt(gradient, weight)

    return tape.record(graph.matmul(x, weight), (x, weight), backward)


def scale(tape: Tape, x: Tensor, factor: float) -> Tensor:
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        yield x, graph.scale(gradient, factor)

    return tape.record(graph.scale(x, factor), (x,), backward)


def look_up(tape: Tape, table: Tensor, chosen: Tensor) -> Tensor:
    """table[chosen] for int32 row numbers; rows chosen more than once add their gradients."""
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        yield table, graph.scatter(chosen, rows(graph, gradient), table.shape[0])

    return tape.record(graph.look_up(table, chosen), (table,), backward)


def add(tape: Tape, a: Tensor, b: Tensor, relu: bool = False) -> Tensor:
    """a + b, then max(·, 0) if ``relu``: one operator."""
    graph = tape.graph
    y = graph.add(a, b, RELU if relu else NONE)

    def backward(gradient: Tensor) -> Step:
        if relu:
            gradient = graph.multiply(gradient, graph.positive(y))
        for source in (a, b):
            if tape.tracks(source):
                yield source, unbroadcast(graph, gradient, source.shape)

    return tape.record(y, (a, b), backward)


def multiply(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        for source, other in ((a, b), (b, a)):
            if tape.tracks(source):
                yield source, unbroadcast(graph, graph.multiply(gradient, other), source.shape)

    return tape.record(graph.multiply(a, b), (a, b), backward)


def elementwise(tape: Tape, x: Tensor, y: Tensor, slope: Callable[[], Tensor]) -> Tensor:
    """Note that y was computed from x element by element, with derivative ``slope``."""

    def backward(gradient: Tensor) -> Step:
        yield x, tape.graph.multiply(gradient, slope())

    return tape.record(y, (x,), backward)


def reshape(tape: Tape, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in another shape."""
    graph = tape.graph
    if shape == x.shape:
        return x

    def backward(gradient: Tensor) -> Step:
        yield x, graph.reshape(gradient, x.shape)

    return tape.record(graph.reshape(x, shape), (x,), backward)


def total(tape: Tape, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum over ``axes``, which stay with length 1."""
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        yield x, graph.spread(gradient, x.shape)

    return tape.record(graph.sum(x, axes, keep=True), (x,), backward)


def concatenate(tape: Tape, parts: Sequence[Tensor], axis: int) -> Tensor:
    graph = tape.graph

    def backward(gradient: Tensor) -> Step:
        start = 0
        for part in parts:
            begin = tuple(start if i == axis else 0 for i in range(len(part.shape)))
            if tape.tracks(part):
                yield part, graph.slice(gradient, begin, part.shape)
            start += part.shape[axis]

    return tape.record(graph.concatenate(parts, axis), parts, backward)
