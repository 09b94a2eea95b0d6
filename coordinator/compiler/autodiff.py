"""Reverse-mode differentiation over a graph: a tape of the steps and how each passes gradients back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen

from .graph import Graph, Tensor


@frozen
class Product:
    """The gradient of a dense layer's weight, leftᵀ·right, not yet multiplied: often its parts are all one needs."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.left.shape[1], self.right.shape[1]


Gradient = Tensor | Product
Backward = Callable[[Tensor], Iterable[tuple[Tensor, Gradient]]]
"""From the gradient of a step's output to (input, its gradient) pairs, for the inputs that are tracked."""


class Tape:
    """Records steps while the forward pass is written; :meth:`gradients` writes the backward pass."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._tracked: set[int] = set()
        self._steps: list[tuple[Tensor, Backward]] = []

    def watch(self, tensor: Tensor) -> None:
        """Gradients are wanted with respect to ``tensor``."""
        self._tracked.add(tensor.index)

    def tracks(self, tensor: Tensor) -> bool:
        """True if ``tensor`` depends on a watched one, so that its gradient is of use."""
        return tensor.index in self._tracked

    def record(self, output: Tensor, inputs: Sequence[Tensor], backward: Backward) -> Tensor:
        """Note that ``output`` was computed from ``inputs``; return it."""
        if any(self.tracks(tensor) for tensor in inputs):
            self._tracked.add(output.index)
            self._steps.append((output, backward))
        return output

    def gradients(self, seeds: Mapping[Tensor, Tensor], wanted: Sequence[Tensor]) -> list[Gradient]:
        """Gradients of a scalar by each of ``wanted``, given its gradients by the outputs that are keys of seeds."""
        found: dict[int, Gradient] = {output.index: seed for output, seed in seeds.items()}
        for result, backward in reversed(self._steps):
            gradient = found.get(result.index)
            if gradient is None:
                continue
            for source, part in backward(self.value(gradient)):
                known = found.get(source.index)
                found[source.index] = part if known is None else self.graph.add(self.value(known), self.value(part))
        return [found[tensor.index] for tensor in wanted]

    def value(self, gradient: Gradient) -> Tensor:
        """The gradient as one tensor."""
        if isinstance(gradient, Product):
            return self.graph.matmul_tn(gradient.left, gradient.right)
        return gradient
