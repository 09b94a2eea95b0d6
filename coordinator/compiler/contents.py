"""What a LiteRT file holds, read back."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema
from attrs import frozen

_IDENTIFIER = b"TFL3"
_SMALLEST = 32  # bytes; nothing shorter is a model
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}

Named = tuple[str, str, tuple[int, ...]]
"""Name, type and shape of a tensor."""


@frozen
class Contents:
    """``operators`` in execution order, custom ones as ``CUSTOM <name>``; ``constants`` in bytes."""

    signatures: tuple[str, ...]
    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]
    operators: tuple[str, ...]
    constants: int
    size: int


def contents(content: bytes) -> Contents:
    """Of the first subgraph; ValueError if the bytes are no LiteRT file."""
    if len(content) < _SMALLEST or content[4:8] != _IDENTIFIER:
        raise ValueError(f"these {len(content)} bytes are not a LiteRT file: identifier TFL3 is missing")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        graph = model.subgraphs[0]
        return Contents(
            tuple(signature.signatureKey.decode() for signature in model.signatureDefs or ()),
            tuple(_named(graph.tensors[index]) for index in graph.inputs),
            tuple(_named(graph.tensors[index]) for index in graph.outputs),
            tuple(_operator(model.operatorCodes[operator.opcodeIndex]) for operator in graph.operators),
            sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None),
            len(content),
        )
    except Exception as error:  # whatever a damaged table makes of the reader
        raise ValueError(f"these {len(content)} bytes are a damaged LiteRT file: {error!r:.100}") from None


def _named(tensor: Any) -> Named:
    return (tensor.name or b"").decode(), _TYPES[tensor.type], tuple(int(n) for n in tensor.shape)


def _operator(code: Any) -> str:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _OPERATORS[number]
    return f"CUSTOM {(code.customCode or b'').decode()}" if name == "CUSTOM" else name
