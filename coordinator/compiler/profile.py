"""Where a graph's time goes: every operator timed as a model of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import frozen

from protocol.subnetwork import FULL, Subnetwork

from .compile import Signature, request
from .flatbuffer import Operation, Writer
from .graph import Graph
from .optimiser import Training
from .signatures import SIGNATURES
from .spec import ModelSpec

Interpreters = Callable[[bytes], Any]
"""Makes an interpreter of a model file: LiteRT's or tflite-runtime's class."""


@frozen
class Timing:
    """``count`` operators of one kind and shape; ``seconds`` is what one of them takes."""

    operator: str
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[tuple[int, ...], ...]
    count: int
    seconds: float

    @property
    def total(self) -> float:
        return self.count * self.seconds


def profile(
    spec: ModelSpec,
    interpreters: Interpreters,
    subnetwork: Subnetwork = FULL,
    batch: int = 32,
    signature: Signature = "train",
    *,
    training: Training | None = None,
    cut: str | None = None,
    target: str = "litert",
    runs: int = 25,
) -> list[Timing]:
    """Every kind of operator of a graph, the most expensive first.

    Operators are timed alone, ``runs`` times each, and the lower quartile counts. Their sum is close to a step, but not
    it: alone an operator finds its input in the cache, and reshapes cost what they do not in a graph.
    """
    graph = Graph(signature)
    SIGNATURES[signature](graph, request(spec, subnetwork, batch, signature, training or Training(), cut, target))
    found: dict[tuple[object, ...], tuple[Operation, int]] = {}
    for operation in graph.operations:
        key = _key(graph, operation)
        found[key] = operation, found.get(key, (operation, 0))[1] + 1
    timings = [_timing(graph, operation, count, interpreters, runs) for operation, count in found.values()]
    return sorted(timings, key=lambda timing: -timing.total)


def _key(graph: Writer, operation: Operation) -> tuple[object, ...]:
    """What operators that take the same time have in common: kind, shapes, constants and fields."""
    constants = tuple(graph.constants[index].tobytes() for index in operation.reads if index in graph.constants)
    reads = tuple(graph.tensors[index].shape for index in operation.reads)
    return operation.operator, reads, constants, str(operation.fields)


def _timing(graph: Writer, operation: Operation, count: int, interpreters: Interpreters, runs: int) -> Timing:
    alone = Writer("alone")
    tensors = {
        index: alone.constant(graph.constants[index])
        if index in graph.constants
        else alone.input(f"i{index}", graph.tensors[index].shape, graph.tensors[index].dtype)
        for index in operation.reads
    }
    made = [graph.tensors[index] for index in operation.writes]
    outputs = alone.emit_many(
        operation.operator,
        [tensors[index] for index in operation.reads],
        [tensor.shape for tensor in made],
        operation.options,
        made[0].dtype,
        **operation.fields,
    )
    for number, tensor in enumerate(outputs):
        alone.output(f"o{number}", tensor)
    reads = tuple(graph.tensors[i].shape for i in operation.reads if i not in graph.constants)
    writes = tuple(tensor.shape for tensor in made)
    return Timing(operation.operator, reads, writes, count, _seconds(interpreters(alone.pack()), runs))


def _seconds(interpreter: Any, runs: int) -> float:
    """The lower quartile of ``runs`` invocations on random numbers."""
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = rng.standard_normal(detail["shape"]) if detail["dtype"] == np.float32 else np.zeros(detail["shape"])
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[runs // 4]
