"""Reverse-mode differentiation over a graph: a tape of the steps and how each passes gradients back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .graph import Graph, Tensor

Backward = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
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

    def gradients(self, output: Tensor, seed: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a scalar by each of ``wanted``, given its gradient ``seed`` by ``output``."""
        found = {output.index: seed}
        for result, backward in reversed(self._steps):
            if result.index not in found:
                continue
            for source, gradient in backward(found[result.index]):
                known = found.get(source.index)
                found[source.index] = gradient if known is None else self.graph.add(known, gradient)
        return [found[tensor.index] for tensor in wanted]
