"""Signatures against each other and against PyTorch: sums that add, halves that make a whole, counts per class."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.compiler.compile import CompileError, compile_model
from coordinator.compiler.kinds import (
    Add,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    MaxPool,
    Relu,
)  # fmt: skip
from coordinator.compiler.objectives import BatchMeanHinge, Huber, SigmoidCrossEntropy
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec, ModelSpecError
from device_agent.runtime import Inference, Session, TrainStep, backends
from protocol.subnetwork import FULL, nested

from .oracle import Oracle, part_of

BACKENDS = backends()
SPEC = ModelSpec(
    "m",
    (6, 6, 2),
    3,
    (
        *(Conv2D(4, (3, 3)), Relu(), MaxPool((2, 2)), Conv2D(5, (3, 3), name="cut"), GroupNorm(groups=1), Relu()),
        *(Flatten(), Dense(7), Relu(name="end"), Dense(3)),
    ),
)
NORMED = ModelSpec("n", (4, 4, 2), 3, (Conv2D(4, (3, 3)), BatchNorm(), Relu(name="cut"), GlobalAveragePool(), Dense(3)))
RATE = 0.1

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def samples(spec: ModelSpec, batch: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2, batch).astype(np.float32)
    weight[-1] = 0
    x = rng.standard_normal((batch, *spec.input)).astype(np.float32)
    return x, rng.integers(0, spec.classes, batch).astype(np.int32), weight


def session(spec, backend, signature, weights, batch=8, subnetwork=FULL, **more):
    made = Session(compile_model(spec, subnetwork, batch, signature, **more).for_backend(backend), backend)
    made.load({name: value for name, value in weights.items() if name in made.shapes})
    return made


@pytest.mark.parametrize("width", [1, 0.5])
def test_sums_of_gradients_make_the_step(backend, width):
    """w - rate·Σ sw·g / Σ sw is what a training step puts out, and the sums of two halves are those of the whole."""
    subnetwork = nested(layout(SPEC), width)
    weights = part_of(SPEC, subnetwork)
    x, y, weight = samples(SPEC, 8)
    grad = session(SPEC, backend, "grad", weights, 4, subnetwork)
    halves = [
        grad.run({"x": x[part], "y": y[part], "sample_weight": weight[part]}) for part in (slice(0, 4), slice(4, 8))
    ]
    total = {name: halves[0][name] + halves[1][name] for name in halves[0]}
    step = TrainStep(compile_model(SPEC, subnetwork, 8).for_backend(backend), backend)
    step.load(weights)
    result = step.step(x, y, weight, RATE)
    assert total["weight_sum"][0] == pytest.approx(weight.sum())
    assert total["loss_sum"][0] == pytest.approx(result.loss_sum, rel=1e-5)
    assert total["correct"][0] == pytest.approx(result.correct)
    for number, (name, new) in enumerate(step.weights().items()):
        mean = total[f"gradient/{name}"] / total["weight_sum"]
        assert mean.shape == (new.size,)
        np.testing.assert_allclose(weights[name].reshape(-1) - RATE * mean, new.reshape(-1), rtol=1e-5, atol=1e-6)
        assert (mean**2).sum() == pytest.approx(result.squared_gradient[number], rel=1e-4, abs=1e-10)


def test_the_squared_gradient_of_a_batch_of_sums_is_that_of_its_mean(backend):
    weights = part_of(SPEC)
    x, y, weight = samples(SPEC, 8)
    found = session(SPEC, backend, "grad", weights).run({"x": x, "y": y, "sample_weight": weight})
    squared = Oracle(SPEC, weights).step(x, y, weight, 0)[2]
    np.testing.assert_allclose(found["squared_gradient"], squared, rtol=1e-4, atol=1e-9)


def test_evaluation_counts_per_class(backend):
    weights = part_of(SPEC)
    x, y, weight = samples(SPEC, 8)
    found = session(SPEC, backend, "evaluate", weights).run({"x": x, "y": y, "sample_weight": weight})
    judge = Oracle(SPEC, weights)
    right = judge.forward(x).detach().numpy().argmax(1) == y
    for kind in range(3):
        assert found["count"][kind] == pytest.approx(weight[y == kind].sum())
        assert found["correct"][kind] == pytest.approx(weight[(y == kind) & right].sum())
    assert found["loss_sum"][0] == pytest.approx(judge.step(x, y, weight, 0)[0], rel=1e-5)


def test_evaluation_of_targets_counts_per_output(backend):
    spec = ModelSpec("s", (4,), 3, (Dense(3),), SigmoidCrossEntropy())
    weights = part_of(spec)
    x, _, weight = samples(spec, 8)
    y = (np.random.default_rng(1).random((8, 3)) > 0.5).astype(np.float32)
    found = session(spec, backend, "evaluate", weights).run({"x": x, "y": y, "sample_weight": weight})
    right = (Oracle(spec, weights).forward(x).detach().numpy() > 0) == (y > 0.5)
    np.testing.assert_allclose(found["correct"], (weight[:, None] * right).sum(0), rtol=1e-6)
    np.testing.assert_allclose(found["count"], [weight.sum()] * 3, rtol=1e-6)
    plain = ModelSpec("h", (4,), 3, (Dense(3),), Huber())
    assert "correct" not in session(plain, backend, "evaluate", weights).run({"x": x, "y": y, "sample_weight": weight})


@pytest.mark.parametrize("training", [Training(), Training(momentum=True)], ids=["sgd", "momentum"])
@pytest.mark.parametrize("spec", [SPEC, NORMED], ids=["plain", "batch norm"])
def test_two_halves_train_as_the_whole_does(backend, spec, training):
    """front, back_train, front_backward in turn give the weights and squared gradients of train."""
    weights = part_of(spec)
    x, y, weight = samples(spec, 8)
    options = {"momentum": 0.9, "dampening": 0.5} if training.momentum else {}
    whole = TrainStep(compile_model(spec, batch=8, training=training).for_backend(backend), backend)
    whole.load(weights)
    wanted = whole.step(x, y, weight, RATE, options)
    extra = {"sample_weight": weight} if spec is NORMED else {}
    front = session(spec, backend, "front", weights, cut="cut")
    cut = front.run({"x": x, **extra})["cut"]
    compiled = compile_model(spec, batch=8, signature="back_train", training=training, cut="cut")
    back = TrainStep(compiled.for_backend(backend), backend)
    back.load({name: weights[name] for name in back.shapes})
    result = back.step(cut, y, weight, RATE, options)
    assert result.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-6)
    backward = session(spec, backend, "front_backward", weights, cut="cut", training=training)
    zeros = {f"momentum/{n}": np.zeros(s, np.float32) for n, s in backward.shapes.items()} if training.momentum else {}
    given = {"x": x, "cut_gradient": result.found["cut_gradient"], "learning_rate": RATE, **extra, **zeros, **options}
    found = backward.run(given)
    moved = {name: found[f"new/{name}"] for name in backward.shapes} | back.weights()
    assert moved.keys() == weights.keys()
    for name, value in whole.weights().items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-5, atol=1e-6)
    squares = np.concatenate([found["squared_gradient"], result.squared_gradient])
    np.testing.assert_allclose(squares, wanted.squared_gradient, rtol=1e-4, atol=1e-8)


def test_a_narrow_cut_passes_narrow_activations(backend):
    subnetwork = nested(layout(SPEC), 0.5)
    front = session(SPEC, backend, "front", part_of(SPEC, subnetwork), 8, subnetwork, cut="cut")
    assert front.run({"x": samples(SPEC, 8)[0]})["cut"].shape == (8, 3, 3, 3)


def test_inference_normalises_by_the_statistics_it_is_given(backend):
    """Those of a training step over the same rows give the same logits."""
    weights = part_of(NORMED)
    x, y, _ = samples(NORMED, 8)
    step = TrainStep(compile_model(NORMED, batch=8).for_backend(backend), backend)
    step.load(weights)
    statistics = step.step(x, y, np.ones(8, np.float32), 0).found
    infer = Inference(compile_model(NORMED, batch=8, signature="infer").for_backend(backend), backend)
    assert infer.statistics == {"statistic/batch_norm1.mean": (4,), "statistic/batch_norm1.variance": (4,)}
    infer.load(weights, statistics)
    np.testing.assert_allclose(infer(x)[0], Oracle(NORMED, weights).forward(x).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"by statistics of its data: 'statistic/batch_norm1.mean' is missing"):
        infer.load(weights)


def test_padded_rows_leave_a_batch_norm_as_it_is(backend):
    x, y, _ = samples(NORMED, 8)
    weight = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    ends = []
    for filling in (0.0, 37.0):
        x[5:] = filling
        step = TrainStep(compile_model(NORMED, batch=8).for_backend(backend), backend)
        step.load(part_of(NORMED))
        result = step.step(x, y, weight, RATE)
        ends.append((step.weights(), result.found, result.squared_gradient))
    np.testing.assert_equal(ends[0], ends[1])


def test_dropout_acts_while_training_only(backend):
    spec = ModelSpec("d", (4,), 3, (Dropout(rate=0.25), Dense(3)))
    weights = part_of(spec)
    x, y, weight = samples(spec, 8)
    infer = Inference(compile_model(spec, batch=8, signature="infer").for_backend(backend), backend)
    infer.load(weights)
    np.testing.assert_allclose(infer(x)[0], x @ weights["dense1.weight"] + weights["dense1.bias"], rtol=1e-4, atol=1e-5)
    step = TrainStep(compile_model(spec, batch=8).for_backend(backend), backend)
    step.load(weights)
    assert step.options == {"dropout/dropout1": (8, 4)}
    all_dropped = step.step(x, y, weight, 0, {"dropout/dropout1": 0.0})
    assert all_dropped.squared_gradient[0] == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"signature": "front"}, "signature front needs the name of the layer to cut behind"),
        ({"cut": "cut"}, "signature train is not cut; front, front_backward, back_train are"),
        (
            {"signature": "front", "cut": "dense2"},
            "cannot be cut behind 'dense2': both halves need layers with weights",
        ),
    ],
)
def test_cuts_that_cannot_be_made(backend, change, sentence):
    with pytest.raises(CompileError, match=sentence):
        compile_model(SPEC, batch=8, **change)


def test_a_cut_through_a_shortcut_is_refused(backend):
    layers = (Conv2D(2, (3, 3), name="a"), Conv2D(2, (3, 3), name="b"), Add(("a", "b")), Flatten(), Dense(3))
    spec = ModelSpec("r", (4, 4, 2), 3, layers)
    with pytest.raises(CompileError, match=r"cut behind 'b': layer 2 \(add\) reads across the cut"):
        compile_model(spec, batch=8, signature="front", cut="b")
    with pytest.raises(ModelSpecError, match="has no layer named 'z'"):
        compile_model(spec, batch=8, signature="front", cut="z")


def test_what_does_not_go_together(backend):
    hinged = ModelSpec("h", (4,), 3, (Dense(3),), BatchMeanHinge(0, 0.5))
    with pytest.raises(CompileError, match="sums that add over batches, which a batch_mean_hinge does not"):
        compile_model(hinged, signature="grad")
    with pytest.raises(CompileError, match="a class mask needs a loss over classes"):
        compile_model(hinged, training=Training(class_mask=True))
    scaled = ModelSpec("s", (4,), 3, (Dense(8), Relu(), Dense(3)), scaler=True)
    compile_model(scaled)
    with pytest.raises(CompileError, match="without normalisation layers diverge: add batch_norm"):
        compile_model(scaled, nested(layout(scaled), 0.5))
