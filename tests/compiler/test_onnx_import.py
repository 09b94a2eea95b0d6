"""ONNX files as specifications: equal numbers, and sentences that name the node."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from onnx import TensorProto, helper

from coordinator.compiler.fields import ModelSpecError
from coordinator.compiler.onnx_file import OnnxError
from coordinator.compiler.onnx_import import import_onnx

from .onnx_graphs import assert_imported, graph

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def last(x):
    """Channels last."""
    return np.moveaxis(x, 1, -1)


def kinds(spec):
    return [layer.kind for layer in spec.layers]


def test_dense_behind_flatten_gets_its_rows_in_the_order_of_channels_last():
    """[C, H, W] = [2, 1, 3] with weights 0 … 5: pixel (0, w) of channel c has weight 3c + w."""
    content = graph(
        [("Flatten", "x", "f", {}), ("Gemm", "f,w", "y", {})], (2, 1, 3), {"w": np.arange(6, dtype=np.float32)[:, None]}
    )
    spec, weights = import_onnx(content)
    assert spec.input == (1, 3, 2)
    assert weights["dense1.weight"].ravel().tolist() == [0, 3, 1, 4, 2, 5]


CONVOLUTION = {"w": normal(4, 3, 3, 3), "v": normal(4 * 5 * 6, 3)}
READ_OUT = [("Flatten", "c", "f", {}), ("MatMul", "f,v", "y", {})]


@pytest.mark.parametrize(
    ("pads", "strides", "size", "kernel"),
    [
        ([1, 1, 1, 1], [1, 1], (5, 6), (3, 3)),
        ([0, 0, 0, 0], [1, 1], (7, 8), (3, 3)),
        ([1, 1, 1, 1], [2, 2], (9, 11), (3, 3)),
        ([1, 1, 1, 1], [2, 2], (10, 12), (4, 4)),  # both sides of an even one: "same" pads the end only
        ([0, 0, 1, 1], [2, 2], (10, 12), (3, 3)),
        ([1, 1, 1, 1], [1, 2], (5, 12), (3, 4)),
    ],
)
def test_paddings_that_keep_to_same_or_valid(pads, strides, size, kernel):
    """The kernel is widened by zeros where "same" puts its padding elsewhere."""
    nodes = [("Conv", "x,w", "c", {"pads": pads, "strides": strides}), *READ_OUT]
    content = graph(nodes, (3, *size), CONVOLUTION)
    spec = assert_imported(content, normal(2, 3, *size), last)
    assert spec.layers[0].kernel == kernel


def test_keras_writes_channels_last_and_transposes():
    nodes = [
        ("Transpose", "x", "t", {"perm": [0, 3, 1, 2]}),
        ("Conv", "t,w,b", "c", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("BatchNormalization", "c,s,b,b,s", "n", {}),
        ("Relu", "n", "r", {}),
        ("Transpose", "r", "u", {"perm": [0, 2, 3, 1]}),
        ("ReduceMean", "u,axes", "m", {"keepdims": 0}),
        ("MatMul", "m,v", "p", {}),
        ("Add", "p,d", "q", {}),
        ("Softmax", "q", "y", {}),
    ]
    constants = {
        "w": normal(4, 3, 3, 3),
        "b": normal(4),
        "s": np.abs(normal(4)) + 0.5,
        "axes": np.array([1, 2]),
        "v": normal(4, 3),
        "d": normal(3),
    }
    content = graph([*nodes[:-1], ("Identity", "q", "y", {})], (9, 8, 3), constants)
    spec = assert_imported(content, normal(2, 9, 8, 3))
    assert kinds(spec) == ["conv2d", "relu", "global_average_pool", "dense"]
    with_softmax, _ = import_onnx(graph(nodes, (9, 8, 3), constants))
    assert with_softmax.layers == spec.layers


def test_depthwise_clip_and_leaky():
    nodes = [
        ("Conv", "x,w", "c", {"group": 3, "pads": [1, 1, 1, 1]}),
        ("Clip", "c,zero,six", "d", {}),
        ("MaxPool", "d", "e", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("LeakyRelu", "e", "f", {"alpha": 0.2}),
        ("Flatten", "f", "g", {}),
        ("Gemm", "g,v,b", "y", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ]
    constants = {
        "w": normal(3, 1, 3, 3),
        "v": normal(4, 12),
        "b": normal(4),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    spec = assert_imported(graph(nodes, (3, 4, 4), constants), normal(2, 3, 4, 4), last)
    assert kinds(spec)[:4] == ["depthwise_conv2d", "relu6", "max_pool", "leaky_relu"]


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ([("Sigmoid", "h", "s", {}), ("Mul", "h,s", "a", {})], "silu"),
        ([("Gelu", "h", "a", {"approximate": "tanh"})], "gelu"),
        (
            [("Div", "h,root", "d", {}), ("Erf", "d", "e", {}), ("Add", "e,one", "p", {}), ("Mul", "h,p", "m", {}),
             ("Mul", "m,half", "a", {})],
            "gelu",
        ),
        ([("Relu", "h", "r", {}), ("Min", "r,six", "a", {})], "relu6"),
        ([("Relu", "h", "r", {}), ("Tanh", "r", "a", {})], "relu"),
    ],
)  # fmt: skip
def test_activations_are_known_by_their_curve(nodes, kind):
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5, "six": 6}
    constants = {"w": normal(5, 8), "v": normal(8, 3), **{name: np.float32(value) for name, value in numbers.items()}}
    content = graph([("MatMul", "x,w", "h", {}), *nodes, ("MatMul", "a,v", "y", {})], (5,), constants)
    # The exact gelu is at most 5e-4 from the one with tanh.
    spec = assert_imported(content, normal(2, 5), tolerance=2e-3 if len(nodes) == 5 else 2e-6)
    assert kinds(spec)[1] == kind


def test_residuals_concat_and_group_norm():
    nodes = [
        ("Conv", "x,w", "a", {}),
        ("Conv", "a,u", "b", {"pads": [1, 1, 1, 1]}),
        ("Add", "a,b", "s", {}),
        ("Concat", "s,a", "c", {"axis": 1}),
        ("Reshape", "c,groups", "g", {}),
        ("InstanceNormalization", "g,ones,zeros", "i", {}),
        ("Reshape", "i,back", "j", {}),
        ("Mul", "j,scale", "k", {}),
        ("Add", "k,shift", "l", {}),
        ("GlobalAveragePool", "l", "m", {}),
        ("Flatten", "m", "f", {}),
        ("MatMul", "f,v", "y", {}),
    ]
    constants = {
        "w": normal(4, 2, 1, 1),
        "u": normal(4, 4, 3, 3),
        "v": normal(8, 3),
        "groups": np.array([0, 2, -1]),
        "back": np.array([2, 8, 3, 5]),
        "ones": np.ones(2, np.float32),
        "zeros": np.zeros(2, np.float32),
        "scale": normal(8, 1, 1),
        "shift": normal(8, 1, 1),
    }
    spec = assert_imported(graph(nodes, (2, 3, 5), constants), normal(2, 2, 3, 5), last)
    assert kinds(spec) == ["conv2d", "conv2d", "add", "concat", "group_norm", "global_average_pool", "dense"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("read", ["last step", "last state", "all steps"])
def test_recurrent_layers(kind, read):
    gates, more = (4, {}) if kind == "LSTM" else (3, {"linear_before_reset": 1})
    end = {
        "last step": [("Squeeze", "h,1", "s", {}), ("Transpose", "s", "t", {"perm": [1, 0, 2]}),
                      ("Gather", "t,minus", "f", {"axis": 1})],
        "last state": [("Squeeze", "k,0", "f", {})],
        "all steps": [("Squeeze", "h,1", "s", {}), ("ReduceMean", "s,0", "f", {"keepdims": 0})],
    }[read]  # fmt: skip
    nodes = [
        ("Transpose", "x", "p", {"perm": [1, 0, 2]}),
        (kind, "p,w,r,b", "h,k", {"hidden_size": 5, **more}),
        *end,
        ("MatMul", "f,v", "y", {}),
    ]
    constants = {
        "w": normal(1, 5 * gates, 3),
        "r": normal(1, 5 * gates, 5),
        "b": normal(1, 10 * gates),
        "v": normal(5, 2),
        "0": np.array([0]),
        "1": np.array([1]),
        "minus": np.array(-1),
    }
    spec = assert_imported(graph(nodes, (6, 3), constants), normal(2, 6, 3))
    assert spec.layers[0].sequences == (read == "all steps")


def test_layer_norm_and_dense_over_the_channels_of_a_signal():
    nodes = [
        ("MatMul", "x,w", "a", {}),
        ("Add", "a,b", "c", {}),
        ("LayerNormalization", "c,s,b", "d", {"axis": -1}),
        ("Flatten", "d", "e", {}),
        ("MatMul", "e,v", "y", {}),
    ]
    constants = {"w": normal(3, 4), "b": normal(4), "s": normal(4), "v": normal(20, 2)}
    assert kinds(assert_imported(graph(nodes, (5, 3), constants), normal(2, 5, 3)))[:2] == ["conv1d", "layer_norm"]


def test_embedding():
    nodes = [("Gather", "t,x", "a", {}), ("ReduceMean", "a,one", "b", {"keepdims": 0}), ("MatMul", "b,v", "y", {})]
    constants = {"t": normal(9, 4), "one": np.array([1]), "v": normal(4, 2)}
    content = graph(nodes, (6,), constants, TensorProto.INT64)
    assert_imported(content, RNG.integers(0, 9, (2, 6)))


def test_transposed_convolution():
    nodes = [("ConvTranspose", "x,w,b", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), *READ_OUT]
    content = graph(nodes, (2, 3, 3), {"w": normal(2, 3, 4, 4), "b": normal(3), "v": normal(108, 2)})
    assert_imported(content, normal(2, 2, 3, 3), last)


def test_a_sigmoid_at_the_end_belongs_to_the_loss():
    content = graph([("MatMul", "x,w", "a", {}), ("Sigmoid", "a", "y", {})], (3,), {"w": normal(3, 2)})
    spec, _ = import_onnx(content)
    assert (kinds(spec), [loss.kind for loss in spec.loss]) == (["dense"], ["sigmoid_cross_entropy"])


def test_an_affine_step_over_the_input_image_becomes_a_depthwise_convolution():
    nodes = [("Sub", "x,m", "a", {}), ("Div", "a,s", "b", {}), ("Conv", "b,w", "c", {"strides": [1, 1]}), *READ_OUT]
    constants = {"m": normal(3, 1, 1), "s": np.abs(normal(3, 1, 1)) + 0.5, "w": normal(4, 3, 3, 3), "v": normal(36, 2)}
    spec = assert_imported(graph(nodes, (3, 5, 5), constants), normal(2, 3, 5, 5), last, 1e-5)
    assert kinds(spec)[0] == "depthwise_conv2d"


WEIGHTS = {"w": normal(4, 3, 3, 3), "v": normal(3, 2), "one": np.float32(1)}
REFUSED = {
    "unsupported": (
        [("Conv", "x,w", "a", {}), ("Softsign", "a", "y", {})],
        r"node 'n1' \(Softsign\) is not supported; supported are Add, ",
    ),
    "dilation": ([("Conv", "x,w", "y", {"dilations": [2, 2]})], r"'n0' \(Conv\): has dilations \[2, 2\]; expected 1"),
    "padding": ([("Conv", "x,w", "y", {"pads": [2] * 4})], r"n0.*padding \[\(2, 2\), .*keeps to same or valid"),
    "overlap": (
        [("MaxPool", "x", "y", {"kernel_shape": [3, 3], "strides": [2, 2]})],
        r"n0.*windows \(3, 3\) every \(2, 2\)",
    ),
    "softmax inside": ([("Softmax", "x", "a", {}), ("Relu", "a", "y", {})], r"n0' \(Softmax\): stands inside"),
    "unknown curve": (
        [("Erf", "x", "a", {}), ("Conv", "a,w", "y", {})],
        r"n1' \(Conv\): reads a function of one number that is none of",
    ),
    "product of layers": ([("Conv", "x,w", "a", {}), ("Mul", "a,x", "y", {})], r"n1' \(Mul\): joins the outputs"),
    "image into dense": ([("Gemm", "x,v", "y", {})], r"n0' \(Gemm\): expected a flat row per sample, got 3 axes"),
    "output that is no row": ([("Conv", "x,w", "y", {})], "the output: expected a flat row"),
    "layer inside": ([("Flatten", "x", "y", {"axis": 2})], r"n0' \(Flatten\): flattens from axis 2 on; expected 1"),
    "no dense at the end": (
        [("Conv", "x,w", "a", {}), ("GlobalAveragePool", "a", "b", {}), ("Flatten", "b", "y", {})],
        "the last layer must be dense",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_imported_is_named(what):
    nodes, sentence = REFUSED[what]
    with pytest.raises(ValueError, match=sentence):
        import_onnx(graph(nodes, (3, 8, 8), WEIGHTS))


def test_a_bidirectional_lstm_is_refused():
    nodes = [("LSTM", "x,w,r", "h", {"hidden_size": 2, "direction": "bidirectional"}), ("Identity", "h", "y", {})]
    with pytest.raises(OnnxError, match=r"n0' \(LSTM\): runs bidirectional; expected forward"):
        import_onnx(graph(nodes, (3, 4), {"w": normal(2, 8, 4), "r": normal(2, 8, 2)}))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x07", bytes(range(256)) * 8, b"PK\x03\x04" + bytes(99)])
def test_what_is_no_onnx_file_is_said(content):
    with pytest.raises(OnnxError, match=r"not an ONNX file|not a valid ONNX model"):
        import_onnx(content)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(OnnxError, match=r"none\.onnx cannot be read: No such file"):
        import_onnx(tmp_path / "none.onnx")


def test_weights_in_another_file_are_refused():
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], np.zeros(6, np.float32))
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", 3), ("y", 2)))
    body = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    with pytest.raises(OnnxError, match="keeps its weights in another file"):
        import_onnx(helper.make_model(body).SerializeToString())


def test_sizes_are_checked_before_anything_is_made():
    nodes = [("ConstantOfShape", "shape", "c", {}), ("Add", "x,c", "y", {})]
    with pytest.raises(OnnxError, match=r"n0' \(ConstantOfShape\): makes 1099511627776 numbers, at most"):
        import_onnx(graph(nodes, (3,), {"shape": np.array([1 << 40])}))
    with pytest.raises(OnnxError, match="at most 16777216 numbers are allowed"):
        import_onnx(graph([("Relu", "x", "y", {})], (1 << 20, 1 << 20), {}))


def test_weights_that_do_not_fit_or_are_not_finite_are_refused():
    nodes = [("Conv", "x,w,b", "c", {"pads": [1, 1, 1, 1]}), *READ_OUT]
    with pytest.raises(OnnxError, match=r"weights do not fit its layers: tensor 'conv1.bias' has shape \(3,\)"):
        import_onnx(graph(nodes, (3, 5, 6), {**CONVOLUTION, "b": normal(3)}))
    with pytest.raises(OnnxError, match=r"not finite, in 'conv1.bias'"):
        import_onnx(graph(nodes, (3, 5, 6), {**CONVOLUTION, "b": np.full(4, np.nan, np.float32)}))


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_end_in_a_sentence(seed):
    """Bytes changed, dropped and turned: read, or refused by an error of ours."""
    rng = np.random.default_rng(seed)
    nodes = [
        ("Transpose", "x", "t", {"perm": [1, 0, 2]}),
        ("LSTM", "t,r,s", ",h", {"hidden_size": 2}),
        ("Squeeze", "h,0", "f", {}),
        ("Gemm", "f,v", "y", {}),
    ]
    constants = {"r": normal(1, 8, 3), "s": normal(1, 8, 2), "0": np.array([0]), "v": normal(2, 2)}
    content = graph(nodes, (4, 3), constants)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content) - 8, rng.integers(1, 4)):
            choice = rng.integers(3)
            if choice == 0:
                damaged[place] = rng.integers(256)
            elif choice == 1:
                damaged[place] ^= 1 << rng.integers(8)
            else:
                del damaged[place]
        with contextlib.suppress(OnnxError, ModelSpecError):
            import_onnx(bytes(damaged))
