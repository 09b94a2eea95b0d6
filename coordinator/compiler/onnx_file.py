"""ONNX files as they are read: checked, with what depends on no input worked out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 29
MAX_NODES = 1 << 14
MAX_NUMBERS = 1 << 24
"""Of a constant that is worked out, and of what one sample may become."""
Numbers = NDArray[Any]

FOLDED = (
    *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Greater", "Identity"),
    *("Mul", "Neg", "Not", "Range", "ReduceProd", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose"),
    *("Unsqueeze", "Where", "ReduceMean", "Pow", "Reciprocal"),
)
"""Operators that are worked out where all they read is known."""


class OnnxError(ValueError):
    """The file is not one that can be imported. The text names the node and what was expected."""


def library() -> Any:
    """The package ``onnx``, which is imported where it is needed only."""
    try:
        import onnx
        import onnx.checker
        import onnx.inliner
        import onnx.numpy_helper
        import onnx.reference
    except ImportError as error:
        raise OnnxError(f"ONNX files need the package onnx: pip install 'shoal[onnx]' ({error})") from None
    return onnx


def read(source: bytes | str | Path) -> Any:
    """The ModelProto of a file or of its bytes; OnnxError if it is none, or keeps weights elsewhere."""
    onnx = library()
    label, content = ("these bytes", source) if isinstance(source, bytes) else (str(source), _content(Path(source)))
    if len(content) > MAX_BYTES:
        raise OnnxError(f"{label}: {len(content)} bytes are too many, expected at most {MAX_BYTES}")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has no public base class for what its two implementations raise
        raise OnnxError(f"{label}: not an ONNX file, it cannot be parsed ({type(error).__name__})") from None
    if not model.ir_version or not model.opset_import or not model.graph.node:
        raise OnnxError(f"{label}: not an ONNX file, or one without a graph")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise OnnxError(f"{label}: keeps its weights in another file; export the model into one file")
    try:
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:
        raise OnnxError(f"{label}: not a valid ONNX model: {first_line(error)}") from None
    if len(model.graph.node) > MAX_NODES:
        raise OnnxError(f"{label}: has {len(model.graph.node)} nodes, at most {MAX_NODES} are read")
    return model


def numbers(tensor: Any) -> Numbers:
    """The content of a TensorProto."""
    try:
        found: Numbers = library().numpy_helper.to_array(tensor)
    except (ValueError, TypeError, LookupError) as error:
        raise OnnxError(f"tensor {tensor.name!r} cannot be read: {first_line(error)}") from None
    return found


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes, texts as str and tensors as arrays."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = library().helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif attribute.HasField("t"):
            value = numbers(value)
        found[attribute.name] = value
    return found


def label(node: Any) -> str:
    """How errors call a node."""
    return f"node {node.name or (node.output[0] if node.output else '?')!r} ({node.op_type})"


def worked_out(node: Any, inputs: Sequence[Numbers | None], opset: int) -> list[Numbers]:
    """What a node makes of known numbers."""
    onnx = library()
    if node.op_type in ("ConstantOfShape", "Expand", "Range"):
        _check_size(node, inputs)
    names = [name for name, value in zip(node.input, inputs, strict=True) if value is not None]
    given = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names]
    made = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", given, made)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
    try:
        return [np.asarray(value) for value in onnx.reference.ReferenceEvaluator(model).run(None, feeds)]
    except Exception as error:
        raise OnnxError(f"{label(node)}: cannot be worked out: {first_line(error)}") from None


def _check_size(node: Any, inputs: Sequence[Numbers | None]) -> None:
    if node.op_type == "Range":
        start, stop, step = (float(np.ravel(value)[0]) if value is not None else 1.0 for value in inputs)
        count = abs(stop - start) / max(abs(step), 1e-9)
    else:
        asked = inputs[-1]
        count = math.prod(int(n) for n in np.ravel(asked)) if asked is not None else 0
    if not count <= MAX_NUMBERS:
        raise OnnxError(f"{label(node)}: makes {count:.0f} numbers, at most {MAX_NUMBERS} are allowed")


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise OnnxError(f"{path}: {size} bytes are too many, expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise OnnxError(f"{path} cannot be read: {error.strerror}") from None


def first_line(error: Exception) -> str:
    """What an error of a library says, briefly."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
