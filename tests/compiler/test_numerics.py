"""Compiled training steps against PyTorch.

The rule: after three steps that move the weights by at least 0.01, the error against PyTorch in float64 is at most
3 × the error of PyTorch in float32 + 1e-6 × the largest weight. Samples with a value so near a kink that float32 cannot
tell its side are left out: see :mod:`tests.compiler.kinks`.
"""

from __future__ import annotations

import os
from functools import partial

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from coordinator.compiler.compile import compile_model
from coordinator.compiler.kinds import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv1D,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Gelu,
    GlobalAveragePool,
    GroupNorm,
    Gru,
    LayerNorm,
    LeakyRelu,
    Lstm,
    Relu6,
    Reshape,
    Sigmoid,
    Silu,
    Tanh,
    TransposedConv2D,
)  # fmt: skip
from coordinator.compiler.objectives import (
    BatchMeanHinge,
    Huber,
    MeanSquaredError,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)  # fmt: skip
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import layout, made_axis
from coordinator.compiler.spec import Conv2D, Dense, Flatten, Layer, MaxPool, ModelSpec, ModelSpecError, Relu
from coordinator.compiler.targets import TARGETS, Target
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import Inference, TrainStep, backends
from protocol.subnetwork import FULL, WIDTHS, Subnetwork, nested

from .kinks import Batch, clear
from .oracle import Oracle, part_of

EXAMPLES = int(os.environ.get("SHOAL_EXAMPLES", "15"))
BACKENDS = backends()
RATE = 0.2
CALM = 0.05  # where steps of 0.2 make the loss explode, and any rounding with it

MLP = ModelSpec("mlp", (20,), 4, (Dense(32), Relu(), Dense(16), Relu(), Dense(4)))
CNN = ModelSpec(
    "cnn",
    (9, 8, 1),
    5,
    (
        *(Conv2D(16, (3, 3)), Relu(), MaxPool((2, 2))),
        *(Conv2D(32, (3, 3)), Relu(), MaxPool((2, 2))),
        *(Flatten(), Dense(16), Relu(), Dense(5)),
    ),
)


def model(shape, *layers):
    return ModelSpec("model", shape, 3, (*layers, Dense(3)))


