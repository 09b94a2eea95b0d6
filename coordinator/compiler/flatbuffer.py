"""Writes LiteRT models of one subgraph and one signature.

The schema classes (object API) are those the installed ``ai_edge_litert`` package carries. Bytes depend on
nothing but the calls made, so the same graph has the same hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from attrs import field, frozen
from numpy.typing import NDArray

from . import packing

DType = Literal["float32", "int32", "bool", "int8"]
Shape = tuple[int, ...]

TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "bool": schema.TensorType.BOOL,
    "int8": schema.TensorType.INT8,
}
_WHOLE_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1}
"""Versions of operators that read whole numbers; those of the others are 2."""
_SCHEMA_VERSION = 3
_FILE_IDENTIFIER = b"TFL3"
_DTYPES: dict[str, DType] = {"i4": "int32", "i1": "int8"}


@frozen
class Scale:
    """What whole numbers q stand for: step·(q - zero); ``steps`` are one, or one per element of ``axis``."""

    steps: tuple[float, ...]
    zero: int = 0
    axis: int = 0


@frozen
class Tensor:
    """A tensor of the graph under construction: its number, shape, element type and, if quantised, its scale."""

    index: int
    shape: Shape
    dtype: DType = "float32"
    scale: Scale | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@frozen
class Operation:
    """One operator: numbers of the tensors it reads and writes, and the content of its schema table ``options``."""

    operator: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    options: str = ""
    fields: dict[str, Any] = field(factory=dict)


class Writer:
    """Collects tensors and operators in execution order, then packs them."""

    def __init__(self, signature: str) -> None:
        self.signature = signature
        self.tensors: list[Tensor] = []
        self.operations: list[Operation] = []
        """In execution order."""
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.constants: dict[int, NDArray[Any]] = {}
        """Content by number of the tensor."""
        self._computed: dict[tuple[object, ...], list[Tensor]] = {}
        self._known: dict[tuple[str, Shape, bytes, Scale | None], Tensor] = {}
        self._records: list[packing.Tensor] = []
        self._codes: dict[int, int] = {}
        self._versions: dict[int, int] = {}
        self._buffers: list[Any] = [schema.BufferT()]  # buffer 0 means "no data"

    def input(self, name: str, shape: Shape, dtype: DType = "float32") -> Tensor:
        tensor = self.inputs[name] = self._tensor(shape, dtype, name)
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        """Name ``tensor`` as an output; it must be written by an operator and be named only once."""
        self._records[tensor.index].name = name
        self.outputs[name] = tensor

    def constant(self, value: NDArray[Any], scale: Scale | None = None) -> Tensor:
        """A tensor of fixed content; equal content of one scale is stored once."""
        content = np.ascontiguousarray(value)
        key = (content.dtype.str, content.shape, content.tobytes(), scale)
        if key not in self._known:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(key[2], np.uint8)
            self._buffers.append(buffer)
            dtype = _DTYPES.get(content.dtype.str[1:], "float32")
            tensor = self._tensor(content.shape, dtype, buffer=len(self._buffers) - 1, scale=scale)
            self._known[key] = tensor
            self.constants[tensor.index] = content
        return self._known[key]

    def emit(
        self,
        operator: str,
        inputs: Sequence[Tensor],
        shape: Shape,
        options: str = "",
        dtype: DType = "float32",
        scale: Scale | None = None,
        **fields: Any,
    ) -> Tensor:
        """Append an operator with one output."""
        return self.emit_many(operator, inputs, [shape], options, dtype, scale, **fields)[0]

    def emit_many(
        self,
        operator: str,
        inputs: Sequence[Tensor],
        shapes: Sequence[Shape],
        options: str = "",
        dtype: DType = "float32",
        scale: Scale | None = None,
        **fields: Any,
    ) -> list[Tensor]:
        """Append an operator; ``options`` is the name of its schema table, ``fields`` the table's content.

        What has been computed before is not computed again, except what is gathered: large, and cheaper to make anew
        than to keep.
        """
        reads = tuple(tensor.index for tensor in inputs)
        key = (operator, reads, tuple(shapes), dtype, scale, *fields.items())
        if key in self._computed:
            return self._computed[key]
        outputs = [self._tensor(shape, dtype, scale=scale) for shape in shapes]
        self.operations.append(Operation(operator, reads, tuple(t.index for t in outputs), options, fields))
        if operator != "GATHER":
            self._computed[key] = outputs
        return outputs

    def pack(self) -> bytes:
        """The finished model file, without the operators whose results nothing needs."""
        self._forget_unused()
        packed = [self._operator(operation) for operation in self.operations]
        model = schema.ModelT()
        model.version = _SCHEMA_VERSION
        model.operatorCodes = [_operator_code(code, self._versions.get(code, 1)) for code in self._codes]
        model.subgraphs = [self._subgraph(packed)]
        model.buffers = self._buffers
        model.signatureDefs = [self._signature()]
        builder = packing.Builder(1 << 14)
        builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _tensor(
        self, shape: Shape, dtype: DType, name: str = "", buffer: int = 0, scale: Scale | None = None
    ) -> Tensor:
        tensor = Tensor(len(self.tensors), tuple(int(size) for size in shape), dtype, scale)
        record = packing.Tensor(tensor.shape, TYPES[dtype], buffer, name)
        if scale is not None:
            record.quantization = schema.QuantizationParametersT()
            record.quantization.scale = np.array(scale.steps, np.float32)
            record.quantization.zeroPoint = np.full(len(scale.steps), scale.zero, np.int64)
            record.quantization.quantizedDimension = scale.axis
        self.tensors.append(tensor)
        self._records.append(record)
        return tensor

    def _forget_unused(self) -> None:
        needed = {tensor.index for tensor in self.outputs.values()}
        kept: list[Operation] = []
        for operation in reversed(self.operations):
            if not needed.isdisjoint(operation.writes):
                needed.update(operation.reads)
                kept.append(operation)
        self.operations = kept[::-1]

    def _operator(self, operation: Operation) -> packing.Operator:
        code: int = getattr(schema.BuiltinOperator, operation.operator)
        number = self._codes.setdefault(code, len(self._codes))
        if any(self.tensors[index].dtype == "int8" for index in operation.reads):
            self._versions[code] = _WHOLE_VERSIONS.get(operation.operator, 2)
        return packing.Operator(number, operation.reads, operation.writes, operation.options, operation.fields)

    def _subgraph(self, packed: list[Any]) -> Any:
        subgraph = schema.SubGraphT()
        subgraph.name = self.signature.encode()
        subgraph.tensors = self._records
        subgraph.inputs = [tensor.index for tensor in self.inputs.values()]
        subgraph.outputs = [tensor.index for tensor in self.outputs.values()]
        subgraph.operators = packed
        return subgraph

    def _signature(self) -> Any:
        signature = schema.SignatureDefT()
        signature.signatureKey = self.signature.encode()
        signature.subgraphIndex = 0
        signature.inputs = [_tensor_map(name, tensor) for name, tensor in self.inputs.items()]
        signature.outputs = [_tensor_map(name, tensor) for name, tensor in self.outputs.items()]
        return signature


def _operator_code(code: int, version: int) -> Any:
    record = schema.OperatorCodeT()
    record.builtinCode = code
    record.deprecatedBuiltinCode = min(code, 127)  # one byte; 127 says "read builtinCode"
    record.version = version
    return record


def _tensor_map(name: str, tensor: Tensor) -> Any:
    record = schema.TensorMapT()
    record.name = name.encode()
    record.tensorIndex = tensor.index
    return record
