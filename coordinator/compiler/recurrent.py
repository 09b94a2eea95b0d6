"""LSTM and GRU, unrolled, with hand-made gradients: a few operators per step instead of dozens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from attrs import frozen

from .autodiff import Tape
from .graph import Graph, Tensor
from .primitives import Step

_JOINED = 16  # tensors one CONCATENATION takes


@frozen
class Signal:
    """x[B, T, F] step by step: ``matrix`` [T·B, F], a block of rows per step."""

    batch: int
    steps: int
    matrix: Tensor


def _by_step(graph: Graph, x: Tensor) -> Signal:
    batch, steps, channels = x.shape
    return Signal(batch, steps, graph.reshape(graph.transpose(x, (1, 0, 2)), (steps * batch, channels)))


def _joined(graph: Graph, parts: Sequence[Tensor]) -> Tensor:
    """The parts below each other."""
    while len(parts) > 1:
        parts = [graph.concatenate(parts[i : i + _JOINED], 0) for i in range(0, len(parts), _JOINED)]
    return parts[0]


def _put_out(graph: Graph, states: Sequence[Tensor], sequences: bool) -> Tensor:
    """The last state [B, H] or all of them [B, T, H]."""
    if not sequences:
        return states[-1]
    batch, units = states[0].shape
    return graph.transpose(graph.reshape(_joined(graph, states), (len(states), batch, units)), (1, 0, 2))


def _taken_in(graph: Graph, gradient: Tensor, steps: int) -> list[Tensor | None]:
    """The gradient of every step's state, None where nothing but the next step reads it."""
    if len(gradient.shape) == 2:
        return [*[None] * (steps - 1), gradient]
    batch, _, units = gradient.shape
    return [*graph.split(graph.reshape(graph.transpose(gradient, (1, 0, 2)), (steps * batch, units)), 0, steps)]


def _back_to_x(graph: Graph, gradient: Tensor, signal: Signal) -> Tensor:
    by_step = graph.reshape(gradient, (signal.steps, signal.batch, gradient.shape[1]))
    return graph.transpose(by_step, (1, 0, 2))


