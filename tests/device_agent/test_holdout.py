"""What a device measures on the samples it keeps out of training."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve

from coordinator.compiler.compile import compile_model
from coordinator.compiler.optimiser import Training
from coordinator.compiler.spec import Dense, ModelSpec
from device_agent.dataset import Dataset
from device_agent.holdout import measure
from device_agent.runtime import TrainStep, backends
from protocol.messages import Plan

SPEC = ModelSpec("m", (2,), 2, (Dense(2),))
PLAN = Plan(width=1.0, batch=2, steps=5, learning_rate=0.1, coding="float32")
WEIGHTS = {"dense1.weight": np.eye(2, dtype=np.float32), "dense1.bias": np.zeros(2, np.float32)}
X = np.array([[3, 0], [0, 3], [3, 0]], np.float32)
RIGHT, WRONG = np.log1p(np.exp(-3)), np.log1p(np.exp(3))


def data(*labels: int) -> Dataset:
    return Dataset(X[: len(labels)], np.array(labels, np.int32), 2)


@pytest.mark.parametrize("backend", backends())
def test_means_over_all_samples_the_last_batch_padded(backend):
    step = TrainStep(compile_model(SPEC, batch=2).for_backend(backend), backend)
    step.load(WEIGHTS)
    found = measure(step, data(0, 1, 1), PLAN)
    assert (found.samples, found.accuracy) == (3, pytest.approx(2 / 3))
    assert found.loss == pytest.approx((2 * RIGHT + WRONG) / 3, rel=1e-5)
    assert np.array_equal(step.weights()["dense1.weight"], WEIGHTS["dense1.weight"])


def test_an_optimiser_moves_nothing():
    plan = evolve(PLAN, momentum=0.9, weight_decay=0.1, clip=1.0)
    training = Training(momentum=True, weight_decay=True, clip=True)
    step = TrainStep(compile_model(SPEC, batch=2, training=training).for_backend("numpy"), "numpy")
    step.load(WEIGHTS)
    assert measure(step, data(0, 1), plan).accuracy == 1.0
    assert np.array_equal(step.weights()["dense1.weight"], WEIGHTS["dense1.weight"])


def test_nothing_is_told_of_no_samples_or_of_a_model_that_broke():
    step = TrainStep(compile_model(SPEC, batch=2).for_backend("numpy"), "numpy")
    step.load(WEIGHTS)
    assert measure(step, data(), PLAN) is None
    step.load({**WEIGHTS, "dense1.bias": np.array([np.nan, 0], np.float32)})
    assert measure(step, data(0, 1), PLAN) is None
