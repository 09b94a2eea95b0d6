"""Running artifacts: what goes in, what comes out, what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from coordinator.compiler.compile import compile_model
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import initial_weights
from coordinator.compiler.spec import Dense, ModelSpec, Relu
from device_agent import runtime
from device_agent.runtime import ArtifactError, Inference, RuntimeUnavailable, Session, TrainStep, backends

SPEC = ModelSpec("m", (2,), 2, (Dense(2),))
DEEP = ModelSpec("deep", (3,), 2, (Dense(4), Relu(), Dense(2)))
TRAIN = compile_model(SPEC, batch=2)
INFER = compile_model(SPEC, batch=4, signature="infer")
ZERO = {"dense1.weight": np.zeros((2, 2), np.float32), "dense1.bias": np.zeros(2, np.float32)}
X = np.array([[1, 0], [0, 2]], np.float32)
Y = np.array([0, 1], np.int32)
ONES = np.ones(2, np.float32)

pytestmark = pytest.mark.parametrize("backend", backends())


def loaded(backend):
    step = TrainStep(TRAIN.for_backend(backend or "litert"), backend)
    step.load(ZERO)
    return step


def test_one_step_by_hand(backend):
    """Zero weights give p = 1/2, so d(mean loss)/d(logits) is ±1/4 and the loss of either row is ln 2."""
    step = loaded(backend)
    result = step.step(X, Y, ONES, 1.0)
    assert result.loss_sum == pytest.approx(2 * np.log(2))
    assert result.correct == 1  # of equal logits the first counts as the answer
    np.testing.assert_allclose(result.squared_gradient, [2 * 0.25**2 + 2 * 0.5**2, 0], atol=1e-7)
    np.testing.assert_allclose(step.weights()["dense1.weight"], [[0.25, -0.25], [-0.5, 0.5]], atol=1e-7)
    np.testing.assert_allclose(step.weights()["dense1.bias"], [0, 0], atol=1e-7)


def test_weights_of_samples_weigh(backend):
    """Loss and hits are sums of weights, the gradient is that of the weighted mean: 3/4 and 1/4 of ±1/2."""
    step = loaded(backend)
    result = step.step(X, Y, np.array([3, 1], np.float32), 1.0)
    assert result.loss_sum == pytest.approx(4 * np.log(2))
    assert result.correct == 3
    np.testing.assert_allclose(step.weights()["dense1.bias"], [0.25, -0.25], atol=1e-7)


def test_a_step_starts_where_the_last_one_ended(backend):
    step = loaded(backend)
    losses = [step.step(X, Y, ONES, 1.0).loss_sum for _ in range(20)]
    assert losses == sorted(losses, reverse=True)
    after = step.weights()
    restarted = TrainStep(TRAIN.for_backend(backend), backend)
    restarted.load(after)
    assert restarted.step(X, Y, ONES, 1.0) is not None
    step.step(X, Y, ONES, 1.0)
    np.testing.assert_equal(restarted.weights(), step.weights())


def test_weights_are_copies(backend):
    step = loaded(backend)
    kept = step.weights()
    kept["dense1.weight"][:] = 9
    step.step(X, Y, ONES, 1.0)
    np.testing.assert_allclose(step.weights()["dense1.bias"], [0, 0], atol=1e-7)
    assert (kept["dense1.weight"] == 9).all()
    assert not ZERO["dense1.weight"].any()


def test_results_outlive_the_next_step(backend):
    step = loaded(backend)
    first = step.step(X, Y, ONES, 1.0)
    before = first.squared_gradient.copy()
    step.step(X, Y, ONES, 1.0)
    np.testing.assert_equal(first.squared_gradient, before)


def test_what_an_artifact_tells(backend):
    step = TrainStep(compile_model(DEEP, batch=8).for_backend(backend), backend)
    assert (step.batch, step.input_shape) == (8, (3,))
    assert list(step.shapes.items()) == [
        ("dense1.weight", (3, 4)),
        ("dense1.bias", (4,)),
        ("dense2.weight", (4, 2)),
        ("dense2.bias", (2,)),
    ]


def test_inference_pads_and_cuts(backend):
    infer = Inference(INFER.for_backend(backend), backend)
    infer.load({"dense1.weight": np.eye(2, dtype=np.float32), "dense1.bias": np.array([1, 0], np.float32)})
    for rows in range(1, 5):
        x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        logits, features = infer(x)
        np.testing.assert_allclose(logits, x + np.array([1, 0]))
        np.testing.assert_allclose(features, x)


def test_two_interpreters_do_not_share_weights(backend):
    one, other = loaded(backend), loaded(backend)
    one.step(X, Y, ONES, 1.0)
    np.testing.assert_equal(other.weights(), ZERO)


def test_every_backend_takes_the_same_steps(backend):
    artifact, weights = compile_model(DEEP, batch=8), initial_weights(DEEP, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.integers(0, 2, 8).astype(np.int32)
    ends = []
    for name in (backend, None):
        step = TrainStep(artifact.for_backend(name or "litert"), name)
        step.load(weights)
        for _ in range(5):
            step.step(x, y, np.ones(8, np.float32), 0.1)
        ends.append(step.weights())
    for name in weights:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({}, "dense1.bias, dense1.weight stand on one side only"),
        (ZERO | {"extra": ONES}, "extra stand on one side only"),
        (ZERO | {"dense1.bias": np.zeros(3, np.float32)}, r"tensor 'dense1.bias' has shape \(3,\), expected \(2,\)"),
    ],
)
def test_weights_that_do_not_fit(backend, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainStep(TRAIN.for_backend(backend), backend).load(weights)


def test_inputs_that_do_not_fit(backend):
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\), expected \(2, 2\)"):
        loaded(backend).step(X[:1], Y, ONES, 1.0)
    with pytest.raises(ValueError, match=r"y has shape \(3,\), expected \(2,\)"):
        loaded(backend).step(X, np.zeros(3), ONES, 1.0)
    infer = Inference(INFER.for_backend(backend), backend)
    infer.load(ZERO)
    with pytest.raises(ValueError, match=r"x has shape \(5, 2\), expected 1 to 4 rows of \(2,\)"):
        infer(np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"x has shape \(0, 2\), expected 1 to 4 rows"):
        infer(np.zeros((0, 2)))


def test_without_weights_nothing_runs(backend):
    with pytest.raises(RuntimeError, match=r"call load\(\) first"):
        TrainStep(TRAIN.for_backend(backend), backend).step(X, Y, ONES, 1.0)


def test_a_form_of_the_other_kind(backend):
    sentence = "are a model file, numpy runs programs" if backend == "numpy" else "are a program, which only .* numpy"
    with pytest.raises(ArtifactError, match=sentence):
        TrainStep(TRAIN.content if backend == "numpy" else TRAIN.program, backend)


def test_the_form_decides_where_no_backend_is_named(backend):
    for form in (TRAIN.content, TRAIN.program):
        step = TrainStep(form)
        step.load(ZERO)
        assert step.step(X, Y, ONES, 1.0).correct == 1


def test_numpy_comes_last_and_alone_where_there_is_nothing_else(backend, monkeypatch):
    assert backends()[-1] == "numpy"
    for name in ("litert", "tflite"):
        monkeypatch.setitem(runtime.MODULES, name, "runtime_that_is_not_there.interpreter")
    assert backends() == ["numpy"]
    TrainStep(TRAIN.program).load(ZERO)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"x" * 5000], ids=["nothing", "four bytes", "other bytes"])
def test_bytes_that_are_no_model(backend, content):
    with pytest.raises(ArtifactError, match=f"these {len(content)} bytes are not a LiteRT model"):
        TrainStep(content, backend)


def test_a_damaged_model_is_refused_where_the_runtime_verifies(backend):
    if backend == "tflite":
        pytest.skip("tflite-runtime 2.14 does not verify and would crash")
    whole = TRAIN.for_backend(backend)
    with pytest.raises(ArtifactError, match="cannot load the artifact"):
        TrainStep(whole[: len(whole) // 2], backend)


def test_artifacts_of_the_other_kind(backend):
    with pytest.raises(ArtifactError, match="not one for TrainStep: it has no tensor 'y'"):
        TrainStep(INFER.for_backend(backend), backend)
    with pytest.raises(ArtifactError, match="not one for Inference: it has no tensor 'logits'"):
        Inference(TRAIN.for_backend(backend), backend)


def test_a_missing_runtime_is_named(backend, monkeypatch):
    monkeypatch.setitem(runtime.MODULES, backend, "runtime_that_is_not_there.interpreter")
    assert backend not in backends()
    with pytest.raises(RuntimeUnavailable, match=f"{backend}: No module named .* install .*(litert|tflite|numpy)"):
        TrainStep(TRAIN.for_backend(backend), backend)


def test_a_runtime_that_imports_and_cannot_be_used_is_passed_over(backend, monkeypatch, tmp_path):
    """As tflite-runtime 2.14 behaves under numpy 2."""
    broken = tmp_path / f"broken_{backend}"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "interpreter.py").write_text("def Interpreter(**_): raise AttributeError('_ARRAY_API not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runtime, "MODULES", {"tflite": f"broken_{backend}.interpreter"})
    with pytest.raises(RuntimeUnavailable, match=r"tflite: _ARRAY_API not found.*: install .*numpy<2"):
        TrainStep(TRAIN.content, "tflite")
    monkeypatch.setitem(runtime.MODULES, "litert", "ai_edge_litert.interpreter")
    loaded(None).step(X, Y, ONES, 1.0)


def test_an_unknown_backend_is_refused(backend):
    with pytest.raises(RuntimeUnavailable, match="unknown backend 'gpu', expected one of litert, tflite, numpy"):
        TrainStep(TRAIN, "gpu")


def test_importing_the_module_imports_no_runtime(backend):
    module = runtime.MODULES[backend] if backend == "numpy" else runtime.MODULES[backend].partition(".")[0]
    code = f"import device_agent.runtime as r, sys; r.backends(); sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_that_do_not_fit(backend):
    artifact = compile_model(SPEC, batch=2, training=Training(momentum=True))
    step = TrainStep(artifact.for_backend(backend), backend)
    assert step.options == {"momentum": (1,), "dampening": (1,)}
    step.load(ZERO)
    with pytest.raises(ValueError, match="the options differ from the artifact's: dampening stand on one side only"):
        step.step(X, Y, ONES, 1.0, {"momentum": 0.9})
    with pytest.raises(ValueError, match="weight_decay stand on one side only"):
        loaded(backend).step(X, Y, ONES, 1.0, {"weight_decay": 0.9})


def test_momentum_by_hand_and_anew_with_new_weights(backend):
    """The gradient by the bias is ±1/4 of the one sample in play; v = 1/4, then 1/2·1/4 + 1/4·…"""
    artifact = compile_model(SPEC, batch=2, training=Training(momentum=True))
    step = TrainStep(artifact.for_backend(backend), backend)
    step.load(ZERO)
    first = np.array([1, 0], np.float32)
    for _ in range(2):
        step.step(X, Y, first, 1e-6, {"momentum": 0.5, "dampening": 0})
    np.testing.assert_allclose(step.weights()["dense1.bias"], [1.25e-6, -1.25e-6], rtol=1e-4)
    step.load(ZERO)
    step.step(X, Y, first, 1e-6, {"momentum": 0.5, "dampening": 0})
    np.testing.assert_allclose(step.weights()["dense1.bias"], [5e-7, -5e-7], rtol=1e-4)


def test_a_session_runs_any_signature_by_name(backend):
    artifact = compile_model(SPEC, batch=2, signature="evaluate")
    session = Session(artifact.for_backend(backend), backend)
    session.load(ZERO)
    found = session.run({"x": X, "y": Y, "sample_weight": ONES})
    assert {name: value.tolist() for name, value in found.items() if name != "loss_sum"} == {
        "correct": [1, 0],
        "count": [1, 1],
    }
    assert found["loss_sum"][0] == pytest.approx(2 * np.log(2))
    with pytest.raises(ValueError, match="the inputs differ from the artifact's: y stand on one side only"):
        session.run({"x": X, "sample_weight": ONES})


MOVING = compile_model(SPEC, batch=2, training=Training(momentum=True, proximal=True))
OPTIONS = {"momentum": 0.5, "dampening": 0.0, "proximal": 0.1}


def moving(backend):
    return TrainStep(MOVING.for_backend(backend), backend)


def test_a_loss_can_be_looked_at_without_a_step(backend):
    step = moving(backend)
    step.load(ZERO)
    step.step(X, Y, ONES, 1.0, OPTIONS)
    before = [state.copy() for state in step.states()]
    loss = step.loss(X, Y, ONES, OPTIONS)
    np.testing.assert_equal(list(step.states()), before)
    assert step.step(X, Y, ONES, 1.0, OPTIONS).loss_sum == loss


def test_weights_and_momentum_taken_out_go_on_elsewhere(backend):
    step, other = moving(backend), moving(backend)
    assert step.remembers
    step.load(ZERO)
    step.step(X, Y, ONES, 1.0, OPTIONS)
    states = list(step.states())
    names = list(step.shapes)
    other.load(dict(zip(names, states[:2], strict=True)), ZERO, dict(zip(names, states[2:], strict=True)))
    for each in (step, other):
        each.step(X, Y, ONES, 1.0, OPTIONS)
    np.testing.assert_equal(list(other.states()), list(step.states()))
    assert not loaded(backend).remembers
    assert len(list(loaded(backend).states())) == 2


def test_weights_are_changed_in_place_and_momentum_stays(backend):
    step = moving(backend)
    step.load(ZERO)
    step.step(X, Y, ONES, 1.0, OPTIONS)
    before = list(step.states())
    step.change(lambda name, weight: weight + (name == "dense1.bias"))
    after = list(step.states())
    np.testing.assert_equal(after[1], before[1] + 1)
    np.testing.assert_equal([after[0], *after[2:]], [before[0], *before[2:]])