def _plus(graph: Graph, a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        assert a is not None or b is not None
        return a if a is not None else b  # type: ignore[return-value]
    return graph.add(a, b)


@frozen
class _Cell:
    """What the backward pass of one LSTM step needs."""

    gates: Tensor
    parts: list[Tensor]
    candidate: Tensor
    squashed: Tensor
    state: Tensor
    memory: Tensor
    """Of the step before."""


def lstm(tape: Tape, x: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, sequences: bool) -> Tensor:
    """x[B, T, F] to the last state [B, H] or all [B, T, H]; gates input, forget, cell, output.

    tanh(z) is written as 2·sigmoid(2z) - 1 in the gates: one operator then serves all four.
    """
    graph = tape.graph
    units, signal = recurrent.shape[0], _by_step(graph, x)
    twice = graph.constant(np.repeat(np.array([1, 1, 2, 1], np.float32), units))
    steep_weight, steep = graph.multiply(weight, twice), graph.multiply(recurrent, twice)
    drive = graph.add(graph.matmul(signal.matrix, steep_weight), graph.multiply(bias, twice))
    cells = _lstm_steps(graph, graph.split(drive, 0, signal.steps), steep)

    def backward(gradient: Tensor) -> Step:
        back = graph.transpose(graph.multiply(steep, twice), (1, 0))
        by_gates = _joined(graph, _lstm_back(graph, cells, _taken_in(graph, gradient, signal.steps), back))
        fourfold = graph.multiply(twice, twice)
        yield weight, graph.multiply(graph.matmul_tn(signal.matrix, by_gates), fourfold)
        yield bias, graph.multiply(graph.sum(by_gates, 0), fourfold)
        yield recurrent, graph.multiply(_by_recurrent(graph, [c.state for c in cells], by_gates), fourfold)
        if tape.tracks(x):
            turned = graph.transpose(graph.multiply(steep_weight, twice), (1, 0))
            yield x, _back_to_x(graph, graph.matmul(by_gates, turned), signal)

    y = _put_out(graph, [cell.state for cell in cells], sequences)
    return tape.record(y, (x, weight, recurrent, bias), backward)


def _by_recurrent(graph: Graph, states: Sequence[Tensor], by_gates: Tensor) -> Tensor:
    """Gradient of the recurrent weights: every state meets the gates of the step after it."""
    batch, units = states[0].shape
    if len(states) == 1:
        return graph.constant(np.zeros((units, by_gates.shape[1]), np.float32))
    later = graph.slice(by_gates, (batch, 0), (by_gates.shape[0] - batch, by_gates.shape[1]))
    return graph.matmul_tn(_joined(graph, states[:-1]), later)


def _lstm_steps(graph: Graph, drives: Sequence[Tensor], steep: Tensor) -> list[_Cell]:
    two, one = graph.scalar(2), graph.scalar(1)
    cells: list[_Cell] = []
    zero = graph.constant(np.zeros((drives[0].shape[0], steep.shape[0]), np.float32))
    state, memory = zero, zero
    for drive in drives:
        gates = graph.sigmoid(graph.add(drive, graph.matmul(state, steep)) if cells else drive)
        parts = graph.split(gates, 1, 4)
        candidate = graph.subtract(graph.multiply(parts[2], two), one)
        fresh = graph.multiply(parts[0], candidate)
        new = graph.add(graph.multiply(parts[1], memory), fresh) if cells else fresh
        squashed = graph.tanh(new)
        state = graph.multiply(parts[3], squashed)
        cells.append(_Cell(gates, parts, candidate, squashed, state, memory))
        memory = new
    return cells


def _lstm_back(graph: Graph, cells: Sequence[_Cell], given: Sequence[Tensor | None], back: Tensor) -> list[Tensor]:
    """Gradients by the gates of every step; those of the cell gate lack a factor 2, which ``back`` makes up for."""
    found: list[Tensor] = []
    by_state: Tensor | None = None
    by_memory: Tensor | None = None
    for position in range(len(cells) - 1, -1, -1):
        cell = cells[position]
        keep, forget, _, show = cell.parts
        by_state = _plus(graph, given[position], by_state)
        through = graph.subtract(show, graph.multiply(cell.state, cell.squashed))
        by_memory = _plus(graph, graph.multiply(by_state, through), by_memory)
        parts = [
            graph.multiply(by_memory, cell.candidate),
            graph.multiply(by_memory, cell.memory),
            graph.multiply(by_memory, keep),
            graph.multiply(by_state, cell.squashed),
        ]
        inner = graph.multiply(graph.concatenate(parts, 1), cell.gates)
        found.append(graph.subtract(inner, graph.multiply(inner, cell.gates)))
        if position:
            by_state, by_memory = graph.matmul(found[-1], back), graph.multiply(by_memory, forget)
    return found[::-1]


@frozen
class _GruStep:
    """What the backward pass of one GRU step needs; ``before`` is the state it started from."""

    gates: Tensor
    reset: Tensor
    update: Tensor
    recalled: Tensor
    candidate: Tensor
    difference: Tensor
    state: Tensor


def gru(
    tape: Tape, x: Tensor, weight: Tensor, recurrent: Tensor, biases: tuple[Tensor, Tensor], sequences: bool
) -> Tensor:
    """x[B, T, F] to the last state [B, H] or all [B, T, H]; gates reset, update, candidate."""
    graph = tape.graph
    units, signal = recurrent.shape[0], _by_step(graph, x)
    inner, outer = _two_and_one(graph, recurrent, units)
    (bias_inner, bias_outer), (late_inner, late_outer) = (_two_and_one(graph, b, units) for b in biases)
    weight_inner, weight_outer = _two_and_one(graph, weight, units)
    drives = graph.add(graph.matmul(signal.matrix, weight_inner), graph.add(bias_inner, late_inner))
    pulls = graph.add(graph.matmul(signal.matrix, weight_outer), bias_outer)
    split: Callable[[Tensor], list[Tensor]] = lambda value: graph.split(value, 0, signal.steps)  # noqa: E731
    steps = _gru_steps(graph, split(drives), split(pulls), inner, (outer, late_outer))

    def backward(gradient: Tensor) -> Step:
        turned = graph.transpose(inner, (1, 0)), graph.transpose(outer, (1, 0))
        found = _gru_back(graph, steps, _taken_in(graph, gradient, signal.steps), turned)
        by_inner, by_recalled, by_outer = (_joined(graph, parts) for parts in found)
        by_drive = graph.concatenate([by_inner, by_outer], 1)
        by_late = graph.concatenate([by_inner, by_recalled], 1)
        yield weight, graph.matmul_tn(signal.matrix, by_drive)
        yield biases[0], graph.sum(by_drive, 0)
        yield biases[1], graph.sum(by_late, 0)
        yield recurrent, _by_recurrent(graph, [step.state for step in steps], by_late)
        if tape.tracks(x):
            yield x, _back_to_x(graph, graph.matmul_nt(by_drive, weight), signal)

    y = _put_out(graph, [step.state for step in steps], sequences)
    return tape.record(y, (x, weight, recurrent, *biases), backward)


def _two_and_one(graph: Graph, x: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The columns of the reset and update gates, and those of the candidate."""
    ahead, none = x.shape[:-1], (0,) * (len(x.shape) - 1)
    return graph.slice(x, (*none, 0), (*ahead, 2 * units)), graph.slice(x, (*none, 2 * units), (*ahead, units))


def _gru_steps(
    graph: Graph, drives: Sequence[Tensor], pulls: Sequence[Tensor], inner: Tensor, outer: tuple[Tensor, Tensor]
) -> list[_GruStep]:
    state = graph.constant(np.zeros((drives[0].shape[0], inner.shape[0]), np.float32))
    steps: list[_GruStep] = []
    for drive, pull in zip(drives, pulls, strict=True):
        gates = graph.sigmoid(graph.add(drive, graph.matmul(state, inner)))
        reset, update = graph.split(gates, 1, 2)
        recalled = graph.add(graph.matmul(state, outer[0]), outer[1])
        candidate = graph.tanh(graph.add(pull, graph.multiply(reset, recalled)))
        difference = graph.subtract(state, candidate)
        state = graph.add(candidate, graph.multiply(update, difference))
        steps.append(_GruStep(gates, reset, update, recalled, candidate, difference, state))
    return steps


def _gru_back(
    graph: Graph, steps: Sequence[_GruStep], given: Sequence[Tensor | None], turned: tuple[Tensor, Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of every step by the inner gates, by what was recalled of the state, and by the candidate."""
    one = graph.scalar(1)
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    by_state: Tensor | None = None
    for position in range(len(steps) - 1, -1, -1):
        step = steps[position]
        by_state = _plus(graph, given[position], by_state)
        kept = graph.multiply(by_state, step.update)
        slope = graph.subtract(one, graph.multiply(step.candidate, step.candidate))
        by_outer = graph.multiply(graph.subtract(by_state, kept), slope)
        by_recalled = graph.multiply(by_outer, step.reset)
        parts = [graph.multiply(by_outer, step.recalled), graph.multiply(by_state, step.difference)]
        scaled = graph.multiply(graph.concatenate(parts, 1), step.gates)
        by_inner = graph.subtract(scaled, graph.multiply(scaled, step.gates))
        for collected, value in zip(found, (by_inner, by_recalled, by_outer), strict=True):
            collected.insert(0, value)
        if position:
            back = graph.add(graph.matmul(by_inner, turned[0]), graph.matmul(by_recalled, turned[1]))
            by_state = graph.add(kept, back)
    return found
