"""From gradients to new weights: SGD and what a plan may add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from .autodiff import Gradient, Product, Tape
from .graph import Graph, Tensor
from .loss import TINY
from .primitives import rows

_ELEMENT = 12  # multiply-adds of a product that take as long as squaring and adding one number that is in memory


@frozen
class Training:
    """What a training graph can do beyond plain SGD. How much of it is an input of shape [1] of every step.

    In this order: ``clip`` scales the gradient down to a norm of at most ``clip``; ``weight_decay`` adds
    weight_decay·w to it and ``proximal`` adds proximal·(w - anchor) (FedProx, Li et al., MLSys 2020); ``momentum``
    replaces it by v' = momentum·v + (1 - dampening)·g. ``class_mask`` [classes] multiplies the logits (HeteroFL's
    masked cross-entropy: 0 for absent classes).
    """

    momentum: bool = False
    weight_decay: bool = False
    clip: bool = False
    proximal: bool = False
    class_mask: bool = False

    @property
    def plain(self) -> bool:
        return not (self.momentum or self.weight_decay or self.clip or self.proximal)


class Optimiser:
    """The inputs that ``training`` asks for, and the new weights made with them."""

    def __init__(self, tape: Tape, training: Training) -> None:
        self._tape, self._graph, self._training = tape, tape.graph, training
        graph = tape.graph
        self._rate = graph.input("learning_rate", (1,))
        names = [name for name in ("weight_decay", "clip", "proximal") if getattr(training, name)]
        names += ["momentum", "dampening"] if training.momentum else []
        self._values = {name: graph.input(name, (1,)) for name in names}

    def update(self, weights: Mapping[str, Tensor], gradients: Sequence[Gradient]) -> dict[str, Tensor]:
        """Outputs ``squared_gradient``, ``new/<tensor>`` and ``new_momentum/<tensor>`` by name."""
        graph, training = self._graph, self._training
        speeds = self._states("momentum", weights) if training.momentum else {}
        anchors = self._states("anchor", weights) if training.proximal else {}
        gradients = [_settled(self._tape, gradient) for gradient in gradients]
        squares = squared_norms(self._tape, gradients)
        outputs: dict[str, Tensor] = {}
        slower = self._clipped(squares) if training.clip else None
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if training.plain:
                outputs[f"new/{name}"] = graph.subtract(weight, self._step(gradient))
                continue
            value = self._tape.value(gradient)
            if slower is not None:
                value = graph.multiply(value, slower)
            if training.weight_decay:
                value = graph.add(value, graph.multiply(weight, self._values["weight_decay"]))
            if training.proximal:
                distance = graph.subtract(weight, anchors[name])
                value = graph.add(value, graph.multiply(distance, self._values["proximal"]))
            if training.momentum:
                value = outputs[f"new_momentum/{name}"] = self._faster(speeds[name], value)
            outputs[f"new/{name}"] = graph.subtract(weight, graph.multiply(value, self._rate))
        return {"squared_gradient": squares, **outputs}

    def _states(self, kind: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._graph.input(f"{kind}/{name}", weight.shape) for name, weight in weights.items()}

    def _step(self, gradient: Gradient) -> Tensor:
        """learning_rate·gradient; of a product the small factor is scaled, not the large result."""
        graph = self._graph
        if isinstance(gradient, Product):
            return graph.matmul_tn(gradient.left, graph.multiply(gradient.right, self._rate))
        return graph.multiply(gradient, self._rate)

    def _faster(self, speed: Tensor, gradient: Tensor) -> Tensor:
        graph, values = self._graph, self._values
        share = graph.subtract(graph.scalar(1), values["dampening"])
        return graph.add(graph.multiply(speed, values["momentum"]), graph.multiply(gradient, share))

    def _clipped(self, squares: Tensor) -> Tensor:
        """min(1, clip / norm of all gradients together)."""
        graph = self._graph
        norm = graph.square_root(graph.sum(squares, 0, keep=True))
        share = graph.divide(self._values["clip"], graph.maximum(norm, graph.scalar(TINY)))
        return graph.minimum(share, graph.scalar(1))


def _settled(tape: Tape, gradient: Gradient) -> Gradient:
    """The gradient as a product only where its factors are cheaper to work with."""
    keeps = isinstance(gradient, Product) and _gram_is_cheaper(gradient)
    return gradient if keeps else tape.value(gradient)


def squared_norms(tape: Tape, gradients: Sequence[Gradient]) -> Tensor:
    """[T], one squared norm per gradient."""
    return tape.graph.concatenate([_squared_norm(tape, gradient) for gradient in gradients], 0)


def _squared_norm(tape: Tape, gradient: Gradient) -> Tensor:
    if isinstance(gradient, Product):
        return _gram_norm(tape.graph, gradient)
    value = rows(tape.graph, tape.value(gradient))
    return _sum_of(tape.graph, tape.graph.multiply(value, value))


def _gram_is_cheaper(product: Product) -> bool:
    (batch, read), made = product.left.shape, product.right.shape[1]
    return batch * batch * (read + made) < _ELEMENT * read * made


def _gram_norm(graph: Graph, product: Product) -> Tensor:
    """‖AᵀB‖² = Σ (AAᵀ)·(BBᵀ) element by element: far fewer numbers than AᵀB has, when a batch is small."""
    left, right = (graph.matmul(x, graph.transpose(x, (1, 0))) for x in (product.left, product.right))
    return graph.relu(_sum_of(graph, graph.multiply(left, right)))


def _sum_of(graph: Graph, x: Tensor) -> Tensor:
    """Σ x [1], by columns first: faster than one long sum, and rounding grows with the longer axis only."""
    return graph.sum(graph.sum(x, 0) if len(x.shape) > 1 else x, 0, keep=True)
