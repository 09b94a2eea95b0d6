"""Compiled training steps against PyTorch.

The rule: after three steps that move the weights by at least 0.01, the error against PyTorch in float64 is at most
3 × the error of PyTorch in float32 + 1e-6 × the largest weight.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import Conv2D, Dense, Flatten, Layer, MaxPool, ModelSpec, ModelSpecError, Relu
from coordinator.compiler.targets import TARGETS, Target
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import Inference, TrainStep, backends
from protocol.subnetwork import FULL, WIDTHS, Subnetwork, nested

from .oracle import Oracle, part_of

EXAMPLES = int(os.environ.get("SHOAL_EXAMPLES", "15"))
BACKENDS = backends()
RATE = 0.2

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
    "pool of one": model((4, 4, 2), Conv2D(4, (3, 3)), MaxPool((1, 1)), Relu(), Flatten()),
}


def batches(spec: ModelSpec, batch: int, seed: int = 1):
    """Three batches of grid values, so that windows of the max-pool tie, the last with padded rows."""
    rng = np.random.default_rng(seed)
    for number in range(3):
        x = np.round(2 * rng.standard_normal((batch, *spec.input))).astype(np.float32) / 2
        if len(spec.input) == 3:
            x[:, : max(1, spec.input[0] // 3)] = 0
        weight = np.ones(batch, np.float32)
        if number == 1:
            weight = rng.uniform(0.5, 2, batch).astype(np.float32)
        if number == 2 and batch > 1:
            weight[batch // 2 + 1 :] = 0
        yield x, rng.integers(0, spec.classes, batch).astype(np.int32), weight


def check(spec: ModelSpec, backend: str, subnetwork: Subnetwork = FULL, batch: int = 8) -> None:
    start = part_of(spec, subnetwork)
    exact, single = Oracle(spec, start, "float64"), Oracle(spec, start, "float32")
    step = TrainStep(compile_model(spec, subnetwork, batch).content, backend)
    step.load(start)
    for number, (x, y, weight) in enumerate(batches(spec, batch)):
        loss, correct, squared = exact.step(x, y, weight, RATE)
        single_squared = single.step(x, y, weight, RATE)[2]
        result = step.step(x, y, weight, RATE)
        assert result.loss_sum == pytest.approx(loss, rel=1e-4, abs=1e-5)
        if number == 0:  # later a rounding may decide between equal logits
            assert result.correct == pytest.approx(correct, rel=1e-6)
        allowed = 3 * np.abs(single_squared - squared) + 1e-4 * squared + 1e-9
        assert (np.abs(result.squared_gradient - squared) <= allowed).all()
    found, want, near = step.weights(), exact.weights(), single.weights()
    assert max(np.abs(want[name] - start[name]).max() for name in start) >= 0.01
    error = max(np.abs(found[name] - want[name]).max() for name in start)
    reference = max(np.abs(near[name] - want[name]).max() for name in start)
    assert error <= 3 * reference + 1e-6 * max(np.abs(value).max() for value in want.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_every_width_trains_as_pytorch_does(spec, width, backend):
    check(spec, backend, nested(layout(spec), width))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_trains_as_pytorch_does(name, backend):
    check(MODELS[name], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", ZOO.values(), ids=ZOO)
def test_models_of_real_size(spec, backend):
    check(spec, backend, batch=32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_other_batches(batch, backend):
    check(CNN, backend, batch=batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_whose_patches_do_not_fit_the_cache_is_sliced(backend, monkeypatch):
    monkeypatch.setitem(TARGETS, "litert", Target(patch_bytes=1 << 14))
    check(CNN, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_tensors_are_reshaped_without_a_copy(backend, monkeypatch):
    monkeypatch.setattr("coordinator.compiler.graph._LARGE", 1)
    check(CNN, backend)


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
    step = TrainStep(compile_model(spec, batch=8).content, backend)
    step.load(start)
    step.step(x, y, weight, RATE)
    for name, value in judge.weights().items():
        np.testing.assert_allclose(step.weights()[name], value, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_padded_rows_change_nothing(spec, backend):
    """Whatever stands in rows of weight 0, the step is bit for bit the same."""
    x, y, _ = next(batches(spec, 8))
    weight = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    results = []
    for filling in (0.0, 37.0):
        x[5:] = filling
        step = TrainStep(compile_model(spec, batch=8).content, backend)
        step.load(part_of(spec))
        result = step.step(x, y, weight, RATE)
        results.append((result.loss_sum, result.correct, result.squared_gradient, step.weights()))
    np.testing.assert_equal(results[0], results[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_weight_leaves_everything_as_it_is(backend):
    x, y, _ = next(batches(CNN, 8))
    step = TrainStep(compile_model(CNN, batch=8).content, backend)
    step.load(part_of(CNN))
    result = step.step(x, y, np.zeros(8, np.float32), RATE)
    assert (result.loss_sum, result.correct) == (0, 0)
    assert not result.squared_gradient.any()
    np.testing.assert_equal(step.weights(), part_of(CNN))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [MLP, CNN], ids=["mlp", "cnn"])
def test_learning_rate_zero_measures_and_leaves_the_weights_bit_equal(spec, backend):
    x, y, weight = next(batches(spec, 8))
    _, _, squared = Oracle(spec, part_of(spec)).step(x, y, weight, 0)
    step = TrainStep(compile_model(spec, batch=8).content, backend)
    step.load(part_of(spec))
    result = step.step(x, y, weight, 0)
    np.testing.assert_allclose(result.squared_gradient, squared, rtol=1e-4, atol=1e-9)
    np.testing.assert_equal(step.weights(), part_of(spec))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 0.25])
def test_inference_gives_logits_and_what_the_last_layer_sees(width, backend):
    subnetwork = nested(layout(CNN), width)
    weights = part_of(CNN, subnetwork)
    x, _, _ = next(batches(CNN, 8))
    infer = Inference(compile_model(CNN, subnetwork, 8, "infer").content, backend)
    infer.load(weights)
    logits, features = infer(x)
    np.testing.assert_allclose(logits, Oracle(CNN, weights).forward(x).detach(), rtol=1e-4, atol=1e-5)
    again = features @ weights["dense2.weight"] + weights["dense2.bias"]
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


sizes = st.integers(1, 3)
pairs = st.tuples(sizes, sizes)
image_layers = st.one_of(
    st.builds(Conv2D, st.integers(1, 6), pairs, pairs, st.sampled_from(["same", "valid"])),
    st.builds(MaxPool, pairs),
    st.just(Relu()),
)
flat_layers = st.one_of(st.builds(Dense, st.integers(1, 9)), st.just(Relu()))


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Small models of any layers that fit each other."""
    tail = draw(st.lists(flat_layers, max_size=3))
    layers: list[Layer] = [*tail, Dense(3)]
    if draw(st.booleans()):
        shape: tuple[int, ...] = (draw(st.integers(1, 9)),)
    else:
        shape = (draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(sizes))
        layers = [*draw(st.lists(image_layers, min_size=1, max_size=4)), Flatten(), *layers]
    try:
        return ModelSpec("drawn", shape, 3, tuple(layers))
    except ModelSpecError:
        assume(False)
        raise


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(models(), st.sampled_from(WIDTHS), st.sampled_from(BACKENDS), st.sampled_from([1, 4]))
def test_drawn_models_train_as_pytorch_does(spec, width, backend, batch):
    check(spec, backend, nested(layout(spec), width), batch)
