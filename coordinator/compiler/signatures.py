"""The graphs of a model, one function per signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from attrs import frozen

from protocol.subnetwork import Subnetwork

from . import kinds
from .autodiff import Tape
from .graph import Graph, Tensor
from .loss import TINY, Cost, Samples, cost, hits, samples
from .network import Mode, Network
from .norm import Present
from .objectives import BatchMeanHinge
from .optimiser import Optimiser, Training, squared_norms
from .shapes import made_axis
from .spec import ModelSpec
from .targets import Target
from .writers import write_layer


class CompileError(ValueError):
    """What was asked of the compiler is outside what it makes."""


@frozen
class Request:
    """What is to be compiled: ``shapes`` of the tensors kept, ``cut`` the layer a model is split behind."""

    spec: ModelSpec
    subnetwork: Subnetwork
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    training: Training
    target: Target
    cut: int

    @property
    def last(self) -> int:
        return len(self.spec.layers) - 1


class _Part:
    """Layers ``first`` to ``last`` in a graph under construction, with their inputs named."""

    def __init__(self, graph: Graph, request: Request, first: int, last: int, mode: Mode, source: str = "x") -> None:
        self.graph, self.request, self.tape = graph, request, Tape(graph)
        spec = request.spec
        self.first, self.last = first, last
        shape = spec.input if first == 0 else cut_shape(request, first - 1)
        self.x = graph.input(source, (request.batch, *shape))
        self._mode = mode

    def weights(self) -> dict[str, Tensor]:
        """Inputs ``w/<tensor>`` of these layers."""
        names = {layer.name for layer in self.request.spec.layers[self.first : self.last + 1]}
        kept = {name: shape for name, shape in self.request.shapes.items() if name.partition(".")[0] in names}
        return {name: self.graph.input(f"w/{name}", shape) for name, shape in kept.items()}

    def samples(self) -> Samples:
        """Inputs ``y`` and ``sample_weight``."""
        spec, batch = self.request.spec, self.request.batch
        labels = spec.labelled
        y = self.graph.input("y", (batch,) if labels else (batch, spec.classes), "int32" if labels else "float32")
        return samples(self.graph, y, self.graph.input("sample_weight", (batch,)))

    def normalised(self) -> bool:
        """True if the batch's own statistics matter, and so which of its rows are only padding."""
        layers = self.request.spec.layers[self.first : self.last + 1]
        return self._mode == "training" and any(isinstance(layer, kinds.BatchNorm) for layer in layers)

    def present(self, weight: Tensor) -> Present:
        """The rows whose weight is not 0."""
        graph = self.graph
        column = graph.positive(graph.reshape(weight, (weight.size, 1)))
        count = graph.maximum(graph.reshape(graph.sum(column, 0), (1,)), graph.scalar(TINY))
        return Present(column, graph.divide(graph.constant(np.ones(1, np.float32)), count))

    def write(self, weights: Mapping[str, Tensor], present: Present | None = None) -> tuple[Network, dict[int, Tensor]]:
        """The layers' forward pass: what every layer that is read outside makes, by its number."""
        request = self.request
        net = Network(self.tape, request.spec, request.subnetwork, weights, self._mode, request.target, write_layer)
        net.present = present
        values = {self.first - 1: self.x}
        net.write(values, self.first, self.last)
        return net, values


def cut_shape(request: Request, layer: int) -> tuple[int, ...]:
    """Shape of one sample behind a layer, its channels cut."""
    axis = made_axis(request.spec, layer)
    return *request.spec.shapes[layer][:-1], request.subnetwork.size(axis)


def _put_out_statistics(graph: Graph, net: Network) -> None:
    for name, value in net.statistics.items():
        graph.result(f"statistic/{name}", value, (value.size,))


def _scored(part: _Part, outputs: Tensor, batch: Samples) -> tuple[Cost, Tensor, Tensor | None]:
    """Cost, the logits it is of and the mask they went through."""
    graph, spec = part.graph, part.request.spec
    mask = None
    if part.request.training.class_mask:
        mask = graph.input("class_mask", (spec.classes,))
        outputs = graph.multiply(outputs, mask)
    return cost(graph, spec.loss, outputs, batch), outputs, mask


def _put_out_sums(part: _Part, scored: Cost, outputs: Tensor, batch: Samples) -> None:
    """``loss_sum`` and, where there is right and wrong, ``correct``, both [1]."""
    graph = part.graph
    graph.output("loss_sum", graph.sum(graph.multiply(scored.losses, batch.column), 0))
    right = hits(graph, part.request.spec.loss, outputs, batch.y)
    if right is not None:
        if len(right.shape) == 2:
            right = graph.scale(graph.sum(right, 1), 1 / right.shape[1])
        graph.output("correct", graph.sum(graph.multiply(right, batch.weight), 0, keep=True))


def train(graph: Graph, request: Request) -> None:
    _train(_Part(graph, request, 0, request.last, "training"))


