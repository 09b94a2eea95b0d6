"""Artifacts: what the file holds and what the manifest says of it."""

from __future__ import annotations

import hashlib
import json

import pytest
from ai_edge_litert import schema_py_generated as schema

from coordinator.compiler.compile import CompileError, compile_model
from coordinator.compiler.cost import flops
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import Conv2D, Dense, Flatten, ModelSpec, Relu
from coordinator.compiler.zoo import ZOO
from protocol.errors import ProtocolError
from protocol.subnetwork import FULL, Subnetwork, nested

TINY = ModelSpec("tiny", (3,), 2, (Dense(4), Relu(), Dense(2)))


def read(content: bytes):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def tensors(graph, numbers):
    return [(graph.tensors[i].name.decode(), tuple(graph.tensors[i].shape), graph.tensors[i].type) for i in numbers]


FLOAT, INT = schema.TensorType.FLOAT32, schema.TensorType.INT32


def test_inputs_and_outputs_of_a_training_step():
    graph = read(compile_model(TINY, batch=8).content).subgraphs[0]
    assert tensors(graph, graph.inputs) == [
        ("x", (8, 3), FLOAT),
        ("y", (8,), INT),
        ("sample_weight", (8,), FLOAT),
        ("learning_rate", (1,), FLOAT),
        ("w/dense1.weight", (3, 4), FLOAT),
        ("w/dense1.bias", (4,), FLOAT),
        ("w/dense2.weight", (4, 2), FLOAT),
        ("w/dense2.bias", (2,), FLOAT),
    ]
    assert tensors(graph, graph.outputs) == [
        ("loss_sum", (1,), FLOAT),
        ("correct", (1,), FLOAT),
        ("squared_gradient", (4,), FLOAT),
        ("new/dense1.weight", (3, 4), FLOAT),
        ("new/dense1.bias", (4,), FLOAT),
        ("new/dense2.weight", (4, 2), FLOAT),
        ("new/dense2.bias", (2,), FLOAT),
    ]


def test_inputs_and_outputs_of_inference():
    graph = read(compile_model(TINY, nested(layout(TINY), 0.5), 4, "infer").content).subgraphs[0]
    assert [name for name, _, _ in tensors(graph, graph.inputs)][:2] == ["x", "w/dense1.weight"]
    assert tensors(graph, graph.outputs) == [("logits", (4, 2), FLOAT), ("features", (4, 2), FLOAT)]


