"""Losses in the graph: what every sample costs, and the slope of it by the model's outputs.

Rows that only pad a batch have weight 0 and change nothing. Labels must lie in 0 … classes-1; that is not
checked here: a label outside selects no class, so its row counts no loss and still pulls on the weights.
"""

from __future__ import annotations

from attrs import frozen

from .fields import ModelSpecError
from .graph import RELU, Graph, Tensor
from .objectives import BatchMeanHinge, Huber, MeanSquaredError, Objective, SigmoidCrossEntropy, SoftmaxCrossEntropy

TINY = 1e-30  # stands in for a sum of weights that is zero


@frozen
class Samples:
    """A batch: ``y``, labels [B] int32 or targets [B, outputs], ``weight`` [B] ≥ 0, its ``column`` [B, 1] and the
    ``share`` [B, 1] of every row in their sum.
    """

    y: Tensor
    weight: Tensor
    column: Tensor
    share: Tensor


@frozen
class Cost:
    """``losses`` [B, 1] of every sample and ``slope`` [B, outputs], their derivative by the outputs."""

    losses: Tensor
    slope: Tensor


def samples(graph: Graph, y: Tensor, weight: Tensor) -> Samples:
    column = graph.reshape(weight, (weight.size, 1))
    total = graph.maximum(graph.sum(weight, 0, keep=True), graph.scalar(TINY))
    return Samples(y, weight, column, graph.divide(column, total))


def cost(graph: Graph, objectives: tuple[Objective, ...], outputs: Tensor, batch: Samples) -> Cost:
    """The sum of ``objectives`` for a model's ``outputs`` [B, outputs]."""
    softmax = any(isinstance(objective, SoftmaxCrossEntropy) for objective in objectives)
    found = [_cost(graph, objective, outputs, batch, softmax) for objective in objectives]
    total = found[0]
    for one in found[1:]:
        total = Cost(graph.add(total.losses, one.losses), graph.add(total.slope, one.slope))
    return total


def _cost(graph: Graph, objective: Objective, outputs: Tensor, batch: Samples, softmax: bool) -> Cost:
    match objective:
        case SoftmaxCrossEntropy(smoothing):
            return _softmax(graph, outputs, batch.y, smoothing)
        case SigmoidCrossEntropy():
            return _sigmoid(graph, outputs, batch.y)
        case MeanSquaredError():
            rest = graph.subtract(outputs, batch.y)
            return Cost(_mean(graph, graph.multiply(rest, rest)), graph.scale(rest, 2 / outputs.shape[1]))
        case Huber(delta):
            return _huber(graph, outputs, batch.y, delta)
        case BatchMeanHinge():
            return _hinge(graph, objective, outputs, batch, softmax)
    raise ModelSpecError(f"no graph is known for the loss {objective.kind}")


def _mean(graph: Graph, values: Tensor) -> Tensor:
    return graph.scale(graph.sum(values, 1, keep=True), 1 / values.shape[1])


def _softmax(graph: Graph, logits: Tensor, labels: Tensor, smoothing: float) -> Cost:
    classes = logits.shape[1]
    truth = graph.one_hot(labels, classes)
    if smoothing:
        truth = graph.add(graph.scale(truth, 1 - smoothing), graph.scalar(smoothing / classes))
    likelihood = graph.sum(graph.multiply(truth, graph.log_softmax(logits)), 1, keep=True)
    return Cost(graph.multiply(likelihood, graph.scalar(-1)), graph.subtract(graph.softmax(logits), truth))


def _sigmoid(graph: Graph, logits: Tensor, targets: Tensor) -> Cost:
    """max(z, 0) - z·t + ln(1 + e⁻ᶻ), the last for |z|: no exponential grows."""
    decay = graph.exp(graph.scale(graph.magnitude(logits), -1))
    rest = graph.log(graph.add(decay, graph.scalar(1)))
    losses = graph.add(graph.subtract(graph.relu(logits), graph.multiply(logits, targets)), rest)
    slope = graph.subtract(graph.sigmoid(logits), targets)
    return Cost(_mean(graph, losses), graph.scale(slope, 1 / logits.shape[1]))


def _huber(graph: Graph, outputs: Tensor, targets: Tensor, delta: float) -> Cost:
    """c·r - c²/2 with c = r held within ±delta, which is also the derivative."""
    rest = graph.subtract(outputs, targets)
    held = graph.maximum(graph.minimum(rest, graph.scalar(delta)), graph.scalar(-delta))
    losses = graph.multiply(held, graph.subtract(rest, graph.scale(held, 0.5)))
    return Cost(_mean(graph, losses), graph.scale(held, 1 / outputs.shape[1]))


def _hinge(graph: Graph, hinge: BatchMeanHinge, outputs: Tensor, batch: Samples, softmax: bool) -> Cost:
    rows, count = outputs.shape
    chosen = graph.one_hot(graph.numbers([hinge.output]), count)
    every = graph.softmax(outputs) if softmax else graph.sigmoid(outputs)
    probability = graph.sum(graph.multiply(every, chosen), 1, keep=True)
    mean = graph.sum(graph.multiply(probability, batch.share), 0, keep=True)
    short = graph.subtract(graph.scalar(hinge.least), mean, RELU)
    over = graph.subtract(mean, graph.scalar(hinge.most), RELU)
    penalty = graph.scale(graph.add(short, over), hinge.weight)
    side = graph.scale(graph.subtract(graph.positive(over), graph.positive(short)), hinge.weight)
    # p'(z) is p·([k] - p_j) for softmax and p·(1 - p) of the chosen output for sigmoid.
    rest = graph.subtract(chosen, every)
    steep = graph.multiply(probability, rest if softmax else graph.multiply(rest, chosen))
    return Cost(graph.spread(penalty, (rows, 1)), graph.multiply(steep, side))


def hits(graph: Graph, objectives: tuple[Objective, ...], outputs: Tensor, y: Tensor) -> Tensor | None:
    """1 for a right answer: [B] for labels, [B, outputs] for sigmoids; None where there is no right and wrong."""
    first = objectives[0]
    if isinstance(first, SoftmaxCrossEntropy):
        return graph.as_float(graph.equal(graph.argmax(outputs), y))
    if isinstance(first, SigmoidCrossEntropy):
        answer, truth = (graph.positive(graph.subtract(v, graph.scalar(c), RELU)) for v, c in ((outputs, 0), (y, 0.5)))
        return graph.subtract(graph.scalar(1), graph.magnitude(graph.subtract(answer, truth)))
    return None
