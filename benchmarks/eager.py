"""A ModelSpec as a PyTorch user writes it: modules from ``torch.nn``, channels first, eager SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coordinator.compiler import kinds
from coordinator.compiler.spec import ModelSpec
from protocol.weights import Weights


class Eager:
    """The model's modules with ``weights``; only what the zoo is made of."""

    def __init__(self, torch: Any, spec: ModelSpec, weights: Weights) -> None:
        self._torch, self._spec = torch, spec
        self._modules = [self._module(index) for index in range(len(spec.layers))]
        for index, layer in enumerate(spec.layers):
            with torch.no_grad():
                self._load(index, {name: weights[f"{layer.name}.{name}"] for name in layer.tensors()})

    def parameters(self) -> list[Any]:
        return [p for module in self._modules if module is not None for p in module.parameters()]

    def __call__(self, x: Any) -> Any:
        values = {-1: x}
        for index, (layer, read) in enumerate(zip(self._spec.layers, self._spec.sources, strict=True)):
            value = values[read[0]]
            match layer:
                case kinds.Add():
                    value = value + values[read[1]]
                case kinds.GlobalAveragePool():
                    value = value.mean((2, 3))
                case kinds.Lstm():
                    value = self._modules[index](value.transpose(1, 2))[0][:, -1]
                case kinds.Conv2D() if self._padded(index):
                    value = self._modules[index](self._torch.nn.functional.pad(value, self._padded(index)))
                case _:
                    value = self._modules[index](value)
            values[index] = value
        return values[len(self._spec.layers) - 1]

    def _before(self, index: int) -> tuple[int, ...]:
        source = self._spec.sources[index][0]
        return self._spec.input if source < 0 else self._spec.shapes[source]

    def _padded(self, index: int) -> list[int]:
        """Padding of a strided convolution, where it is not the same on both sides or PyTorch has no word for it."""
        layer = self._spec.layers[index]
        assert isinstance(layer, kinds.Conv2D)
        if layer.stride == (1, 1) or layer.padding == "valid":
            return []
        before, made, shape = layer.padding_before(self._before(index)), self._spec.shapes[index], self._before(index)
        sizes = [((n - 1) * s + k) for n, s, k in zip(made, layer.stride, layer.kernel, strict=False)]
        after = [max(size - b - n, 0) for size, b, n in zip(sizes, before, shape, strict=False)]
        return [before[1], after[1], before[0], after[0]]

    def _module(self, index: int) -> Any:
        nn, layer, before = self._torch.nn, self._spec.layers[index], self._before(index)
        match layer:
            case kinds.Dense(units):
                return nn.Linear(before[0], units, bias=layer.bias)
            case kinds.Conv2D(filters, kernel, stride, padding):
                same = padding if stride == (1, 1) else 0
                return nn.Conv2d(before[2], filters, kernel, stride, same, bias=layer.bias)
            case kinds.Conv1D(filters, kernel, stride, padding):
                return nn.Conv1d(before[1], filters, kernel, stride, padding, bias=layer.bias)
            case kinds.DepthwiseConv2D(kernel, stride, padding):
                return nn.Conv2d(before[2], before[2], kernel, stride, padding, groups=before[2], bias=layer.bias)
            case kinds.BatchNorm():
                return nn.BatchNorm2d(before[-1], layer.epsilon, momentum=None, track_running_stats=False)
            case kinds.MaxPool(size):
                return nn.MaxPool1d(size[0]) if len(size) == 1 else nn.MaxPool2d(size)
            case kinds.Relu():
                return nn.ReLU()
            case kinds.Flatten():
                return nn.Flatten()
            case kinds.Lstm(units):
                return nn.LSTM(before[1], units, batch_first=True)
        return None

    def _load(self, index: int, tensors: Weights) -> None:
        """Our tensors in PyTorch's order of axes."""
        module, layer = self._modules[index], self._spec.layers[index]
        if not tensors:
            return
        if isinstance(layer, kinds.Lstm):
            module.weight_ih_l0.copy_(self._tensor(tensors["weight"].T))
            module.weight_hh_l0.copy_(self._tensor(tensors["recurrent"].T))
            module.bias_ih_l0.copy_(self._tensor(tensors["bias"]))
            module.bias_hh_l0.zero_()
            return
        orders = {"weight": {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}}
        for name, value in tensors.items():
            target = getattr(module, {"scale": "weight", "shift": "bias"}.get(name, name))
            order = orders.get(name, {}).get(value.ndim, (0,))
            if isinstance(layer, kinds.DepthwiseConv2D) and name == "weight":
                value, order = value[None], (3, 0, 1, 2)
            if isinstance(layer, kinds.Dense) and name == "weight":
                value = self._channels_first(index, value)
            target.copy_(self._tensor(value.transpose(order)))

    def _tensor(self, value: Any) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(value))

    def _channels_first(self, index: int, weight: Any) -> Any:
        """Ours flattens with the channel fastest, PyTorch with it slowest: exchange rows of a dense layer behind it."""
        source = self._spec.sources[index][0]
        if source < 0 or not isinstance(self._spec.layers[source], kinds.Flatten):
            return weight
        shape = self._before(source)
        return np.moveaxis(weight.reshape(*shape, -1), -2, 0).reshape(weight.shape)


def eager_step(torch: Any, spec: ModelSpec, weights: Weights, x: Any, y: Any, rate: float) -> Callable[[], float]:
    """One step of SGD on x[B, *input] and labels y[B]; returns the loss."""
    model = Eager(torch, spec, weights)
    if x.ndim > 2:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    loss_of, labels = torch.nn.CrossEntropyLoss(), torch.from_numpy(y.astype(np.int64))

    def step() -> float:
        optimiser.zero_grad()
        loss = loss_of(model(torch.from_numpy(x)), labels)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step