def back_train(graph: Graph, request: Request) -> None:
    part = _Part(graph, request, request.cut + 1, request.last, "training", "cut")
    part.tape.watch(part.x)
    _train(part)


def _train(part: _Part) -> None:
    graph, tape = part.graph, part.tape
    batch = part.samples()
    optimiser = Optimiser(tape, part.request.training)
    weights = part.weights()
    for weight in weights.values():
        tape.watch(weight)
    net, values = part.write(weights, part.present(batch.weight) if part.normalised() else None)
    scored, outputs, mask = _scored(part, values[part.last], batch)
    slope = graph.multiply(scored.slope, batch.share)
    seeds = {values[part.last]: slope if mask is None else graph.multiply(slope, mask)}
    split = tape.tracks(part.x)
    gradients = tape.gradients(seeds, [*weights.values(), *([part.x] if split else [])])
    _put_out_sums(part, scored, outputs, batch)
    for name, value in optimiser.update(weights, gradients[: len(weights)]).items():
        graph.output(name, value)
    if split:
        graph.result("cut_gradient", tape.value(gradients[-1]), part.x.shape)
    _put_out_statistics(graph, net)


def grad(graph: Graph, request: Request) -> None:
    if any(isinstance(objective, BatchMeanHinge) for objective in request.spec.loss):
        raise CompileError("signature grad makes sums that add over batches, which a batch_mean_hinge does not")
    part = _Part(graph, request, 0, request.last, "training")
    tape, batch = part.tape, part.samples()
    weights = part.weights()
    for weight in weights.values():
        tape.watch(weight)
    net, values = part.write(weights, part.present(batch.weight) if part.normalised() else None)
    scored, outputs, mask = _scored(part, values[part.last], batch)
    slope = graph.multiply(scored.slope, batch.column)
    seeds = {values[part.last]: slope if mask is None else graph.multiply(slope, mask)}
    gradients = [tape.value(gradient) for gradient in tape.gradients(seeds, list(weights.values()))]
    _put_out_sums(part, scored, outputs, batch)
    total = graph.sum(batch.weight, 0, keep=True)
    graph.output("weight_sum", total)
    share = graph.divide(graph.constant(np.ones(1, np.float32)), graph.maximum(total, graph.scalar(TINY)))
    squares = graph.multiply(graph.multiply(squared_norms(tape, gradients), share), share)
    graph.output("squared_gradient", squares)
    for name, gradient in zip(weights, gradients, strict=True):
        graph.result(f"gradient/{name}", gradient, (gradient.size,))
    _put_out_statistics(graph, net)


def infer(graph: Graph, request: Request) -> None:
    part = _Part(graph, request, 0, request.last, "inference")
    _, values = part.write(part.weights())
    features = values[request.spec.sources[-1][0]]
    graph.output("logits", values[part.last])
    graph.result("features", features, features.shape)


def evaluate(graph: Graph, request: Request) -> None:
    part = _Part(graph, request, 0, request.last, "inference")
    batch = part.samples()
    _, values = part.write(part.weights())
    spec = request.spec
    scored, outputs, _ = _scored(part, values[part.last], batch)
    graph.output("loss_sum", graph.sum(graph.multiply(scored.losses, batch.column), 0))
    right = hits(graph, spec.loss, outputs, batch.y)
    if spec.labelled:
        mine = graph.multiply(graph.one_hot(batch.y, spec.classes), batch.column)
    else:
        mine = graph.spread(batch.column, (request.batch, spec.classes))
    if right is not None:
        answers = graph.reshape(right, (request.batch, right.size // request.batch))
        graph.output("correct", graph.sum(graph.multiply(mine, answers), 0))
    graph.output("count", graph.sum(mine, 0))


def front(graph: Graph, request: Request) -> None:
    part = _Part(graph, request, 0, request.cut, "training")
    present = part.present(graph.input("sample_weight", (request.batch,))) if part.normalised() else None
    _, values = part.write(part.weights(), present)
    made = values[request.cut]
    graph.result("cut", made, made.shape)


def front_backward(graph: Graph, request: Request) -> None:
    part = _Part(graph, request, 0, request.cut, "training")
    given = graph.input("cut_gradient", (request.batch, *cut_shape(request, request.cut)))
    present = part.present(graph.input("sample_weight", (request.batch,))) if part.normalised() else None
    optimiser = Optimiser(part.tape, request.training)
    weights = part.weights()
    for weight in weights.values():
        part.tape.watch(weight)
    net, values = part.write(weights, present)
    gradients = part.tape.gradients({values[request.cut]: given}, list(weights.values()))
    for name, value in optimiser.update(weights, gradients).items():
        graph.output(name, value)
    _put_out_statistics(graph, net)


SIGNATURES: dict[str, Callable[[Graph, Request], None]] = {
    "train": train, "grad": grad, "infer": infer, "evaluate": evaluate,
    "front": front, "front_backward": front_backward, "back_train": back_train,
}  # fmt: skip
SPLIT = ("front", "front_backward", "back_train")
