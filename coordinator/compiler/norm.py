"""Normalisation: to mean 0 and variance 1, then times scale plus shift."""

from __future__ import annotations

import math
from collections.abc import Callable

from attrs import frozen

from .autodiff import Tape
from .graph import NONE, RELU, Graph, Tensor
from .primitives import Step, reshape, rows

Parameters = tuple[Tensor, Tensor]
"""Scale and shift [C]."""


@frozen
class Present:
    """Which rows of a batch count: ``column`` [B, 1] of 0 and 1, ``share`` [1] = 1 / their number."""

    column: Tensor
    share: Tensor


def per_sample(graph: Graph, x: Tensor) -> Tensor:
    """Sums over positions of x[B, …, C] as [B, C], first along rows and then along columns.

    Rounding grows with the longer of the two only, and long rows of numbers are added faster than short ones.
    """
    while len(x.shape) > 2:
        batch, rows_of_x, *rest = x.shape
        flat = graph.reshape(x, (batch, rows_of_x, math.prod(rest)))
        x = graph.reshape(graph.sum(flat, 1) if rows_of_x > 1 else flat, (batch, *rest))
    return x


def batch_norm(
    tape: Tape, x: Tensor, parameters: Parameters, epsilon: float, present: Present, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x[B, …, C] by the mean and variance per channel over the rows that are present; these are put out too."""
    graph, (scale, shift) = tape.graph, parameters
    share = graph.scale(present.share, x.shape[0] * x.shape[-1] / x.size)
    weights = graph.multiply(graph.reshape(present.column, (1, x.shape[0])), share)
    mean = graph.matmul(weights, per_sample(graph, x))
    centred = graph.subtract(x, mean)
    variance = graph.matmul(weights, per_sample(graph, graph.multiply(centred, centred)))
    inverse = graph.inverse_root(graph.add(variance, graph.scalar(epsilon)))
    steepness = graph.multiply(inverse, scale)
    y = graph.add(graph.multiply(centred, steepness), shift, RELU if relu else NONE)

    def backward(gradient: Tensor) -> Step:
        if relu:
            gradient = graph.multiply(gradient, graph.positive(y))
        by_shift = graph.sum(per_sample(graph, gradient), 0)
        along = graph.sum(per_sample(graph, graph.multiply(gradient, centred)), 0)
        flat = graph.reshape(inverse, along.shape)
        by_scale = graph.multiply(along, flat)
        yield shift, by_shift
        yield scale, by_scale
        if tape.tracks(x):
            offset = graph.multiply(by_shift, share)
            tilt = graph.multiply(graph.multiply(by_scale, flat), share)
            level = graph.subtract(graph.subtract(gradient, graph.multiply(centred, tilt)), offset)
            column = graph.reshape(present.column, (x.shape[0], *(1,) * (len(x.shape) - 1)))
            kept = graph.multiply(column, graph.reshape(steepness, (*(1,) * (len(x.shape) - 1), x.shape[-1])))
            yield x, graph.multiply(level, kept)

    return tape.record(y, (x, scale, shift), backward), mean, variance


def fixed_norm(
    graph: Graph, x: Tensor, parameters: Parameters, epsilon: float, statistics: tuple[Tensor, Tensor], relu: bool
) -> Tensor:
    """The same by a mean and variance [C] known beforehand."""
    (scale, shift), (mean, variance) = parameters, statistics
    steepness = graph.multiply(scale, graph.inverse_root(graph.add(variance, graph.scalar(epsilon))))
    offset = graph.subtract(shift, graph.multiply(mean, steepness))
    return graph.add(graph.multiply(x, steepness), offset, RELU if relu else NONE)


def group_norm(tape: Tape, x: Tensor, parameters: Parameters, epsilon: float, groups: int, relu: bool) -> Tensor:
    """x[B, …, C] per sample and group of neighbouring channels."""
    batch, channels = x.shape[0], x.shape[-1]
    shape = (batch, x.size // (batch * channels), groups, channels // groups)
    return _affine(tape, x, shape, (1, 3), parameters, epsilon, relu)


def layer_norm(tape: Tape, x: Tensor, parameters: Parameters, epsilon: float, relu: bool) -> Tensor:
    """x[…, C] per position."""
    return _affine(tape, x, (x.size // x.shape[-1], x.shape[-1]), (1,), parameters, epsilon, relu)


def _affine(
    tape: Tape,
    x: Tensor,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    parameters: Parameters,
    epsilon: float,
    relu: bool,
) -> Tensor:
    """x, seen as ``shape``, normalised over ``axes``; then scale and shift along its last axis."""
    graph = tape.graph
    scale, shift = parameters
    normal, inverse, mean = _standardised(graph, graph.reshape(x, shape), axes, epsilon)
    flat = rows(graph, graph.reshape(normal, x.shape))
    y = graph.add(graph.multiply(flat, scale), shift, RELU if relu else NONE)

    def backward(gradient: Tensor) -> Step:
        gradient = rows(graph, gradient)
        if relu:
            gradient = graph.multiply(gradient, graph.positive(y))
        yield shift, graph.sum(gradient, 0)
        yield scale, graph.sum(graph.multiply(gradient, flat), 0)
        if tape.tracks(x):
            inner = graph.reshape(graph.multiply(gradient, scale), shape)
            level = graph.subtract(inner, mean(inner))
            tilt = graph.multiply(normal, mean(graph.multiply(inner, normal)))
            yield x, graph.reshape(graph.multiply(graph.subtract(level, tilt), inverse), x.shape)

    tape.record(y, (x, scale, shift), backward)
    return reshape(tape, y, x.shape)


def _standardised(
    graph: Graph, x: Tensor, axes: tuple[int, ...], epsilon: float
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    count = 1
    for axis in axes:
        count *= x.shape[axis]

    def mean(value: Tensor) -> Tensor:
        return graph.scale(graph.sum(value, axes, keep=True), 1 / count)

    centred = graph.subtract(x, mean(x))
    inverse = graph.inverse_root(graph.add(mean(graph.multiply(centred, centred)), graph.scalar(epsilon)))
    return graph.multiply(centred, inverse), inverse, mean
