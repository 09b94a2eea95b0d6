"""What a model reaches on the samples that a device keeps out of training."""

from __future__ import annotations

import math

import numpy as np

from protocol.messages import Holdout, Plan

from .dataset import Dataset
from .trainer import Step, values


def measure(step: Step, dataset: Dataset, plan: Plan) -> Holdout | None:
    """Mean loss and accuracy over ``dataset`` of the weights that ``step`` holds; None if there is no finite loss.

    They are those of training: batch statistics where there are norms, and dropout drops. At learning rate 0 no weight
    moves, but a velocity may: load the step anew before training.
    """
    rng = np.random.default_rng(0)
    planned = values(plan, step.options)
    drawn = {name: shape for name, shape in step.options.items() if name not in planned}
    loss = correct = 0.0
    for start in range(0, len(dataset), step.batch):
        there = np.arange(start, min(start + step.batch, len(dataset)))
        indices = np.zeros(step.batch, np.intp)
        indices[: len(there)] = there
        sample_weight = (np.arange(step.batch) < len(there)).astype(np.float32)
        chances = {name: rng.random(shape, np.float32) for name, shape in drawn.items()}
        outcome = step.step(*dataset.batch(indices), sample_weight, 0.0, {**planned, **chances})
        loss += outcome.loss_sum
        correct += outcome.correct
    if not len(dataset) or not math.isfinite(loss):
        return None
    accuracy = min(max(correct / len(dataset), 0.0), 1.0)
    return Holdout(samples=len(dataset), loss=min(max(loss / len(dataset), -1e30), 1e30), accuracy=accuracy)
