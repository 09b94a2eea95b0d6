"""One training step of 32 samples at full width against PyTorch eager SGD, both on one thread.

Our side is all that a device does per step: Python, inputs, the compiled graph (which also counts hits and squared
gradients) and the weights back in. PyTorch's side is forward, loss, backward and optimiser. Memory is that of a process
each, from import on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import initial_weights
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import TrainStep, backends
from protocol.weights import Weights

from . import resident
from .eager import eager_step
from .measure import Row, Unavailable, compare, one_core

NAME = "training_step"
MODELS = ("mlp", "cnn", "cnn1d", "resnet8", "dscnn", "lstm")
BATCH = 32
RATE = 0.01


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``training_step.<model>.<runtime>``: milliseconds per step, ratio = PyTorch's time / ours."""
    torch = _torch()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with one_core():
        for model in MODELS:
            spec = ZOO[model]
            rng = np.random.default_rng(0)
            weights = initial_weights(spec, rng)
            x = rng.standard_normal((BATCH, *spec.input)).astype(np.float32)
            y = rng.integers(0, spec.classes, BATCH).astype(np.int32)
            for backend in backends():
                artifact = compile_model(spec, batch=BATCH, target=backend).for_backend(backend)
                ours = _ours(artifact, backend, weights, x, y)
                reference = eager_step(torch, spec, weights, x, y, RATE)
                _check_losses(ours(), reference())
                rows.append(row := compare(f"{NAME}.{model}.{backend}", ours, reference))
                progress(f"{row.name}: {row.value:.3f} ms, PyTorch {row.reference:.3f} ms, ratio {row.ratio:.2f}")
    return rows + _memory(progress)


def _memory(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``training_step.<model>.<runtime>.rss_mb``: MiB at the peak of a process that trains; PyTorch's beside."""
    rows: list[Row] = []
    for model in MODELS:
        reference = resident.peak(model, "torch")
        for backend in backends():
            artifact = compile_model(ZOO[model], batch=BATCH, target=backend).for_backend(backend)
            value = resident.peak(model, backend, artifact)
            rows.append(Row(f"{NAME}.{model}.{backend}.rss_mb", value, "MiB", reference, reference / value))
            progress(f"{rows[-1].name}: {value:.1f} MiB, PyTorch {reference:.1f} MiB")
    return rows


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is the reference and is not installed: pip install 'shoal[oracle]'") from None
    return torch


def _check_losses(ours: float, reference: float) -> None:
    if abs(ours - reference) > 1e-3 * abs(reference):
        raise AssertionError(f"the first step's loss is {ours}, PyTorch says {reference}")


def _ours(artifact: bytes, backend: str, weights: Weights, x: Any, y: Any) -> Callable[[], float]:
    step = TrainStep(artifact, backend)
    step.load(weights)
    ones = np.ones(BATCH, np.float32)
    return lambda: step.step(x, y, ones, RATE).loss_sum / BATCH
