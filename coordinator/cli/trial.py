"""Trying models out on the runtimes of this machine: time of a step, accuracy of a file, statistics of batch norms."""

from __future__ import annotations

import importlib
import statistics as numbers
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from coordinator.compiler import onnx_file
from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from device_agent import runtime
from device_agent.runtime import Inference, TrainStep
from protocol.subnetwork import Region, Subnetwork
from protocol.weights import Array, Weights

_BATCH = 32


def interpreters(backend: str) -> Callable[[bytes], Any]:
    """What makes an interpreter of a model file; ShoalError bad-request if the runtime is not installed."""
    try:
        build = importlib.import_module(runtime.MODULES[backend]).Interpreter
    except (KeyError, ImportError, AttributeError) as error:
        raise ShoalError("bad-request", f"The runtime {backend} cannot be used here: {error}") from error
    return lambda content: build(model_content=content, num_threads=1)


def first_interpreters() -> Callable[[bytes], Any]:
    """Of the preferred runtime that reads model files."""
    return interpreters(next((name for name in runtime.backends() if name != runtime.NUMPY), "litert"))


@frozen
class Pace:
    """Milliseconds that one step takes on a runtime; ``compile`` of its artifact, once."""

    runtime: str
    median: float
    least: float
    compile: float


def pace(spec: ModelSpec, subnetwork: Subnetwork, weights: Weights, batch: int, backend: str, seconds: float) -> Pace:
    """One training step of ``batch`` random samples, over and over for ``seconds``; ``weights`` are full-size."""
    start = time.perf_counter()
    artifact = compile_model(spec, subnetwork, batch, "train", target=backend)
    compiled = time.perf_counter() - start
    step = TrainStep(artifact.for_backend(backend), backend)
    step.load(Region(layout(spec), subnetwork).cut(weights))
    rng = np.random.default_rng(0)
    x = rng.random((batch, *spec.input), np.float32)
    y = rng.integers(0, spec.classes, batch).astype(np.int32) if spec.labelled else rng.random((batch, spec.classes))
    options = {name: rng.random(shape, np.float32) for name, shape in step.options.items()}
    ones = np.ones(batch, np.float32)
    found: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(found) < 3:
        start = time.perf_counter()
        step.step(x, y, ones, 1e-4, options)
        found.append(1e3 * (time.perf_counter() - start))
    return Pace(backend, numbers.median(found), min(found), 1e3 * compiled)


def accuracy_of_model(
    spec: ModelSpec, subnetwork: Subnetwork, weights: Weights, statistics: Weights, x: Array, y: NDArray[Any]
) -> float:
    """Share of labels ``y`` that the subnetwork gets right in float32, as the coordinator measures it."""
    inference = Inference(compile_model(spec, subnetwork, _BATCH, "infer").content)
    inference.load(Region(layout(spec), subnetwork).cut(weights), statistics)
    starts = range(0, len(x), _BATCH)
    logits = np.concatenate([inference(x[start : start + _BATCH])[0] for start in starts])
    return float((logits.argmax(1) == y).mean())


def accuracy_of_file(content: bytes, x: Array, y: NDArray[Any]) -> float:
    """Share of labels that a LiteRT or ONNX file gets right, sample by sample."""
    answer = _lite(content) if content[4:8] == b"TFL3" else _onnx(content)
    return float(np.mean([answer(one[None]).argmax() == label for one, label in zip(x, y, strict=True)]))


def _lite(content: bytes) -> Callable[[Array], Array]:
    interpreter = first_interpreters()(content)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    logits = next(d["index"] for d in interpreter.get_output_details() if d["name"] == "logits")

    def answer(x: Array) -> Array:
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        made: Array = interpreter.get_tensor(logits)
        return made

    return answer


def _onnx(content: bytes) -> Callable[[Array], Array]:
    evaluator = onnx_file.library().reference.ReferenceEvaluator(content)
    return lambda x: evaluator.run(None, {"x": x})[0]
