"""Runs compiled programs with NumPy alone, for boards no LiteRT wheel exists for.

An :class:`Interpreter` answers to the same calls as LiteRT's. A program is the JSON op list the compiler writes beside
every model file; it is read strictly and nothing in it is code.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

FORMAT = 1
_INT32 = 2  # the schema's number of the type
MAX_TENSOR = 1 << 28  # elements
_DTYPES: dict[str, Any] = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}
_CLIPS: dict[int, tuple[float | None, float | None]] = {1: (0, None), 2: (-1, 1), 3: (0, 6)}

Array = NDArray[Any]
Fields = Mapping[str, Any]
Kernel = Callable[[list[Array], Fields], Array | list[Array]]


class ProgramError(ValueError):
    """The bytes are no program this runtime can run."""


@frozen
class _Tensor:
    name: str
    dtype: Any
    shape: tuple[int, ...]


@frozen
class _Operation:
    kernel: Kernel
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    fields: Fields
    last: tuple[int, ...]
    """Tensors nothing reads any more afterwards."""


class Interpreter:
    """A program with its tensors. ``num_threads`` is what NumPy was built and told to use; the argument is ignored."""

    def __init__(self, model_content: bytes, num_threads: int = 1) -> None:
        program = _read(model_content)
        self._tensors = program.tensors
        self._inputs, self._outputs = program.inputs, program.outputs
        self._operations = program.operations
        self._values: dict[int, Array] = dict(program.constants)
        for index in self._inputs:
            self._values[index] = np.zeros(self._tensors[index].shape, self._tensors[index].dtype)

    def allocate_tensors(self) -> None:
        """Nothing to do: memory is taken while running."""

    def invoke(self) -> None:
        values = self._values
        with np.errstate(all="ignore"):  # as the other runtimes: infinities and NaN are results
            for operation in self._operations:
                made = operation.kernel([values[index] for index in operation.reads], operation.fields)
                for index, value in zip(operation.writes, made if isinstance(made, list) else [made], strict=True):
                    values[index] = value
                for index in operation.last:
                    del values[index]

    def set_tensor(self, index: int, value: Array) -> None:
        self._values[index] = np.array(value, self._tensors[index].dtype).reshape(self._tensors[index].shape)

    def get_tensor(self, index: int) -> Array:
        return np.array(self._values[index]).reshape(self._tensors[index].shape)

    def tensor(self, index: int) -> Callable[[], Array]:
        return lambda: self._values[index].reshape(self._tensors[index].shape)

    def get_input_details(self) -> list[dict[str, Any]]:
        return [self._detail(index) for index in self._inputs]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [self._detail(index) for index in self._outputs]

    def _detail(self, index: int) -> dict[str, Any]:
        tensor = self._tensors[index]
        return {"index": index, "name": tensor.name, "shape": np.array(tensor.shape), "dtype": tensor.dtype}


# -- Reading


@frozen
class _Program:
    tensors: list[_Tensor]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Array]
    operations: list[_Operation]


def _read(content: bytes) -> _Program:
    try:
        value = json.loads(content)
        if value["shoal"] != FORMAT:
            raise ProgramError(f"the program has format {value['shoal']!r}, this runtime reads {FORMAT}")
        tensors = [_tensor(*described) for described in value["tensors"]]
        constants = {int(index): _constant(tensors[int(index)], text) for index, text in value["constants"].items()}
        inputs, outputs = ([int(index) for index in value[key]] for key in ("inputs", "outputs"))
        operations = _operations(value["operations"], {*constants, *inputs, *outputs})
        _check_order(operations, {*constants, *inputs}, outputs, len(tensors))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, binascii.Error) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"these {len(content)} bytes are not a program: {error!r:.200}") from error
    return _Program(tensors, inputs, outputs, constants, operations)


def _tensor(name: str, dtype: str, shape: list[int]) -> _Tensor:
    if any(type(size) is not int or size < 1 for size in shape) or math.prod(shape) > MAX_TENSOR:
        raise ProgramError(f"tensor {name!r} has the shape {shape!r:.100}")
    return _Tensor(name, _DTYPES[dtype], tuple(shape))


def _constant(tensor: _Tensor, text: str) -> Array:
    little = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(base64.b64decode(text, validate=True), little).astype(tensor.dtype).reshape(tensor.shape)


def _operations(listed: list[Any], kept: set[int]) -> list[_Operation]:
    """The operations, each with the tensors that may be forgotten after it."""
    found: list[_Operation] = []
    needed = set(kept)
    for operator, reads, writes, fields in reversed(listed):
        if operator not in KERNELS:
            raise ProgramError(f"the program uses {operator!r}, which this runtime does not know")
        last = {*reads, *writes} - needed
        needed |= last
        found.append(_Operation(KERNELS[operator], tuple(reads), tuple(writes), dict(fields), tuple(last)))
    return found[::-1]


def _check_order(operations: list[_Operation], known: set[int], outputs: list[int], count: int) -> None:
    for operation in operations:
        if not known.issuperset(operation.reads) or not all(0 <= index < count for index in operation.writes):
            raise ProgramError("an operation reads a tensor that nothing has made before it")
        known.update(operation.writes)
    if not known.issuperset(outputs):
        raise ProgramError("an output is made by no operation")


# -- Kernels


def _activated(value: Array, fields: Fields) -> Array:
    code = int(fields.get("fusedActivationFunction", 0))
    return np.clip(value, *_CLIPS[code]) if code else value


def _binary(function: Callable[[Array, Array], Array]) -> Kernel:
    return lambda reads, fields: _activated(function(reads[0], reads[1]), fields)


def _unary(function: Callable[[Array], Array]) -> Kernel:
    return lambda reads, fields: function(reads[0])


def _sigmoid(x: Array) -> Array:
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


def _softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(grown / grown.sum(-1, keepdims=True))


def _log_softmax(x: Array) -> Array:
    rest = x - x.max(-1, keepdims=True)
    return np.asarray(rest - np.log(np.exp(rest).sum(-1, keepdims=True)))


def _sum(reads: list[Array], fields: Fields) -> Array:
    x, axes = reads[0], tuple(int(axis) for axis in reads[1].reshape(-1))
    return np.asarray(x.sum(axis=axes, keepdims=bool(fields["keepDims"])))


def _one_hot(reads: list[Array], _: Fields) -> Array:
    labels, depth, on, off = reads
    chosen = labels[..., None] == np.arange(depth.item())
    return np.where(chosen, on, off).astype(np.float32)


def _gather(reads: list[Array], fields: Fields) -> Array:
    return np.take(reads[0], reads[1], axis=int(fields["axis"]))


def _scatter(reads: list[Array], _: Fields) -> Array:
    rows, values, shape = reads
    made = np.zeros(shape, np.float32)
    np.add.at(made, rows[:, 0], values)
    return made


def _slice(reads: list[Array], _: Fields) -> Array:
    x, begin, size = reads
    return x[tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))]


def _split(reads: list[Array], fields: Fields) -> list[Array]:
    return np.split(reads[1], int(fields["numSplits"]), axis=reads[0].item())


def _windows(x: Array, size: tuple[int, int], fields: Fields) -> Array:
    """x[B, H, W, C] as [B, rows, columns, C, *size]."""
    view = np.lib.stride_tricks.sliding_window_view
    windows = view(view(x, size[0], axis=1), size[1], axis=2)
    return windows[:, :: int(fields["strideH"]), :: int(fields["strideW"])]


def _depthwise(reads: list[Array], fields: Fields) -> Array:
    x, weight, bias = reads
    made = np.einsum(
        "brcdhw,hwd->brcd", _windows(x, (weight.shape[1], weight.shape[2]), fields), weight[0], optimize=False
    )
    return np.asarray(made + bias, np.float32)


def _average(reads: list[Array], fields: Fields) -> Array:
    size = int(fields["filterHeight"]), int(fields["filterWidth"])
    return np.asarray(_windows(reads[0], size, fields).mean((-2, -1)), np.float32)


KERNELS: dict[str, Kernel] = {
    "ADD": _binary(np.add),
    "SUB": _binary(np.subtract),
    "MUL": _binary(np.multiply),
    "DIV": _binary(np.divide),
    "MAXIMUM": _binary(np.maximum),
    "MINIMUM": _binary(np.minimum),
    "EQUAL": _binary(np.equal),
    "BATCH_MATMUL": _binary(np.matmul),
    "RELU": _unary(lambda x: np.maximum(x, 0)),
    "RELU6": _unary(lambda x: np.clip(x, 0, 6)),
    "LOGISTIC": _unary(_sigmoid),
    "TANH": _unary(np.tanh),
    "EXP": _unary(np.exp),
    "LOG": _unary(np.log),
    "ABS": _unary(np.abs),
    "FLOOR": _unary(np.floor),
    "SQRT": _unary(np.sqrt),
    "RSQRT": _unary(lambda x: np.asarray(1 / np.sqrt(x))),
    "SOFTMAX": _unary(_softmax),
    "LOG_SOFTMAX": _unary(_log_softmax),
    "CAST": lambda reads, fields: reads[0].astype(np.int32 if fields["outDataType"] == _INT32 else np.float32),
    "ARG_MAX": lambda reads, fields: reads[0].argmax(-1).astype(np.int32),
    "SUM": _sum,
    "ONE_HOT": _one_hot,
    "RESHAPE": lambda reads, fields: reads[0].reshape(reads[1]),
    "TRANSPOSE": lambda reads, fields: np.ascontiguousarray(reads[0].transpose(reads[1])),
    "PAD": lambda reads, fields: np.pad(reads[0], reads[1]),
    "SLICE": _slice,
    "SPLIT": _split,
    "CONCATENATION": lambda reads, fields: np.concatenate(reads, axis=int(fields["axis"])),
    "GATHER": _gather,
    "SCATTER_ND": _scatter,
    "DEPTHWISE_CONV_2D": _depthwise,
    "AVERAGE_POOL_2D": _average,
}
"""Every operator the compiler writes."""
