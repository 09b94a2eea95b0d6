"""PyTorch's reading of a ModelSpec: the judge of compiled graphs.

Tensors have the layout of the compiler's; they are turned into PyTorch's inside. PyTorch missing skips a test, except
where CI is set: there nothing may be skipped.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec
from protocol.subnetwork import FULL, Region, Subnetwork

try:
    import torch
except ImportError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("PyTorch is not installed (extra 'oracle')", allow_module_level=True)

torch.set_num_threads(1)


class Oracle:
    """Trains the part of a spec that a subnetwork keeps, by PyTorch in the given precision."""

    def __init__(self, spec: ModelSpec, weights: dict[str, np.ndarray], precision: str = "float64") -> None:
        self.spec = spec
        self.dtype = getattr(torch, precision)
        self.tensors = {name: torch.tensor(value, dtype=self.dtype).requires_grad_() for name, value in weights.items()}

    def forward(self, x: np.ndarray) -> Any:
        """Logits of x[B, *input]; images stay NHWC between layers."""
        value = torch.tensor(x, dtype=self.dtype)
        for layer in self.spec.layers:
            match layer:
                case Dense(name=name):
                    value = value @ self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
                case Conv2D():
                    value = self._convolve(value, layer)
                case MaxPool(size):
                    value = torch.nn.functional.max_pool2d(value.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
                case Flatten():
                    value = value.flatten(1)
                case _:
                    value = value.relu()
        return value

    def step(
        self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray, rate: float
    ) -> tuple[float, float, np.ndarray]:
        """One step of SGD: Σ sw·loss, Σ sw·[correct], squared gradient per tensor."""
        logits, labels = self.forward(x), torch.tensor(y).long()
        weight = torch.tensor(sample_weight, dtype=self.dtype)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        mean = (losses * weight).sum() / weight.sum()
        gradients = torch.autograd.grad(mean, list(self.tensors.values()))
        with torch.no_grad():
            for tensor, gradient in zip(self.tensors.values(), gradients, strict=True):
                tensor -= rate * gradient
        correct = (weight * (logits.argmax(1) == labels)).sum()
        squared = np.array([float((g.double() ** 2).sum()) for g in gradients])
        return float((losses * weight).sum().detach()), float(correct), squared

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.tensors.items()}

    def _convolve(self, value: Any, layer: Conv2D) -> Any:
        kernel = self.tensors[f"{layer.name}.weight"].permute(3, 2, 0, 1).contiguous()
        value = value.permute(0, 3, 1, 2).contiguous()
        if layer.padding == "same":
            sizes = zip(value.shape[2:], layer.kernel, layer.stride, strict=True)
            total = [max((-(-size // s) - 1) * s + k - size, 0) for size, k, s in sizes]
            pads = [n for t in reversed(total) for n in (t // 2, t - t // 2)]
            value = torch.nn.functional.pad(value, pads)
        bias = self.tensors[f"{layer.name}.bias"]
        return torch.nn.functional.conv2d(value, kernel, bias, layer.stride).permute(0, 2, 3, 1)


def part_of(spec: ModelSpec, subnetwork: Subnetwork = FULL, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a subnetwork, biases included, large enough to be moved visibly by three steps."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in Region(layout(spec), subnetwork).shapes.items():
        scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return weights
