"""What members may have computed for them, off the steward's thread: named functions of numbers."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.errors import ShoalError
from coordinator.strategies import adsp, adsp_fit
from coordinator.training.core import Question
from coordinator.training.effects import EVALUATE
from coordinator.training.evaluation import Evaluation
from protocol.weights import Weights

Arguments = dict[str, tuple[float, ...]]

COMPUTATIONS: dict[str, Callable[[Arguments], dict[str, float]]] = {adsp.FIT: adsp_fit.ratio}
"""By name; pure, and finite numbers come back. One that raises is answered with ``failed`` = 1."""


def found(question: Question, evaluation: Evaluation | None, version: int, weights: Weights) -> dict[str, float]:
    """The answer to a question that was asked when the model was ``weights`` of ``version``; raises what goes wrong."""
    if question.computation != EVALUATE:
        return COMPUTATIONS[question.computation](question.arguments)
    if evaluation is None:
        raise ShoalError("bad-dataset", "The run has no control set any more")
    accuracy, loss = evaluation.control(weights)
    return {"version": version, "accuracy": accuracy, "loss": loss}