MODELS = {
    "logits only": model((7,)),
    "logits of an image": model((3, 2, 2), Flatten()),
    "relu on the input": model((6,), Relu(), Dense(4), Relu()),
    "pool on the input": model((4, 4, 2), MaxPool((2, 2)), Conv2D(4, (2, 2)), Flatten()),
    "relu after flatten": model((4, 4, 2), Conv2D(3, (3, 3)), Flatten(), Relu()),
    "two rectifiers": model((5,), Dense(8), Relu(), Relu()),
    "pool before relu": model((6, 6, 1), Conv2D(4, (3, 3)), MaxPool((2, 2)), Relu(), Flatten()),
    "no pool, no relu": model((5, 5, 2), Conv2D(4, (3, 3)), Conv2D(4, (3, 3)), Flatten()),
    "one by one": model((5, 4, 6), Conv2D(4, (1, 1)), Relu(), Conv2D(5, (1, 1)), Relu(), Flatten()),
    "wide first kernel": model((7, 7, 3), Conv2D(4, (5, 5)), Relu(), Flatten()),
    "valid": model(
        (9, 7, 1), Conv2D(4, (3, 3), padding="valid"), Relu(), Conv2D(4, (3, 2), (1, 1), "valid"), Flatten()
    ),
    "valid, kernel as large as the image": model((4, 3, 2), Conv2D(5, (4, 3), padding="valid"), Flatten()),
    "stride 2, even": model((8, 8, 1), Conv2D(4, (3, 3), (2, 2)), Relu(), Conv2D(4, (3, 3), (2, 2)), Relu(), Flatten()),
    "stride 2, odd": model((9, 7, 2), Conv2D(4, (3, 3), (2, 2)), Relu(), Conv2D(4, (2, 2), (2, 1)), Flatten()),
    "stride 2, valid": model(
        (9, 8, 1), Conv2D(4, (3, 3), (2, 2), "valid"), Relu(), Conv2D(4, (2, 2), (2, 2), "valid"), Flatten()
    ),
    "stride larger than the kernel": model((9, 9, 2), Conv2D(4, (2, 2)), Conv2D(4, (1, 1), (3, 2)), Flatten()),
    "kernel larger than the image": model((2, 1, 2), Conv2D(4, (3, 3)), Relu(), Conv2D(4, (5, 3)), Flatten()),
    "signal": model(
        (1, 24, 3), Conv2D(4, (1, 5)), Relu(), MaxPool((1, 2)), Conv2D(6, (1, 5)), MaxPool((1, 3)), Flatten()
    ),
    "pool 3 by 2 with a rest": model((8, 7, 2), Conv2D(4, (3, 3)), Relu(), MaxPool((3, 2)), Flatten()),
    "pool 1 by 4": model((3, 9, 2), Conv2D(4, (3, 3)), MaxPool((1, 4)), Flatten()),
    "pool twice": model((8, 8, 2), Conv2D(4, (3, 3)), MaxPool((2, 2)), Relu(), MaxPool((2, 2)), Flatten()),
    "strided, filters in blocks": model((8, 8, 4), Conv2D(8, (3, 3)), Relu(), Conv2D(6, (3, 3), (2, 2)), Flatten()),
    "stride 3 by 2 of a long kernel": model(
        (9, 11, 3), Relu(), Conv2D(4, (2, 1)), Conv2D(5, (4, 5), (3, 2)), Flatten()
    ),
    "conv1d": model((24, 3), Conv1D(4, 5), Relu(), MaxPool((2,)), Conv1D(6, 4, 2, "valid"), Tanh(), Flatten()),
    "depthwise": model(
        (6, 5, 2), Conv2D(4, (1, 1)), DepthwiseConv2D((3, 3)), Relu(), DepthwiseConv2D((2, 3)), Flatten()
    ),
    "depthwise, strided": model(
        (9, 8, 2),
        Conv2D(4, (3, 3)),
        DepthwiseConv2D((3, 3), (2, 2)),
        DepthwiseConv2D((3, 2), (1, 2), "valid"),
        Flatten(),
    ),
    "depthwise, stride larger than the kernel": model((9, 8, 3), DepthwiseConv2D((1, 2), (2, 3)), Flatten()),
    "depthwise on the input, no bias": model((5, 5, 3), DepthwiseConv2D((3, 3), bias=False), Relu(), Flatten()),
    "transposed": model((3, 4, 2), Conv2D(3, (1, 1)), TransposedConv2D(4, (3, 3), (2, 2)), Relu(), Flatten()),
    "transposed, no blocks": model((5, 3, 2), TransposedConv2D(3, (1, 2)), TransposedConv2D(4, (2, 3)), Flatten()),
    "transposed, valid": model(
        (3, 2, 2), TransposedConv2D(4, (2, 3), (2, 1), "valid"), TransposedConv2D(2, (3, 3)), Flatten()
    ),
    "transposed, stride larger than the kernel": model(
        (3, 2, 2), Relu(), TransposedConv2D(3, (2, 2), (3, 3)), Flatten()
    ),
    "average pool": model((7, 8, 2), Conv2D(4, (3, 3)), AveragePool((2, 3)), Relu(), Flatten()),
    "average pool of a signal": model((9, 2), Conv1D(4, 3), AveragePool((2,)), Flatten()),
    "global average": model((5, 4, 2), Conv2D(4, (3, 3)), Relu(), GlobalAveragePool()),
    "global average of a signal": model((5, 4), Conv1D(4, 3), GlobalAveragePool()),
    "relu6": model((5,), Dense(24), Relu6()),
    "leaky relu": model((5,), Dense(24), LeakyRelu(0.1)),
    "sigmoid": model((5,), Dense(24), Sigmoid()),
    "tanh": model((5,), Dense(24), Tanh()),
    "gelu": model((5,), Dense(24), Gelu()),
    "silu": model((5,), Dense(24), Silu()),
    "reshape": model((12,), Dense(24), Reshape((2, 3, 4)), Conv2D(4, (2, 2)), Reshape((6, 4)), Conv1D(2, 3), Flatten()),
    "residual": model(
        (4, 4, 2),
        Conv2D(4, (3, 3), name="a"),
        Relu(name="r"),
        Conv2D(4, (3, 3), name="b"),
        Add(("r", "b")),
        Relu(),
        Flatten(),
    ),
    "residual to the input": model((4, 4, 4), Conv2D(4, (3, 3), name="a"), Add(("input", "a", "a")), Flatten()),
    "concat": model(
        (4, 4, 2),
        Conv2D(4, (3, 3), name="a"),
        Conv2D(2, (1, 1), input="input", name="b"),
        Concat(("a", "b", "a")),
        DepthwiseConv2D((3, 3)),
        GroupNorm(groups=2),
        Conv2D(3, (3, 3)),
        Flatten(),
    ),
    "concat of rows": model(
        (6,), Dense(4, name="a"), Dense(3, input="input", name="b"), Concat(("b", "input", "a")), LayerNorm(), Tanh()
    ),
    "concat, then flatten": model(
        (2, 3, 2), Conv2D(4, (1, 1), name="a"), Conv2D(6, (1, 1), name="b"), Concat(("a", "b")), Flatten(), Dense(5)
    ),
    "batch norm": model(
        (4, 4, 2), Conv2D(4, (3, 3), bias=False), BatchNorm(), Relu(), Conv2D(4, (3, 3)), BatchNorm(), Flatten()
    ),
    "batch norm of rows and signals": model(
        (9, 2), Conv1D(4, 3), BatchNorm(), Flatten(), Dense(4), BatchNorm(), Relu()
    ),
    "batch norm of the input": model((6,), BatchNorm(), Dense(5), Relu()),
    "group norm": model((4, 4, 2), Conv2D(8, (3, 3)), GroupNorm(groups=4), Relu(), Flatten()),
    "group norm of rows": model((6,), Dense(8), GroupNorm(groups=2), Relu()),
    "layer norm": model((4, 4, 2), Conv2D(8, (3, 3)), LayerNorm(), Relu(), Flatten(), LayerNorm()),
    "dropout": model((6,), Dense(24), Relu(), Dropout(rate=0.4), Dense(8), Dropout(rate=0)),
    "embedding": model((5,), Embedding(vocabulary=7, size=4), Conv1D(4, 3), Relu(), Flatten()),
    "embedding of neighbours": model((5,), Embedding(7, 4), GlobalAveragePool()),
    "lstm": model((6, 3), Lstm(5)),
    "lstm of sequences": model((6, 3), Lstm(4, sequences=True), Lstm(3, True), Flatten()),
    "lstm of one step": model((1, 3), Lstm(4)),
    "gru": model((6, 3), Gru(5)),
    "gru of sequences": model((6, 3), Gru(4, True), Gru(3, True), GlobalAveragePool()),
    "pool of one": model((4, 4, 2), Conv2D(4, (3, 3)), MaxPool((1, 1)), Relu(), Flatten()),
}


