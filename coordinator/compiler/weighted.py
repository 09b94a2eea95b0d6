"""Layers that multiply: dense, convolutions, embedding and recurrent ones."""

from __future__ import annotations

import math
from typing import ClassVar

from attrs import field, frozen

from . import fields
from .fields import SPARSE, ModelSpecError, Padding, Pair, Shape
from .layer import IN, OUT, Over, Single, Tensors, Weighted, image, signal

MAX_STEPS = 512  # that a recurrent layer is unrolled over


@frozen
class Dense(Weighted):
    """y = x·W + b; weight [in, units], bias [units]."""

    kind: ClassVar[str] = "dense"
    prefix: ClassVar[str] = "dense"
    units: int = field(validator=fields.size)

    def output(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != 1:
            raise ModelSpecError(f'expected a flat input, got shape {shapes[0]}; put "flatten" before it')
        return (self.units,)

    def tensors(self) -> Tensors:
        return self.with_bias(weight=(IN, OUT))


@frozen
class Conv2D(Weighted):
    """Cross-correlation over images; weight [kernel height, kernel width, channels, filters], bias [filters].

    Padding "same" gives ⌈size/stride⌉ positions, the odd pixel of padding going to the end; "valid" pads
    nothing.
    """

    kind: ClassVar[str] = "conv2d"
    prefix: ClassVar[str] = "conv"
    filters: int = field(validator=fields.size)
    kernel: Pair = field(validator=fields.pair)
    stride: Pair = field(default=(1, 1), validator=fields.pair)
    padding: Padding = field(default="same", validator=fields.padding)

    def output(self, *shapes: Shape) -> Shape:
        return *_slid(image(shapes[0])[:2], self), self.filters

    def tensors(self) -> Tensors:
        return self.with_bias(weight=(*self.kernel, IN, OUT))

    def positions(self, before: Shape, after: Shape) -> int:
        return after[0] * after[1]

    def values(self, before: Shape, after: Shape) -> int:
        return after[0] * after[1] * max(math.prod(self.kernel) * before[2], after[2])

    def padding_before(self, shape: Shape) -> Pair:
        """Rows above and columns left of an input of ``shape`` that the padding adds."""
        if self.padding == "valid":
            return 0, 0
        total = [
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(shape[:2], self.stride, self.kernel, strict=True)
        ]
        return total[0] // 2, total[1] // 2


@frozen
class Conv1D(Weighted):
    """Cross-correlation over signals; weight [kernel, channels, filters], bias [filters]. Padding as conv2d's."""

    kind: ClassVar[str] = "conv1d"
    prefix: ClassVar[str] = "conv"
    filters: int = field(validator=fields.size)
    kernel: int = field(validator=fields.size)
    stride: int = field(default=1, validator=fields.size)
    padding: Padding = field(default="same", validator=fields.padding)

    @property
    def over_images(self) -> Conv2D:
        """The same over images of one row."""
        return Conv2D(self.filters, (1, self.kernel), (1, self.stride), self.padding)

    def output(self, *shapes: Shape) -> Shape:
        return self.over_images.output((1, *signal(shapes[0])))[1:]

    def tensors(self) -> Tensors:
        return self.with_bias(weight=(self.kernel, IN, OUT))

    def positions(self, before: Shape, after: Shape) -> int:
        return after[0]

    def values(self, before: Shape, after: Shape) -> int:
        return self.over_images.values((1, *before), (1, *after))


@frozen
class DepthwiseConv2D(Single):
    """Every channel with its own kernel; weight [kernel height, kernel width, channels], bias [channels]."""

    kind: ClassVar[str] = "depthwise_conv2d"
    prefix: ClassVar[str] = "depthwise"
    kernel: Pair = field(validator=fields.pair)
    stride: Pair = field(default=(1, 1), validator=fields.pair)
    padding: Padding = field(default="same", validator=fields.padding)
    bias: bool = field(default=True, validator=fields.truth, kw_only=True, metadata=SPARSE)

    @property
    def dense(self) -> Conv2D:
        """The convolution of all channels that reads the same pixels."""
        return Conv2D(1, self.kernel, self.stride, self.padding)

    def output(self, *shapes: Shape) -> Shape:
        return *_slid(image(shapes[0])[:2], self.dense), shapes[0][2]

    def tensors(self) -> Tensors:
        return {"weight": (*self.kernel, IN)} | ({"bias": (IN,)} if self.bias else {})

    def positions(self, before: Shape, after: Shape) -> int:
        return after[0] * after[1]

    def values(self, before: Shape, after: Shape) -> int:
        return math.prod(after) * math.prod(self.kernel)


@frozen
class TransposedConv2D(Weighted):
    """The gradient of a convolution, as a layer: every pixel is spread over a kernel's window.

    Weight [kernel height, kernel width, channels, filters], bias [filters]. Padding "same" makes size·stride pixels,
    "valid" (size - 1)·stride + kernel.
    """

    kind: ClassVar[str] = "transposed_conv2d"
    prefix: ClassVar[str] = "transposed"
    filters: int = field(validator=fields.size)
    kernel: Pair = field(validator=fields.pair)
    stride: Pair = field(default=(1, 1), validator=fields.pair)
    padding: Padding = field(default="same", validator=fields.padding)

    @property
    def inverse(self) -> Conv2D:
        """The convolution whose gradient this is."""
        return Conv2D(1, self.kernel, self.stride, self.padding)

    def output(self, *shapes: Shape) -> Shape:
        pixels = zip(image(shapes[0])[:2], self.kernel, self.stride, strict=True)
        made = [n * s if self.padding == "same" else (n - 1) * s + k for n, k, s in pixels]
        return made[0], made[1], self.filters

    def tensors(self) -> Tensors:
        return self.with_bias(weight=(*self.kernel, IN, OUT))

    def positions(self, before: Shape, after: Shape) -> int:
        return before[0] * before[1]

    def values(self, before: Shape, after: Shape) -> int:
        return after[0] * after[1] * max(math.prod(self.kernel) * before[2], after[2])


def _slid(pixels: Shape, layer: Conv2D) -> Pair:
    """Positions of a kernel that slides over ``pixels``."""
    (height, width), (down, across) = pixels, layer.stride
    if layer.padding == "same":
        return -(-height // down), -(-width // across)
    if layer.kernel[0] > height or layer.kernel[1] > width:
        raise ModelSpecError(f"kernel {layer.kernel} is larger than its input {(height, width)}")
    return (height - layer.kernel[0]) // down + 1, (width - layer.kernel[1]) // across + 1


@frozen
class Embedding(Single):
    """Rows of a table [vocabulary, size] for whole numbers below ``vocabulary``; reads the model's input only."""

    kind: ClassVar[str] = "embedding"
    prefix: ClassVar[str] = "embedding"
    makes_channels: ClassVar[bool] = True
    vocabulary: int = field(validator=fields.size)
    size: int = field(validator=fields.size)

    def output(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != 1:
            raise ModelSpecError(f"expected a row of whole numbers as input, got shape {shapes[0]}")
        return *shapes[0], self.size

    def tensors(self) -> Tensors:
        return {"table": (self.vocabulary, OUT)}

    def positions(self, before: Shape, after: Shape) -> int:
        return 0


@frozen
class _Recurrent(Single):
    makes_channels: ClassVar[bool] = True
    gates: ClassVar[int]
    units: int = field(validator=fields.size)
    sequences: bool = field(default=False, validator=fields.truth)

    def output(self, *shapes: Shape) -> Shape:
        steps, _ = signal(shapes[0])
        if steps > MAX_STEPS:
            raise ModelSpecError(f"is unrolled over at most {MAX_STEPS} steps, got {steps}")
        return (steps, self.units) if self.sequences else (self.units,)

    def positions(self, before: Shape, after: Shape) -> int:
        return before[0]

    def values(self, before: Shape, after: Shape) -> int:
        return before[0] * self.units * self.gates


@frozen
class Lstm(_Recurrent):
    """Hochreiter and Schmidhuber's, unrolled; puts out the last state, or all with ``sequences``.

    Weight [channels, 4·units], recurrent [units, 4·units], bias [4·units]; gates input, forget, cell, output.
    """

    kind: ClassVar[str] = "lstm"
    prefix: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4

    def tensors(self) -> Tensors:
        return {"weight": (IN, Over("out", 4)), "recurrent": (OUT, Over("out", 4)), "bias": (Over("out", 4),)}


@frozen
class Gru(_Recurrent):
    """Cho et al.'s with the reset after the product, unrolled; puts out the last state, or all with ``sequences``.

    Weight [channels, 3·units], recurrent [units, 3·units], bias and recurrent_bias [3·units]; gates reset, update,
    candidate.
    """

    kind: ClassVar[str] = "gru"
    prefix: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    def tensors(self) -> Tensors:
        over = Over("out", 3)
        return {"weight": (IN, over), "recurrent": (OUT, over), "bias": (over,), "recurrent_bias": (over,)}
