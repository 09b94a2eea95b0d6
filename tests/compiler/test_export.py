"""Trained models as files: the same numbers in every format, at every width, on both runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.compiler.compile import compile_model
from coordinator.compiler.contents import contents
from coordinator.compiler.export import ExportError, export, read_weights
from coordinator.compiler.onnx_import import import_onnx
from coordinator.compiler.rewrite import folded, narrowed
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv1D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    Gelu,
    GroupNorm,
    Gru,
    LayerNorm,
    LeakyRelu,
    Lstm,
    ModelSpec,
    ModelSpecError,
    Relu6,
    Reshape,
    Silu,
    Tanh,
    TransposedConv2D,
)
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import MODULES, NUMPY, Inference, backends
from protocol import tensors
from protocol.subnetwork import FULL, Region, nested

from .onnx_graphs import ours, reference

RUNTIMES = [name for name in backends() if name != NUMPY]
EVERYTHING = ModelSpec(
    "everything",
    (9, 10, 2),
    4,
    (
        *(Conv2D(8, (3, 3), (2, 1)), GroupNorm(groups=4), Gelu(), TransposedConv2D(6, (3, 3), (2, 2)), LayerNorm()),
        *(Silu(name="s"), Conv2D(6, (2, 2)), LeakyRelu(0.2, name="v"), Add(("s", "v"), name="w"), Concat(("s", "w"))),
        *(AveragePool((3, 2)), Relu6(), Reshape((15, 24)), Conv1D(4, 3, 2, "valid"), Tanh(), Gru(5, sequences=True)),
        *(Lstm(7), Dropout(0.5), Dense(4)),
    ),
)
WORDS = ModelSpec("words", (12,), 3, (Embedding(40, 8), Gru(6), Dense(3)))
MODELS = {spec.name: spec for spec in (*ZOO.values(), EVERYTHING, WORDS)}


def trained(spec, width, seed=0):
    """Weights, subnetwork, statistics for it, and samples."""
    rng = np.random.default_rng(seed)
    weights, subnetwork = initial_weights(spec, rng), nested(layout(spec), width)
    for value in weights.values():
        if value.ndim == 1:
            value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    statistics = {}
    shapes = Region(layout(spec), subnetwork).shapes
    for layer in spec.layers:
        if isinstance(layer, BatchNorm):
            shape = shapes[f"{layer.name}.scale"]
            statistics[f"statistic/{layer.name}.mean"] = 0.1 * rng.standard_normal(shape).astype(np.float32)
            statistics[f"statistic/{layer.name}.variance"] = rng.uniform(0.5, 2, shape).astype(np.float32)
    x = rng.standard_normal((4, *spec.input)).astype(np.float32)
    if spec is WORDS:
        x = rng.integers(0, 40, x.shape).astype(np.float32)
    return weights, subnetwork, statistics, x


def interpreters(runtime):
    module = __import__(MODULES[runtime], fromlist=["Interpreter"])
    return lambda content: module.Interpreter(model_content=content, num_threads=1)


def run(content, x, runtime):
    """Logits sample by sample."""
    interpreter = interpreters(runtime)(content)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    logits = next(d["index"] for d in interpreter.get_output_details() if d["name"] == "logits")
    rows = []
    for row in x:
        interpreter.set_tensor(source["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(logits)[0])
    return np.array(rows)


def as_trained(spec, weights, subnetwork, statistics, x):
    """Logits of the artifact that devices infer with."""
    inference = Inference(compile_model(spec, subnetwork, len(x), "infer").content)
    inference.load(Region(layout(spec), subnetwork).cut(weights), statistics)
    return inference(x)[0]


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("width", [1, 0.25])
@pytest.mark.parametrize("name", MODELS)
def test_every_format_puts_out_what_the_artifact_does(name, width):
    spec = MODELS[name]
    weights, subnetwork, statistics, x = trained(spec, width)
    expected = as_trained(spec, weights, subnetwork, statistics, x)
    file = export(spec, weights, subnetwork, "tflite", statistics=statistics)
    for runtime in RUNTIMES:
        assert_close(run(file, x, runtime), expected, 3e-6)
    content = export(spec, weights, subnetwork, "onnx", statistics=statistics)
    assert_close(reference(content, x), expected, 5e-6)
    back, values = import_onnx(content, name)
    assert back.input == spec.input
    assert_close(ours(back, values, x), expected, 5e-6)


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_stay_close_on_both_runtimes(name):
    """Within 10 % of the greatest logit, random weights and calibration on what is measured; a quarter of the size."""
    spec = MODELS[name]
    weights, subnetwork, statistics, x = trained(spec, 1)
    plain = export(spec, weights, subnetwork, "tflite", statistics=statistics)
    whole = export(
        *(spec, weights, subnetwork, "tflite-int8"),
        statistics=statistics,
        calibration=x,
        interpreters=interpreters(RUNTIMES[0]),
    )
    for runtime in RUNTIMES:
        assert_close(run(whole, x, runtime), run(plain, x, runtime), 0.1)
    found = contents(whole)
    assert found.signatures == ("infer",)
    assert not [operator for operator in found.operators if operator.startswith("CUSTOM")]
    assert found.inputs[0][1] == found.outputs[0][1] == "float32"
    if name in ("mlp", "cnn", "cnn1d", "resnet8"):
        assert found.constants < 0.3 * contents(plain).constants
        assert set(found.operators) <= {
            *("QUANTIZE", "DEQUANTIZE", "CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN", "ADD", "RESHAPE"),
        }


def test_eight_bits_need_samples():
    weights, *_, x = trained(ZOO["digits"], 1)
    with pytest.raises(ExportError, match="8 bits need a calibration set of at least 1 samples"):
        export(ZOO["digits"], weights, form="tflite-int8", calibration=x[:0], interpreters=interpreters(RUNTIMES[0]))


def test_a_constant_channel_quantises_by_hand():
    """One weight 2 and one 0 with bias 1: the scale of the zero channel comes from its bias, not from the weights."""
    spec = ModelSpec("m", (1, 1, 1), 2, (Conv2D(2, (1, 1)), Reshape((2,)), Dense(2, bias=False)))
    weights = {
        "conv1.weight": np.array([[[[2, 0]]]], np.float32),
        "conv1.bias": np.array([0, 1], np.float32),
        "dense1.weight": np.eye(2, dtype=np.float32),
    }
    x = np.array([1, 0.5], np.float32).reshape(2, 1, 1, 1)
    file = export(spec, weights, form="tflite-int8", calibration=x, interpreters=interpreters(RUNTIMES[0]))
    np.testing.assert_allclose(run(file, x, RUNTIMES[0]), [[2, 1], [1, 1]], atol=0.02)


def test_a_narrowed_model_is_a_model_of_its_own():
    spec = EVERYTHING
    weights = initial_weights(spec, np.random.default_rng(0))
    subnetwork = nested(layout(spec), 0.5)
    small, cut = narrowed(spec, weights, subnetwork)
    assert {name: value.shape for name, value in cut.items()} == Region(layout(small)).shapes
    assert small.layers[0].filters == 4
    assert Region(layout(small)).parameters == Region(layout(spec), subnetwork).parameters


def test_batch_norms_fold_into_what_they_follow_by_hand():
    """y = 3x + 1 normalised by mean 1, variance 4 - ε, scale 2, shift 5: (3x + 1 - 1)·2/2 + 5."""
    spec = ModelSpec("m", (1,), 1, (Dense(1), BatchNorm(1e-3), Dense(1)))
    weights = {name: np.full(shape, 1, np.float32) for name, shape in Region(layout(spec)).shapes.items()}
    weights |= {"dense1.weight": np.full((1, 1), 3, np.float32), "batch_norm1.scale": np.full(1, 2, np.float32)}
    weights |= {"batch_norm1.shift": np.full(1, 5, np.float32)}
    named = {"mean": np.ones(1, np.float32), "variance": np.full(1, 4 - 1e-3, np.float32)}
    without, found = folded(spec, weights, {f"statistic/batch_norm1.{name}": value for name, value in named.items()})
    assert [layer.kind for layer in without.layers] == ["dense", "dense"]
    np.testing.assert_allclose([found["dense1.weight"].item(), found["dense1.bias"].item()], [3, 5], rtol=1e-6)


def test_batch_norms_without_statistics_or_a_place_are_refused():
    weights = initial_weights(ZOO["resnet8"], np.random.default_rng(0))
    with pytest.raises(ModelSpecError, match=r"batch norm 'batch_norm1' needs the statistics of its data"):
        export(ZOO["resnet8"], weights)
    spec = ModelSpec("m", (3,), 2, (BatchNorm(), Dense(2)))
    given = {f"statistic/batch_norm1.{name}": np.ones(3, np.float32) for name in ("mean", "variance")}
    with pytest.raises(ModelSpecError, match=r"layer 0 \(batch_norm1\).*must follow a layer with weights"):
        export(spec, initial_weights(spec, np.random.default_rng(0)), statistics=given)


def test_weights_files_come_back():
    spec = ZOO["resnet8"]
    weights, subnetwork, statistics, _ = trained(spec, 0.5)
    content = export(spec, weights, subnetwork, "safetensors", statistics=statistics)
    small, found, kept = read_weights(content)
    np.testing.assert_equal(found, Region(layout(spec), subnetwork).cut(weights))
    np.testing.assert_equal(kept, statistics)
    assert small.layers[0].filters == 8


def test_weights_that_do_not_fit_are_refused():
    weights = initial_weights(ZOO["digits"], np.random.default_rng(0))
    content = export(ZOO["digits"], weights, form="safetensors")
    for bad, spec, sentence in [
        (b"nothing", None, "does not fit: 7 bytes are too few"),
        (content, ZOO["mlp"], "does not fit: "),
        (tensors.encode(weights), None, "does not say which model it is of"),
    ]:
        with pytest.raises(ExportError, match=sentence):
            read_weights(bad, spec)
    weights["dense1.bias"][0] = np.nan
    with pytest.raises(ExportError, match=r"tensor 'dense1.bias' must hold finite float32 numbers"):
        read_weights(export(ZOO["digits"], weights, form="safetensors"))


def test_full_is_the_default():
    weights = initial_weights(ZOO["digits"], np.random.default_rng(0))
    assert export(ZOO["digits"], weights) == export(ZOO["digits"], weights, FULL, "tflite", batch=1)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x18\0\0\0TFL3" + bytes(100)])
def test_what_is_no_litert_file_is_said(content):
    with pytest.raises(ValueError, match=r"bytes are (not|a damaged)"):
        contents(content)


@pytest.mark.parametrize("layer", [Conv2D(3, (2, 1), (2, 2)), DepthwiseConv2D((3, 1), (1, 2))])
def test_strides_that_leave_out_the_last_positions(layer):
    """Where tflite-runtime 2.14 would misplace the padding of the other side."""
    spec = ModelSpec("m", (5, 6, 3), 2, (layer, Flatten(), Dense(2)))
    weights, subnetwork, statistics, x = trained(spec, 1)
    plain, whole = (
        export(spec, weights, subnetwork, form, calibration=x, interpreters=interpreters(RUNTIMES[0]))
        for form in ("tflite", "tflite-int8")
    )
    expected = as_trained(spec, weights, subnetwork, statistics, x)
    for runtime in RUNTIMES:
        assert_close(run(plain, x, runtime), expected, 3e-6)
        assert_close(run(whole, x, runtime), expected, 0.1)
