"""Small ONNX graphs made by hand, and what their reference evaluator and ours make of them."""

from __future__ import annotations

import ai_edge_litert.interpreter
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from coordinator.compiler.deployment import inference_graph
from coordinator.compiler.onnx_import import import_onnx


def graph(nodes, shape, constants, dtype=TensorProto.FLOAT, opset=20):
    """Bytes of a model from ``x`` [2, *shape] to ``y``; nodes are (operator, inputs, output, attributes)."""
    made = [
        helper.make_node(operator, inputs.split(","), output.split(","), name=f"n{place}", **attributes)
        for place, (operator, inputs, output, attributes) in enumerate(nodes)
    ]
    body = helper.make_graph(
        made,
        "small",
        [helper.make_tensor_value_info("x", dtype, [2, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "outputs"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def reference(content, x):
    return ReferenceEvaluator(onnx.load_model_from_string(content)).run(None, {"x": x})[0]


def ours(spec, weights, x):
    """Logits of the inference file."""
    file = inference_graph(spec, weights, len(x)).pack()
    interpreter = ai_edge_litert.interpreter.Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x, np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(next(d["index"] for d in interpreter.get_output_details() if d["name"] == "logits"))


def assert_imported(content, x, arrange=lambda x: x, tolerance=2e-6):
    """The imported model makes of ``arrange(x)`` what the file makes of x; returns its specification."""
    spec, weights = import_onnx(content)
    expected = reference(content, x)
    found = ours(spec, weights, arrange(x))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    return spec
