"""What training makes small: the losses a model may name.

A loss is the mean over samples, each with its weight; several of them are added.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from . import fields
from .fields import SPARSE


@frozen
class Objective:
    """``labels`` tells whether ``y`` holds one class number per sample or one target per output."""

    kind: ClassVar[str]
    labels: ClassVar[bool] = False


@frozen
class SoftmaxCrossEntropy(Objective):
    """Cross-entropy of softmax(logits) and the label; ``label_smoothing`` ε mixes in the uniform distribution."""

    kind: ClassVar[str] = "softmax_cross_entropy"
    labels: ClassVar[bool] = True
    label_smoothing: float = field(default=0.0, validator=fields.number(0, 1), metadata=SPARSE)


@frozen
class SigmoidCrossEntropy(Objective):
    """Binary cross-entropy of sigmoid(logits) and targets in [0, 1], mean over outputs."""

    kind: ClassVar[str] = "sigmoid_cross_entropy"


@frozen
class MeanSquaredError(Objective):
    """Squared difference of outputs and targets, mean over outputs."""

    kind: ClassVar[str] = "mean_squared_error"


@frozen
class Huber(Objective):
    """r²/2 where |r| ≤ delta, else delta·(|r| - delta/2); mean over outputs (Huber, 1964)."""

    kind: ClassVar[str] = "huber"
    delta: float = field(default=1.0, validator=fields.number(1e-6, 1e6))


@frozen
class BatchMeanHinge(Objective):
    """weight·(max(0, least - p) + max(0, p - most)), p the batch's mean probability of one output.

    A constraint on coverage. The probability is softmax's beside a softmax cross-entropy, otherwise sigmoid's.
    """

    kind: ClassVar[str] = "batch_mean_hinge"
    output: int = field(default=0, validator=fields.index)
    least: float = field(default=0.0, validator=fields.number(0, 1))
    most: float = field(default=1.0, validator=fields.number(0, 1))
    weight: float = field(default=1.0, validator=fields.number(0, 1e6))


OBJECTIVES: dict[str, type[Objective]] = {
    cls.kind: cls for cls in (SoftmaxCrossEntropy, SigmoidCrossEntropy, MeanSquaredError, Huber, BatchMeanHinge)
}
