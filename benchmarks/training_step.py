"""One training step of 32 samples at full width against PyTorch eager SGD, both on one thread.

Our side is all that a device does per step: Python, inputs, the compiled graph (which also counts hits and squared
gradients) and the weights back in. PyTorch's side is forward, loss, backward and optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import initial_weights
from coordinator.compiler.spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import TrainStep, backends
from protocol.weights import Weights

from .measure import Row, Unavailable, compare, one_core

NAME = "training_step"
MODELS = ("mlp", "cnn")
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
            artifact = compile_model(spec, batch=BATCH).content
            for backend in backends():
                ours, reference = _ours(artifact, backend, weights, x, y), _reference(torch, spec, weights, x, y)
                _check_losses(ours(), reference())
                rows.append(row := compare(f"{NAME}.{model}.{backend}", ours, reference))
                progress(f"{row.name}: {row.value:.3f} ms, PyTorch {row.reference:.3f} ms, ratio {row.ratio:.2f}")
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


def _reference(torch: Any, spec: ModelSpec, weights: Weights, x: Any, y: Any) -> Callable[[], float]:
    """The same model as PyTorch users write it, NCHW."""
    model = torch.nn.Sequential(*_modules(torch, spec))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights.values(), strict=True):
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value.transpose(order))))
        if x.ndim == 4:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            _reorder_flattened(model, spec)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    loss_of, labels = torch.nn.CrossEntropyLoss(), torch.from_numpy(y.astype(np.int64))

    def step() -> float:
        optimiser.zero_grad()
        loss = loss_of(model(torch.from_numpy(x)), labels)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def _reorder_flattened(model: Any, spec: ModelSpec) -> None:
    """NHWC flattens with the channel fastest, NCHW with it slowest: exchange columns of the first dense layer."""
    where = next(i for i, layer in enumerate(spec.layers) if isinstance(layer, Flatten))
    height, width, channels = spec.shapes[where - 1]
    dense = next(module for module in list(model)[where:] if hasattr(module, "in_features"))
    columns = dense.weight.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    dense.weight.copy_(columns.reshape(dense.weight.shape).clone())


def _modules(torch: Any, spec: ModelSpec) -> list[Any]:
    modules = []
    shape = spec.input
    for layer, after in zip(spec.layers, spec.shapes, strict=True):
        match layer:
            case Dense(units):
                modules.append(torch.nn.Linear(shape[0], units))
            case Conv2D(filters, kernel, stride, padding):
                modules.append(torch.nn.Conv2d(shape[2], filters, kernel, stride, padding))
            case MaxPool(size):
                modules.append(torch.nn.MaxPool2d(size))
            case Flatten():
                modules.append(torch.nn.Flatten())
            case _:
                modules.append(torch.nn.ReLU())
        shape = after
    return modules
