"""The operators training graphs are made of, with shape inference.

Only operators that are fast on both runtimes: matrix products in NN form (other storage orders are up to
eight times slower in tflite-runtime 2.14), no comparison feeding a select (twenty times slower there than a
fused clip).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .flatbuffer import TYPES, DType, Shape, Tensor, Writer

_HUGE = 3e38  # times any positive float that is not denormal: at least 1

_LARGE = 1 << 16  # elements; copying less is cheaper than one more partition
_DETOUR_AXES = 8  # XNNPACK takes six


class Activation(IntEnum):
    """What an operator does to its result on the way out; the schema's numbers."""

    NONE = 0
    RELU = 1
    CLIP = 2  # to [-1, 1]


NONE, RELU = Activation.NONE, Activation.RELU


class Graph(Writer):
    """A :class:`Writer` that knows operators. Every method appends one and returns what it computes."""

    def numbers(self, values: Sequence[Any]) -> Tensor:
        return self.constant(np.asarray(values, np.int32))

    def scalar(self, value: float) -> Tensor:
        return self.constant(np.asarray(value, np.float32))

    # Element-wise, with broadcasting.

    def add(self, a: Tensor, b: Tensor, activation: Activation = NONE) -> Tensor:
        return self._binary("ADD", "AddOptions", a, b, activation)

    def subtract(self, a: Tensor, b: Tensor, activation: Activation = NONE) -> Tensor:
        return self._binary("SUB", "SubOptions", a, b, activation)

    def multiply(self, a: Tensor, b: Tensor, activation: Activation = NONE) -> Tensor:
        return self._binary("MUL", "MulOptions", a, b, activation)

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        return self._binary("DIV", "DivOptions", a, b, NONE)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return self.emit("MAXIMUM", [a, b], np.broadcast_shapes(a.shape, b.shape), "MaximumMinimumOptions")

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return self.emit("MINIMUM", [a, b], np.broadcast_shapes(a.shape, b.shape), "MaximumMinimumOptions")

    def relu(self, x: Tensor) -> Tensor:
        return self.emit("RELU", [x], x.shape)

    def relu6(self, x: Tensor) -> Tensor:
        return self.emit("RELU6", [x], x.shape)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self.emit("LOGISTIC", [x], x.shape)

    def tanh(self, x: Tensor) -> Tensor:
        return self.emit("TANH", [x], x.shape)

    def exp(self, x: Tensor) -> Tensor:
        return self.emit("EXP", [x], x.shape, "ExpOptions")

    def log(self, x: Tensor) -> Tensor:
        return self.emit("LOG", [x], x.shape)

    def magnitude(self, x: Tensor) -> Tensor:
        return self.emit("ABS", [x], x.shape, "AbsOptions")

    def floor(self, x: Tensor) -> Tensor:
        return self.emit("FLOOR", [x], x.shape)

    def square_root(self, x: Tensor) -> Tensor:
        return self.emit("SQRT", [x], x.shape)

    def inverse_root(self, x: Tensor) -> Tensor:
        return self.emit("RSQRT", [x], x.shape)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x if factor == 1 else self.multiply(x, self.scalar(factor))

    def positive(self, x: Tensor) -> Tensor:
        """1 where x > 0 and 0 where x = 0, for x that is never negative; denormal x may give a fraction."""
        return self.multiply(x, self.scalar(_HUGE), Activation.CLIP)

    def equal(self, a: Tensor, b: Tensor) -> Tensor:
        return self.emit("EQUAL", [a, b], np.broadcast_shapes(a.shape, b.shape), "EqualOptions", "bool")

    def as_float(self, x: Tensor) -> Tensor:
        return self._cast(x, "float32")

    def as_whole(self, x: Tensor) -> Tensor:
        return self._cast(x, "int32")

    # Products and sums.

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a[m, k] · b[k, n]."""
        fields: dict[str, Any] = {"adjX": False, "adjY": False, "asymmetricQuantizeInputs": False}
        return self.emit("BATCH_MATMUL", [a, b], (a.shape[0], b.shape[1]), "BatchMatMulOptions", **fields)

    def matmul_tn(self, a: Tensor, b: Tensor) -> Tensor:
        """aᵀ·b for a[k, m] and b[k, n], transposing whatever moves fewer numbers."""
        (k, m), n = a.shape, b.shape[1]
        if k * m <= k * n + m * n:
            return self.matmul(self.transpose(a, (1, 0)), b)
        return self.transpose(self.matmul(self.transpose(b, (1, 0)), a), (1, 0))

    def matmul_nt(self, a: Tensor, b: Tensor) -> Tensor:
        """a·bᵀ for a[m, k] and b[n, k], transposing whatever moves fewer numbers."""
        (m, k), n = a.shape, b.shape[0]
        if n * k <= m * k + m * n:
            return self.matmul(a, self.transpose(b, (1, 0)))
        return self.transpose(self.matmul(b, self.transpose(a, (1, 0))), (1, 0))

    def sum(self, x: Tensor, axis: int | tuple[int, ...], keep: bool = False) -> Tensor:
        axes = axis if isinstance(axis, tuple) else (axis,)
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
        return self.emit("SUM", [x, self.numbers(axes)], shape, "ReducerOptions", keepDims=keep)

    def depthwise(self, x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
        """Every channel of x[B, H, W, C] with its own kernel of weight[kh, kw, C], nothing padded."""
        (batch, height, width, channels), (high, wide, _) = x.shape, weight.shape
        shape = (batch, (height - high) // stride[0] + 1, (width - wide) // stride[1] + 1, channels)
        inputs = [x, self.copy(weight, (1, *weight.shape)), self.constant(np.zeros(channels, np.float32))]
        fields: dict[str, Any] = {"padding": 1, "depthMultiplier": 1, "strideH": stride[0], "strideW": stride[1]}
        return self.emit(
            "DEPTHWISE_CONV_2D", inputs, shape, "DepthwiseConv2DOptions", **fields, dilationHFactor=1, dilationWFactor=1
        )

    def average_pool(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Means over windows of x[B, H, W, C] that do not overlap and fill it."""
        shape = (x.shape[0], x.shape[1] // window[0], x.shape[2] // window[1], x.shape[3])
        high, wide = window
        fields: dict[str, Any] = {
            "padding": 1,
            "filterHeight": high,
            "filterWidth": wide,
            "strideH": high,
            "strideW": wide,
        }
        return self.emit("AVERAGE_POOL_2D", [x], shape, "Pool2DOptions", **fields)

    # Classes.

    def log_softmax(self, x: Tensor) -> Tensor:
        return self.emit("LOG_SOFTMAX", [x], x.shape, "LogSoftmaxOptions")

    def softmax(self, x: Tensor) -> Tensor:
        return self.emit("SOFTMAX", [x], x.shape, "SoftmaxOptions", beta=1.0)

    def one_hot(self, labels: Tensor, classes: int) -> Tensor:
        depth = self.constant(np.asarray(classes, np.int32))
        inputs = [labels, depth, self.scalar(1), self.scalar(0)]
        return self.emit("ONE_HOT", inputs, (*labels.shape, classes), "OneHotOptions", axis=-1)

    def argmax(self, x: Tensor) -> Tensor:
        """Position of the maximum along the last axis, the first of equals; int32."""
        axis = self.numbers([len(x.shape) - 1])
        fields: dict[str, Any] = {"outputType": 2}  # TensorType.INT32
        return self.emit("ARG_MAX", [x, axis], x.shape[:-1], "ArgMaxOptions", "int32", **fields)

    # Movement.

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """x in another shape, without moving it where that would cost.

        XNNPACK copies what it reshapes, the runtimes themselves do not. A detour over more axes than XNNPACK takes
        keeps large tensors out of its hands (CNN step: 6 % faster with LiteRT, 30 % with tflite-runtime 2.14).
        """
        if shape == x.shape:
            return x
        if x.size >= _LARGE and x not in self.inputs.values():
            x = self.copy(x, (1,) * (_DETOUR_AXES - len(x.shape)) + x.shape)
        return self.copy(x, shape)

    def copy(self, x: Tensor, shape: Shape) -> Tensor:
        """A reshape that is written even where it changes nothing."""
        return self.emit("RESHAPE", [x, self.numbers(shape)], shape, dtype=x.dtype)

    def result(self, name: str, x: Tensor, shape: Shape) -> None:
        """Name x, reshaped, as an output; unlike :meth:`output` whatever else it is."""
        made = self.copy(x, shape)
        taken = made in self.outputs.values() or made in self.inputs.values()
        self.output(name, self.add(made, self.scalar(0)) if taken else made)

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        shape = tuple(x.shape[axis] for axis in order)
        return self.emit("TRANSPOSE", [x, self.numbers(order)], shape, "TransposeOptions", x.dtype)

    def pad(self, x: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
        """Zeros before and after every axis."""
        if not any(before or after for before, after in widths):
            return x
        shape = tuple(before + size + after for size, (before, after) in zip(x.shape, widths, strict=True))
        return self.emit("PAD", [x, self.numbers(widths)], shape, "PadOptions")

    def spread(self, x: Tensor, shape: Shape) -> Tensor:
        """x repeated along its axes of length 1 until it has ``shape``."""
        if x.shape == shape:
            return x
        zeros = tuple(n if m != n else 1 for m, n in zip(x.shape, shape, strict=True))
        return self.add(x, self.constant(np.zeros(zeros, np.float32)))

    def slice(self, x: Tensor, begin: Shape, size: Shape) -> Tensor:
        return self.emit("SLICE", [x, self.numbers(begin), self.numbers(size)], size, "SliceOptions")

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        fields: dict[str, Any] = {"axis": axis, "fusedActivationFunction": NONE}
        return self.emit("CONCATENATION", parts, tuple(shape), "ConcatenationOptions", **fields)

    def split(self, x: Tensor, axis: int, count: int) -> list[Tensor]:
        """``count`` equal parts."""
        if count == 1:
            return [x]
        part = tuple(size // count if i == axis else size for i, size in enumerate(x.shape))
        where = self.constant(np.asarray(axis, np.int32))
        return self.emit_many("SPLIT", [where, x], [part] * count, "SplitOptions", numSplits=count)

    def gather(self, x: Tensor, index: NDArray[np.int32], axis: int) -> Tensor:
        shape = (*x.shape[:axis], index.size, *x.shape[axis + 1 :])
        inputs = [x, self.constant(index.reshape(-1))]
        return self.emit("GATHER", inputs, shape, "GatherOptions", axis=axis, batchDims=0)

    def look_up_at(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[B, P, C] at int32 ``positions`` [n] of every sample."""
        shape = (x.shape[0], positions.size, x.shape[2])
        return self.emit("GATHER", [x, positions], shape, "GatherOptions", axis=1, batchDims=0)

    def look_up(self, table: Tensor, rows: Tensor) -> Tensor:
        """table[rows] for int32 rows known at run time only."""
        shape = (*rows.shape, *table.shape[1:])
        return self.emit("GATHER", [table, rows], shape, "GatherOptions", axis=0, batchDims=0)

    def scatter(self, rows: Tensor, values: Tensor, count: int) -> Tensor:
        """Zeros [count, C] with every row of values[n, C] added to the one that rows[n] names."""
        shape = (count, values.shape[1])
        inputs = [self.reshape(rows, (rows.size, 1)), values, self.numbers(shape)]
        return self.emit("SCATTER_ND", inputs, shape, "ScatterNdOptions")

    def _cast(self, x: Tensor, dtype: DType) -> Tensor:
        fields: dict[str, Any] = {"inDataType": TYPES[x.dtype], "outDataType": TYPES[dtype]}
        return self.emit("CAST", [x], x.shape, "CastOptions", dtype, **fields)

    def _binary(self, operator: str, options: str, a: Tensor, b: Tensor, activation: Activation) -> Tensor:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.emit(operator, [a, b], shape, options, a.dtype, fusedActivationFunction=activation)


__all__ = ["NONE", "RELU", "Activation", "DType", "Graph", "Shape", "Tensor"]