LOSSES = {
    "label smoothing": SoftmaxCrossEntropy(0.1),
    "sigmoid": SigmoidCrossEntropy(),
    "mean squared error": MeanSquaredError(),
    "huber": Huber(0.3),
    "hinge beside softmax": (SoftmaxCrossEntropy(), BatchMeanHinge(1, 0.9, 1, 2)),
    "hinge beside sigmoid": (SigmoidCrossEntropy(), BatchMeanHinge(2, 0, 0.1, 1.5)),
    "hinge alone": BatchMeanHinge(0, 0.95),
}
TRAININGS = {
    "momentum": Training(momentum=True),
    "decay": Training(weight_decay=True),
    "clip": Training(clip=True),
    "proximal": Training(proximal=True),
    "class mask": Training(class_mask=True),
    "all": Training(True, True, True, True, True),
}
VALUES = {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.05, "clip": 0.3, "proximal": 0.4}


def samples(spec: ModelSpec, batch: int, number: int = 0, draw: int = 0) -> Batch:
    """The first, second or third batch: grid values, so that windows of the max-pool tie; the third has padded rows."""
    rng = np.random.default_rng([1, number, draw])
    x = np.round(2 * rng.standard_normal((batch, *spec.input))).astype(np.float32) / 2
    if isinstance(spec.layers[0], Embedding):
        x = rng.integers(0, spec.layers[0].vocabulary, x.shape).astype(np.float32)
    if len(spec.input) == 3:
        x[:, : max(1, spec.input[0] // 3)] = draw % 4 / 2  # equal patches
    weight = np.ones(batch, np.float32)
    if number == 1:
        weight = rng.uniform(0.5, 2, batch).astype(np.float32)
    if number == 2 and batch > 1:
        weight[batch // 2 + 1 :] = 0
    labels = rng.integers(0, spec.classes, batch).astype(np.int32)
    targets = rng.integers(0, 2, (batch, spec.classes)).astype(np.float32)
    return x, labels if spec.labelled else targets, weight


def options_of(step: TrainStep, classes: int, rng: np.random.Generator) -> dict[str, float | np.ndarray]:
    """A value for everything a step takes beside the samples."""
    mask = np.arange(classes) % 3 != 1
    chance = {name: rng.random(shape, np.float32) for name, shape in step.options.items() if "/" in name}
    plain = {name: value for name, value in VALUES.items() if name in step.options}
    return chance | plain | ({"class_mask": mask.astype(np.float32)} if "class_mask" in step.options else {})


def check(
    spec: ModelSpec,
    backend: str | list[str],
    subnetwork: Subnetwork = FULL,
    batch: int = 8,
    training: Training | None = None,
    rate: float = RATE,
) -> None:
    """The rule of this page, for one backend or several."""
    start, training = part_of(spec, subnetwork), training or Training()
    exact = Oracle(spec, start, "float64", subnetwork, training)
    single = Oracle(spec, start, "float32", subnetwork, training)
    steps = []
    for name in [backend] if isinstance(backend, str) else backend:
        artifact = compile_model(spec, subnetwork, batch, training=training, target=name)
        steps.append(TrainStep(artifact.for_backend(name), name))
        steps[-1].load(start)
    rng = np.random.default_rng(5)
    for number in range(3):
        exact.options = single.options = options = options_of(steps[0], spec.classes, rng)
        x, y, weight = clear(exact, single, partial(samples, spec, batch, number))
        loss, correct, squared = exact.step(x, y, weight, rate, options)
        single_squared = single.step(x, y, weight, rate, options)[2]
        for step in steps:
            result = step.step(x, y, weight, rate, options)
            assert result.loss_sum == pytest.approx(loss, rel=1e-4, abs=1e-5)
            if number == 0:  # later a rounding may decide between equal logits
                assert result.correct == pytest.approx(correct, rel=1e-6)
                for name, value in result.found.items():
                    np.testing.assert_allclose(value, exact.statistics[name].detach(), rtol=1e-5, atol=1e-5)
            near = 1e-3 if number else 1e-4  # later the weights differ by rounding already, and a norm may amplify it
            allowed = 3 * np.abs(single_squared - squared) + near * squared + 1e-7 * squared.max() + 1e-8
            assert (np.abs(result.squared_gradient - squared) <= allowed).all()
    want, near = exact.weights(), single.weights()
    assert max(np.abs(want[name] - start[name]).max() for name in start) >= 0.01
    reference = max(np.abs(near[name] - want[name]).max() for name in start)
    for step in steps:
        found = step.weights()
        error = max(np.abs(found[name] - want[name]).max() for name in start)
        assert error <= 3 * reference + 1e-6 * max(np.abs(value).max() for value in want.values())


@pytest.mark.parametrize("training", [Training(), Training(momentum=True)], ids=["sgd", "momentum"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spec", ZOO.values(), ids=ZOO)
def test_the_zoo_trains_as_pytorch_does_at_every_width(spec, width, training):
    """The last of three batches is odd: rows of weight 0 fill it up."""
    check(spec, BACKENDS, nested(layout(spec), width), training=training, rate=CALM)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    spec = ModelSpec("m", (6,), 4, (Dense(5), Relu(), Dense(4)), LOSSES[name])
    check(spec, BACKENDS, batch=16)


@pytest.mark.parametrize("name", TRAININGS)
def test_everything_a_step_may_do_beyond_sgd(name):
    spec = ModelSpec("m", (6,), 4, (Dense(5), Relu(), Dense(4)))
    check(spec, BACKENDS, training=TRAININGS[name])


@pytest.mark.parametrize("width", [1, 0.5, 0.25])
def test_the_scaler_of_heterofl(width):
    layers = (Conv2D(6, (3, 3), bias=False), BatchNorm(), Relu(), Flatten(), Dense(8), LayerNorm(), Relu(), Dense(3))
    spec = ModelSpec("m", (4, 4, 2), 3, layers, scaler=True)
    check(spec, BACKENDS, nested(layout(spec), width), rate=CALM)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_trains_as_pytorch_does(name):
    check(MODELS[name], BACKENDS)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_trains_narrow(name):
    check(MODELS[name], BACKENDS, nested(layout(MODELS[name]), 0.5))


@pytest.mark.parametrize("spec", ZOO.values(), ids=ZOO)
def test_models_of_real_size(spec):
    check(spec, BACKENDS, batch=16, rate=2 * CALM)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_other_batches(batch, backend):
    check(CNN, backend, batch=batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_whose_patches_do_not_fit_the_cache_is_sliced(backend, monkeypatch):
    monkeypatch.setitem(TARGETS, backend, Target(patch_bytes=1 << 12))
    check(CNN, backend)
    check(MODELS["stride 2, odd"], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_tensors_are_reshaped_without_a_copy(backend, monkeypatch):
    monkeypatch.setattr("coordinator.compiler.graph._LARGE", 1)
    monkeypatch.setattr("coordinator.compiler.blocked._LARGE", 1)
    check(CNN, backend)
    check(MODELS["strided, filters in blocks"], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_compiled_for_one_runtime_runs_on_all(target, backend, monkeypatch):
    monkeypatch.setitem(TARGETS, backend, TARGETS[target])
    check(MODELS["depthwise"], backend)
    check(MODELS["strided, filters in blocks"], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_listed_channels_train_like_a_prefix_of_the_same_size(backend):
    check(CNN, backend, Subnetwork({"conv1": (5, 1, 9), "dense1": 7}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [(2, 2), (1, 3), (3, 1), (3, 3), (2, 4)])
def test_of_equal_maxima_the_first_in_row_order_gets_the_gradient(window, backend):
    """Small whole numbers make different patches tie, exactly, in any precision."""
    spec = model((7, 8, 2), Conv2D(3, (2, 2), padding="valid"), MaxPool(window), Relu(), Flatten())
    rng = np.random.default_rng(0)
    start = part_of(spec)
    start["conv1.weight"] = rng.integers(-1, 2, start["conv1.weight"].shape).astype(np.float32)
    start["conv1.bias"] = np.zeros(3, np.float32)
    x = rng.integers(0, 2, (8, 7, 8, 2)).astype(np.float32)
    y, weight = np.arange(8, dtype=np.int32) % 3, np.ones(8, np.float32)
    judge = Oracle(spec, start)
    judge.step(x, y, weight, RATE)
    step = TrainStep(compile_model(spec, batch=8).for_backend(backend), backend)
    step.load(start)
    step.step(x, y, weight, RATE)
    for name, value in judge.weights().items():
        np.testing.assert_allclose(step.weights()[name], value, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_padded_rows_change_nothing(spec, backend):
    """Whatever stands in rows of weight 0, the step is bit for bit the same."""
    x, y, _ = samples(spec, 8)
    weight = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    results = []
    for filling in (0.0, 37.0):
        x[5:] = filling
        step = TrainStep(compile_model(spec, batch=8).for_backend(backend), backend)
        step.load(part_of(spec))
        result = step.step(x, y, weight, RATE)
        results.append((result.loss_sum, result.correct, result.squared_gradient, step.weights()))
    np.testing.assert_equal(results[0], results[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_weight_leaves_everything_as_it_is(backend):
    x, y, _ = samples(CNN, 8)
    step = TrainStep(compile_model(CNN, batch=8).for_backend(backend), backend)
    step.load(part_of(CNN))
    result = step.step(x, y, np.zeros(8, np.float32), RATE)
    assert (result.loss_sum, result.correct) == (0, 0)
    assert not result.squared_gradient.any()
    np.testing.assert_equal(step.weights(), part_of(CNN))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_learning_rate_zero_measures_and_leaves_the_weights_bit_equal(spec, backend):
    x, y, weight = samples(spec, 8)
    _, _, squared = Oracle(spec, part_of(spec)).step(x, y, weight, 0)
    step = TrainStep(compile_model(spec, batch=8).for_backend(backend), backend)
    step.load(part_of(spec))
    result = step.step(x, y, weight, 0)
    np.testing.assert_allclose(result.squared_gradient, squared, rtol=1e-4, atol=1e-9)
    np.testing.assert_equal(step.weights(), part_of(spec))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 0.25])
def test_inference_gives_logits_and_what_the_last_layer_sees(width, backend):
    subnetwork = nested(layout(CNN), width)
    weights = part_of(CNN, subnetwork)
    x, _, _ = samples(CNN, 8)
    infer = Inference(compile_model(CNN, subnetwork, 8, "infer").for_backend(backend), backend)
    infer.load(weights)
    logits, features = infer(x)
    np.testing.assert_allclose(logits, Oracle(CNN, weights).forward(x).detach(), rtol=1e-4, atol=1e-5)
    again = features @ weights["dense2.weight"] + weights["dense2.bias"]
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


sizes = st.integers(1, 3)
pairs = st.tuples(sizes, sizes)
paddings = st.sampled_from(["same", "valid"])
anywhere = st.sampled_from([Relu(), Relu6(), LeakyRelu(), Sigmoid(), Tanh(), Gelu(), Silu(), LayerNorm(), BatchNorm()])
on_images = st.one_of(
    st.builds(Conv2D, st.integers(1, 6), pairs, pairs, paddings, bias=st.booleans()),
    st.builds(DepthwiseConv2D, pairs, pairs, paddings, bias=st.booleans()),
    st.builds(TransposedConv2D, st.integers(1, 4), pairs, pairs, paddings),
    st.builds(MaxPool, pairs),
    st.builds(AveragePool, pairs),
)
on_signals = st.one_of(
    st.builds(Conv1D, st.integers(1, 6), sizes, sizes, paddings),
    st.builds(MaxPool, st.tuples(sizes)),
    st.builds(Lstm, st.integers(1, 4), st.booleans()),
    st.builds(Gru, st.integers(1, 4), st.booleans()),
)
on_rows = st.one_of(st.builds(Dense, st.integers(1, 9)), st.builds(Dropout, rate=st.just(0.3)))
BY_RANK = {1: on_rows, 2: on_signals, 3: on_images}


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Small graphs of any layers that fit each other, with residual additions and concatenations."""
    shape: tuple[int, ...] = (*(draw(st.integers(1, 8)) for _ in range(draw(st.integers(0, 2)))), draw(sizes))
    given, known, layers = shape, {"input": shape}, []
    for number in range(draw(st.integers(1, 7))):
        fitting = [name for name, other in known.items() if other == shape and number]
        if len(fitting) > 1 and draw(st.booleans()):
            kind = draw(st.sampled_from([Add, Concat]))
            layer: Layer = kind(tuple(fitting[-2:]), name=f"l{number}")
        else:
            layer = draw(st.one_of(BY_RANK[len(shape)], anywhere))
            layer = attrs.evolve(layer, name=f"l{number}")
        before = [known[name] for name in layer.reads] if isinstance(layer, Add | Concat) else [shape]
        try:
            shape = layer.output(*before)
        except ModelSpecError:
            assume(False)
        known[f"l{number}"] = shape
        layers.append(layer)
    end: list[Layer] = [Flatten()] if len(shape) > 1 else []
    try:
        return ModelSpec("drawn", given, 3, (*layers, *end, Dense(3)))
    except ModelSpecError:
        assume(False)
        raise


def drawn(count: int):
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def check_drawn(spec: ModelSpec, width: float, batch: int) -> None:
    norms = any(isinstance(layer, BatchNorm | LayerNorm) for layer in spec.layers)
    # Of two numbers a norm makes nothing but the sign: what is left is rounding, which no rule judges.
    subnetwork = nested(layout(spec), width)
    for index, layer in enumerate(spec.layers):
        assume(not isinstance(layer, LayerNorm) or subnetwork.size(made_axis(spec, index)) != 2)
    check(spec, BACKENDS, subnetwork, 16 if norms else batch)


@drawn(EXAMPLES)
@given(models(), st.sampled_from(WIDTHS), st.sampled_from([1, 4]))
def test_drawn_models_train_as_pytorch_does(spec, width, batch):
    check_drawn(spec, width, batch)


@pytest.mark.soak
@drawn(200)
@given(models(), st.sampled_from(WIDTHS), st.sampled_from([1, 4]))
def test_two_hundred_drawn_models(spec, width, batch):
    check_drawn(spec, width, batch)
