"""PyTorch's reading of a ModelSpec: the judge of compiled graphs.

Tensors have the layout of the compiler's; they are turned into PyTorch's inside. PyTorch missing skips a test, except
where CI is set: there nothing may be skipped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import singledispatchmethod
from typing import Any

import numpy as np
import pytest

from coordinator.compiler import kinds, objectives
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import layout, made_axis
from coordinator.compiler.spec import ModelSpec
from protocol.subnetwork import FULL, Region, Subnetwork

try:
    import torch
    from torch.nn import functional
except ImportError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("PyTorch is not installed (extra 'oracle')", allow_module_level=True)

torch.set_num_threads(1)


def nchw(value: Any) -> Any:
    return value.permute(0, 3, 1, 2).contiguous()


def nhwc(value: Any) -> Any:
    return value.permute(0, 2, 3, 1)


class Oracle:
    """Trains the part of a spec that a subnetwork keeps, by PyTorch in the given precision."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: dict[str, np.ndarray],
        precision: str = "float64",
        subnetwork: Subnetwork = FULL,
        training: Training | None = None,
    ) -> None:
        self.spec, self.subnetwork, self.training = spec, subnetwork, training or Training()
        self.dtype = getattr(torch, precision)
        self.tensors = {name: self.tensor(value).requires_grad_() for name, value in weights.items()}
        self.anchors = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.speeds = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.statistics: dict[str, Any] = {}
        self.is_training = True
        self.present: Any = None
        self.options: dict[str, Any] = {}
        self.watch: Callable[[int, kinds.Layer, Any], None] | None = None
        """Shown what every layer reads: its number, the layer and the first input."""

    def tensor(self, value: Any) -> Any:
        return torch.tensor(np.asarray(value), dtype=self.dtype)

    def forward(self, x: np.ndarray, first: int = 0, last: int | None = None) -> Any:
        """Outputs of x[B, *input]; images stay NHWC between layers."""
        value = x if isinstance(x, torch.Tensor) else self.tensor(x)
        values = {first - 1: value}
        if self.present is None:
            self.present = torch.ones(len(value), dtype=torch.bool)
        for index in range(first, len(self.spec.layers) if last is None else last + 1):
            layer = self.spec.layers[index]
            self.index = index
            read = [values[source] for source in self.spec.sources[index]]
            if self.watch is not None:
                self.watch(index, layer, read[0])
            values[index] = self.apply(layer, *read)
        return values[max(values)]

    def loss(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray) -> tuple[Any, Any, Any]:
        """Mean loss, outputs and the weights of samples."""
        weight = self.tensor(sample_weight)
        self.present = weight > 0
        outputs = self.forward(x)
        if self.training.class_mask:
            outputs = outputs * self.tensor(self.options["class_mask"])
        return self.cost(outputs, y, weight), outputs, weight

    def cost(self, outputs: Any, y: np.ndarray, weight: Any) -> Any:
        share = weight / weight.sum()
        total = 0.0
        softmax = any(isinstance(o, objectives.SoftmaxCrossEntropy) for o in self.spec.loss)
        for objective in self.spec.loss:
            match objective:
                case objectives.SoftmaxCrossEntropy(smoothing):
                    each = functional.cross_entropy(
                        outputs, torch.tensor(y).long(), reduction="none", label_smoothing=smoothing
                    )
                case objectives.SigmoidCrossEntropy():
                    each = functional.binary_cross_entropy_with_logits(outputs, self.tensor(y), reduction="none").mean(
                        1
                    )
                case objectives.MeanSquaredError():
                    each = functional.mse_loss(outputs, self.tensor(y), reduction="none").mean(1)
                case objectives.Huber(delta):
                    each = functional.huber_loss(outputs, self.tensor(y), reduction="none", delta=delta).mean(1)
                case objectives.BatchMeanHinge(output, least, most, scale):
                    chance = (outputs.softmax(1) if softmax else outputs.sigmoid())[:, output]
                    mean = (chance * share).sum()
                    total = total + scale * (functional.relu(least - mean) + functional.relu(mean - most))
                    continue
            total = total + (each * share).sum()
        return total

    def step(
        self,
        x: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray,
        rate: float,
        options: dict[str, Any] | None = None,
    ) -> tuple[float, float, np.ndarray]:
        """One step: Σ sw·loss, Σ sw·[correct], squared gradient per tensor."""
        self.options = options or {}
        mean, outputs, weight = self.loss(x, y, sample_weight)
        gradients = torch.autograd.grad(mean, list(self.tensors.values()))
        self.move(gradients, rate)
        squared = np.array([float((g.double() ** 2).sum()) for g in gradients])
        return float(mean.detach() * weight.sum()), self.correct(outputs, y, weight), squared

    def correct(self, outputs: Any, y: np.ndarray, weight: Any) -> float:
        if isinstance(self.spec.loss[0], objectives.SoftmaxCrossEntropy):
            return float((weight * (outputs.argmax(1) == torch.tensor(y))).sum())
        if isinstance(self.spec.loss[0], objectives.SigmoidCrossEntropy):
            right = (outputs > 0) == (torch.tensor(y) > 0.5)
            return float((weight * right.to(self.dtype).mean(1)).sum())
        return 0.0

    def move(self, gradients: Any, rate: float) -> None:
        """The order in which the optimiser's parts act, in its plainest form."""
        chosen, options = self.training, self.options
        with torch.no_grad():
            norm = sum((g**2).sum() for g in gradients).sqrt()
            for (name, tensor), gradient in zip(self.tensors.items(), gradients, strict=True):
                if chosen.clip and norm > options["clip"]:
                    gradient = gradient * (options["clip"] / norm)
                if chosen.weight_decay:
                    gradient = gradient + options["weight_decay"] * tensor
                if chosen.proximal:
                    gradient = gradient + options["proximal"] * (tensor - self.anchors[name])
                if chosen.momentum:
                    gradient = options["momentum"] * self.speeds[name] + (1 - options["dampening"]) * gradient
                    self.speeds[name] = gradient
                tensor -= rate * gradient

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.tensors.items()}

    # -- Layers

    @singledispatchmethod
    def apply(self, layer: kinds.Layer, x: Any) -> Any:
        plain = {
            "relu": functional.relu,
            "relu6": functional.relu6,
            "sigmoid": torch.sigmoid,
            "tanh": torch.tanh,
            "silu": functional.silu,
            "gelu": lambda value: functional.gelu(value, approximate="tanh"),
            "flatten": lambda value: value.flatten(1),
        }
        return plain[layer.kind](x)

    def own(self, layer: kinds.Layer, name: str) -> Any:
        return self.tensors[f"{layer.name}.{name}"]

    def finished(self, layer: kinds.Layer, value: Any) -> Any:
        """Bias and HeteroFL's scaler."""
        if f"{layer.name}.bias" in self.tensors:
            value = value + self.own(layer, "bias")
        if self.spec.scaler and self.is_training and self.index < len(self.spec.layers) - 1:
            axis = made_axis(self.spec, self.index)
            value = value * (axis.size / self.subnetwork.size(axis))
        return value

    @apply.register
    def _(self, layer: kinds.Dense, x: Any) -> Any:
        return self.finished(layer, x @ self.own(layer, "weight"))

    @apply.register
    def _(self, layer: kinds.Conv2D, x: Any) -> Any:
        kernel = self.own(layer, "weight").permute(3, 2, 0, 1).contiguous()
        value = self.padded(nchw(x), layer)
        return self.finished(layer, nhwc(functional.conv2d(value, kernel, None, layer.stride)))

    def padded(self, value: Any, layer: Any) -> Any:
        if layer.padding == "valid":
            return value
        sizes = zip(value.shape[2:], layer.kernel, layer.stride, strict=True)
        total = [max((-(-size // s) - 1) * s + k - size, 0) for size, k, s in sizes]
        return functional.pad(value, [n for t in reversed(total) for n in (t // 2, t - t // 2)])

    @apply.register
    def _(self, layer: kinds.Conv1D, x: Any) -> Any:
        kernel = self.own(layer, "weight").permute(2, 1, 0)[:, :, None].contiguous()
        value = self.padded(nchw(x[:, None]), layer.over_images)
        return self.finished(layer, nhwc(functional.conv2d(value, kernel, None, (1, layer.stride)))[:, 0])

    @apply.register
    def _(self, layer: kinds.DepthwiseConv2D, x: Any) -> Any:
        kernel = self.own(layer, "weight").permute(2, 0, 1)[:, None].contiguous()
        value = self.padded(nchw(x), layer)
        return self.finished(layer, nhwc(functional.conv2d(value, kernel, None, layer.stride, groups=x.shape[3])))

    @apply.register
    def _(self, layer: kinds.TransposedConv2D, x: Any) -> Any:
        kernel = self.own(layer, "weight").permute(2, 3, 0, 1).contiguous()
        value = functional.conv_transpose2d(nchw(x), kernel, None, layer.stride)
        made = layer.output(tuple(x.shape[1:]))
        before = layer.inverse.padding_before((*made[:2], 1))
        # A kernel smaller than its stride reads no pixel of the last rows: they stay empty.
        value = functional.pad(value, (0, layer.stride[1], 0, layer.stride[0]))
        value = value[:, :, before[0] : before[0] + made[0], before[1] : before[1] + made[1]]
        return self.finished(layer, nhwc(value))

    @apply.register
    def _(self, layer: kinds.MaxPool, x: Any) -> Any:
        if len(layer.size) == 1:
            return functional.max_pool1d(x.permute(0, 2, 1), layer.size[0]).permute(0, 2, 1)
        return nhwc(functional.max_pool2d(nchw(x), layer.size))

    @apply.register
    def _(self, layer: kinds.AveragePool, x: Any) -> Any:
        if len(layer.size) == 1:
            return functional.avg_pool1d(x.permute(0, 2, 1), layer.size[0]).permute(0, 2, 1)
        return nhwc(functional.avg_pool2d(nchw(x), layer.size))

    @apply.register
    def _(self, layer: kinds.GlobalAveragePool, x: Any) -> Any:
        return x.flatten(1, -2).mean(1)

    @apply.register
    def _(self, layer: kinds.LeakyRelu, x: Any) -> Any:
        return functional.leaky_relu(x, layer.slope)

    @apply.register
    def _(self, layer: kinds.Reshape, x: Any) -> Any:
        return x.reshape(len(x), *layer.shape[:-1], -1)

    @apply.register
    def _(self, layer: kinds.Add, *x: Any) -> Any:
        return sum(x)

    @apply.register
    def _(self, layer: kinds.Concat, *x: Any) -> Any:
        return torch.cat(x, -1)

    @apply.register
    def _(self, layer: kinds.BatchNorm, x: Any) -> Any:
        flat = x[self.present].flatten(0, -2)
        keys = [f"statistic/{layer.name}.{name}" for name in ("mean", "variance")]
        if self.is_training:
            for key, value in zip(keys, (flat.mean(0), flat.var(0, unbiased=False)), strict=True):
                self.statistics[key] = value
        mean, variance = (self.statistics[key] for key in keys)
        normal = (x - mean) / torch.sqrt(variance + layer.epsilon)
        return normal * self.own(layer, "scale") + self.own(layer, "shift")

    @apply.register
    def _(self, layer: kinds.GroupNorm, x: Any) -> Any:
        groups = math.gcd(layer.groups, x.shape[-1])
        value = x.movedim(-1, 1)
        scale, shift = self.own(layer, "scale"), self.own(layer, "shift")
        return functional.group_norm(value, groups, scale, shift, layer.epsilon).movedim(1, -1)

    @apply.register
    def _(self, layer: kinds.LayerNorm, x: Any) -> Any:
        scale, shift = self.own(layer, "scale"), self.own(layer, "shift")
        return functional.layer_norm(x, x.shape[-1:], scale, shift, layer.epsilon)

    @apply.register
    def _(self, layer: kinds.Dropout, x: Any) -> Any:
        if not self.is_training or not layer.rate:
            return x
        chance = self.options[f"dropout/{layer.name}"] + np.float32(1 - layer.rate)
        return x * self.tensor(np.floor(chance)) / (1 - layer.rate)

    @apply.register
    def _(self, layer: kinds.Embedding, x: Any) -> Any:
        return functional.embedding(x.long(), self.own(layer, "table"))

    @apply.register
    def _(self, layer: kinds.Lstm, x: Any) -> Any:
        return self.recurrent(layer, x, torch._VF.lstm, 2)

    @apply.register
    def _(self, layer: kinds.Gru, x: Any) -> Any:
        return self.recurrent(layer, x, torch._VF.gru, 1)

    def recurrent(self, layer: Any, x: Any, function: Any, states: int) -> Any:
        weight, hidden, bias = (self.own(layer, name) for name in ("weight", "recurrent", "bias"))
        late = self.tensors.get(f"{layer.name}.recurrent_bias", torch.zeros_like(bias))
        start = torch.zeros(1, len(x), hidden.shape[0], dtype=self.dtype)
        tensors = [weight.t().contiguous(), hidden.t().contiguous(), bias, late]
        every = function(x, (start,) * states if states > 1 else start, tensors, True, 1, 0.0, True, False, True)[0]
        return every if layer.sequences else every[:, -1]


def part_of(spec: ModelSpec, subnetwork: Subnetwork = FULL, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a subnetwork, biases included, large enough to be moved visibly by three steps."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in Region(layout(spec), subnetwork).shapes.items():
        scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1]))
        weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        if name.endswith(".scale"):
            weights[name] += 1
    return weights
