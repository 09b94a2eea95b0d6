"""Softmax cross-entropy with a weight per sample.

Rows that only pad a batch have weight 0 and change nothing. Labels must lie in 0 … classes-1; that is not
checked here: a label outside selects no class, so its row counts no loss and still pulls on the weights.
"""

from __future__ import annotations

from attrs import frozen

from .graph import Graph, Tensor

_TINY = 1e-30  # stands in for a sum of weights that is zero


@frozen
class Loss:
    """``loss_sum`` [1] = Σ w·l, ``correct`` [1] = Σ w·[hit], ``gradient`` of Σ w·l / Σ w by the logits."""

    loss_sum: Tensor
    correct: Tensor
    gradient: Tensor


def cross_entropy(graph: Graph, logits: Tensor, labels: Tensor, weight: Tensor) -> Loss:
    """The loss of ``logits`` [B, classes] for ``labels`` [B] int32 and sample weights ``weight`` [B] ≥ 0."""
    batch, classes = logits.shape
    truth = graph.one_hot(labels, classes)
    column = graph.reshape(weight, (batch, 1))

    likelihood = graph.sum(graph.multiply(truth, graph.log_softmax(logits)), 1, keep=True)
    negative = graph.multiply(column, graph.scalar(-1))
    loss_sum = graph.sum(graph.multiply(likelihood, negative), 0)

    hit = graph.as_float(graph.equal(graph.argmax(logits), labels))
    correct = graph.sum(graph.multiply(hit, weight), 0, keep=True)

    total = graph.maximum(graph.sum(weight, 0, keep=True), graph.scalar(_TINY))
    share = graph.divide(column, total)
    gradient = graph.multiply(graph.subtract(graph.softmax(logits), truth), share)
    return Loss(loss_sum, correct, gradient)