def test_the_signature_names_every_input_and_output():
    model = read(compile_model(TINY, batch=8).content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[0]
    assert signature.signatureKey == b"train"
    for maps, numbers in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
        assert [(m.name, m.tensorIndex) for m in maps] == [(graph.tensors[i].name, i) for i in numbers]


@pytest.mark.parametrize("signature", ["train", "grad", "infer", "evaluate"])
@pytest.mark.parametrize("spec", ZOO.values(), ids=ZOO)
def test_only_builtin_operators(spec, signature):
    for code in read(compile_model(spec, batch=4, signature=signature).content).operatorCodes:
        assert code.customCode is None
        assert code.builtinCode not in (schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.DELEGATE)


def test_products_are_in_the_storage_order_both_runtimes_are_fast_at():
    model = read(compile_model(ZOO["cnn"]).content)
    products = [op for op in model.subgraphs[0].operators if isinstance(op.builtinOptions, schema.BatchMatMulOptionsT)]
    assert products
    assert not any(op.builtinOptions.adjX or op.builtinOptions.adjY for op in products)


def test_equal_constants_are_stored_once():
    contents = [
        bytes(buffer.data) for buffer in read(compile_model(ZOO["cnn"]).content).buffers if buffer.data is not None
    ]
    large = [content for content in contents if len(content) > 64]  # short ones may differ in shape or type only
    assert len(large) == len(set(large)) > 0


def test_same_request_same_bytes():
    width = nested(layout(ZOO["cnn"]), 0.25)
    first, again = (compile_model(ZOO["cnn"], width, 16) for _ in range(2))
    assert first == again
    assert first.sha256 == hashlib.sha256(first.content).hexdigest()
    assert first.content[4:8] == b"TFL3"


def test_another_request_is_another_artifact():
    half = nested(layout(TINY), 0.5)
    made = [
        compile_model(TINY),
        compile_model(TINY, half),
        compile_model(TINY, batch=16),
        compile_model(TINY, signature="infer"),
    ]
    assert len({artifact.sha256 for artifact in made}) == 4


@pytest.mark.parametrize("spec", ZOO.values(), ids=ZOO)
def test_artifacts_are_small_and_carry_no_weights(spec):
    for target in ("litert", "tflite"):
        assert len(compile_model(spec, target=target).content) <= (500_000 if spec.name == "lstm" else 120_000)


def test_what_nothing_needs_is_not_written():
    """Inference of a convolution has no use for the gradient's tables; equal operators are there once."""
    graph = read(compile_model(ZOO["dscnn"], signature="infer").content).subgraphs[0]
    read_somewhere = {index for operator in graph.operators for index in operator.inputs} | set(graph.outputs)
    assert all(read_somewhere.intersection(operator.outputs) for operator in graph.operators)


def test_manifest():
    manifest = compile_model(TINY, nested(layout(TINY), 0.5), 8).manifest
    assert json.loads(json.dumps(manifest.to_json())) == {
        "signature": "train",
        "batch": 8,
        "input": [3],
        "tensors": [["dense1.weight", [3, 2]], ["dense1.bias", [2]], ["dense2.weight", [2, 2]], ["dense2.bias", [2]]],
        "groups": {"dense1": 2, "classes": 2},
        "parameters": 14,
        "flops": 2 * (2 * 3 * 2) + 3 * (2 * 2 * 2),
        "activation_bytes": manifest.activation_bytes,
        "training": dict.fromkeys(["momentum", "weight_decay", "clip", "proximal", "class_mask"], False),
        "cut": None,
        "inputs": {
            "x": [8, 3], "y": [8], "sample_weight": [8], "learning_rate": [1],
            "w/dense1.weight": [3, 2], "w/dense1.bias": [2], "w/dense2.weight": [2, 2], "w/dense2.bias": [2],
        },
        "outputs": {
            "loss_sum": [1], "correct": [1], "squared_gradient": [4],
            "new/dense1.weight": [3, 2], "new/dense1.bias": [2], "new/dense2.weight": [2, 2], "new/dense2.bias": [2],
        },
    }  # fmt: skip


def test_activations_grow_with_the_batch_and_shrink_with_the_width():
    """The CNN's first feature map alone, [32, 28, 28, 32] floats, is 3.2 MB."""
    peak = {b: compile_model(ZOO["cnn"], batch=b).manifest.activation_bytes for b in (16, 32)}
    narrow = compile_model(ZOO["cnn"], nested(layout(ZOO["cnn"]), 0.25)).manifest.activation_bytes
    assert 3_211_264 < peak[32] < 40_000_000
    assert peak[16] < peak[32]
    assert narrow < peak[32] / 1.5


def test_flops_of_one_sample():
    """conv 6×6 positions of 3·3·1·4, dense 144·5 and 5·2, 2 per multiply-add; nothing needs the gradient of x."""
    spec = ModelSpec("m", (6, 6, 1), 2, (Conv2D(4, (3, 3)), Relu(), Flatten(), Dense(5), Relu(), Dense(2)))
    conv, dense, logits = 2 * 36 * 36, 2 * 144 * 5, 2 * 10
    assert flops(spec) == 2 * conv + 3 * (dense + logits)
    assert compile_model(spec, batch=1, signature="infer").manifest.flops == conv + dense + logits
    assert flops(spec, Subnetwork({"conv1": (0, 3), "dense1": 1})) == conv + 3 * (dense // 10 + logits // 5)


@pytest.mark.parametrize("batch", [0, 3, 2048, -1, 8.0, True])
def test_a_batch_is_a_power_of_two(batch):
    with pytest.raises(CompileError, match="is not a power of two from 1 to 1024"):
        compile_model(TINY, FULL, batch)


def test_other_refusals():
    with pytest.raises(CompileError, match="signature 'learn' is not one of train, grad, infer, evaluate, front"):
        compile_model(TINY, signature="learn")
    with pytest.raises(CompileError, match="target 'gpu' is not one of litert, tflite, numpy"):
        compile_model(TINY, target="gpu")
    with pytest.raises(CompileError, match="keeps every output class"):
        compile_model(TINY, Subnetwork({"classes": 1}))
    with pytest.raises(ProtocolError, match="no channel group 'conv9'"):
        compile_model(TINY, Subnetwork({"conv9": 1}))
    with pytest.raises(ProtocolError, match="has 4 channels, cannot keep 5"):
        compile_model(TINY, Subnetwork({"dense1": 5}))
