"""Layers that pool, bend, norm, drop, join or reshape."""

from __future__ import annotations

import math
from typing import ClassVar

from attrs import field, frozen

from . import fields
from .fields import ModelSpecError, Shape
from .layer import IN, Layer, Single, Tensors, image, signal


@frozen
class _Pool(Single):
    size: Shape = field(validator=fields.sizes(1, 2, "two whole numbers, or one for a signal,"))

    def output(self, *shapes: Shape) -> Shape:
        shape = shapes[0]
        (signal if len(self.size) == 1 else image)(shape)
        if any(window > n for window, n in zip(self.size, shape, strict=False)):
            raise ModelSpecError(f"window {self.size} is larger than its input {shape[:-1]}")
        return *(n // window for window, n in zip(self.size, shape, strict=False)), shape[-1]

    def values(self, before: Shape, after: Shape) -> int:
        return math.prod(before)


@frozen
class MaxPool(_Pool):
    """The maximum of every window; windows do not overlap, rows and columns left over are dropped."""

    kind: ClassVar[str] = "max_pool"


@frozen
class AveragePool(_Pool):
    """The mean of every window; windows do not overlap, rows and columns left over are dropped."""

    kind: ClassVar[str] = "average_pool"


@frozen
class GlobalAveragePool(Single):
    """The mean of every channel over all positions of an image or signal."""

    kind: ClassVar[str] = "global_average_pool"

    def output(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) < 2:
            raise ModelSpecError(f"expected an image or a signal as input, got shape {shapes[0]}")
        return shapes[0][-1:]


@frozen
class Relu(Single):
    """max(x, 0); its derivative at 0 is 0."""

    kind: ClassVar[str] = "relu"


@frozen
class Relu6(Single):
    """min(max(x, 0), 6); its derivative at 0 and 6 is 0."""

    kind: ClassVar[str] = "relu6"


@frozen
class LeakyRelu(Single):
    """x where x > 0, else slope·x."""

    kind: ClassVar[str] = "leaky_relu"
    slope: float = field(default=0.01, validator=fields.number(0, 1))


@frozen
class Sigmoid(Single):
    """1 / (1 + e⁻ˣ)."""

    kind: ClassVar[str] = "sigmoid"


@frozen
class Tanh(Single):
    """The hyperbolic tangent."""

    kind: ClassVar[str] = "tanh"


@frozen
class Gelu(Single):
    """x·Φ(x) in the tanh form: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""

    kind: ClassVar[str] = "gelu"


@frozen
class Silu(Single):
    """x·sigmoid(x)."""

    kind: ClassVar[str] = "silu"


@frozen
class Flatten(Single):
    """An image or signal as one row, the channel fastest."""

    kind: ClassVar[str] = "flatten"

    def output(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) < 2:
            raise ModelSpecError(f"expected an image or a signal as input, got shape {shapes[0]}")
        return (math.prod(shapes[0]),)


@frozen
class Reshape(Single):
    """The same numbers in another shape.

    Channels that do not stay whole are cut at no width: neither these nor the ones they were made of.
    """

    kind: ClassVar[str] = "reshape"
    shape: Shape = field(validator=fields.sizes(1, 3, "one to three whole numbers"))

    def output(self, *shapes: Shape) -> Shape:
        if math.prod(shapes[0]) != math.prod(self.shape):
            raise ModelSpecError(f"expected {math.prod(self.shape)} numbers as input, got shape {shapes[0]}")
        return self.shape


@frozen
class _Join(Layer):
    inputs: tuple[str, ...] = field(validator=fields.sources)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs


@frozen
class Add(_Join):
    """The sum of layers of equal shape; channels that are added are cut together."""

    kind: ClassVar[str] = "add"

    def output(self, *shapes: Shape) -> Shape:
        for name, shape in zip(self.inputs, shapes, strict=True):
            if shape != shapes[0]:
                raise ModelSpecError(f"expected equal shapes, but {self.inputs[0]!r} has {shapes[0]}, {name!r} {shape}")
        return shapes[0]


@frozen
class Concat(_Join):
    """The channels of layers one after another."""

    kind: ClassVar[str] = "concat"

    def output(self, *shapes: Shape) -> Shape:
        for name, shape in zip(self.inputs, shapes, strict=True):
            if shape[:-1] != shapes[0][:-1]:
                raise ModelSpecError(
                    f"expected shapes that differ in channels only, "
                    f"but {self.inputs[0]!r} has {shapes[0]}, {name!r} {shape}"
                )
        return *shapes[0][:-1], sum(shape[-1] for shape in shapes)


@frozen
class _Norm(Single):
    epsilon: float = field(default=1e-5, validator=fields.number(1e-12, 1))

    def tensors(self) -> Tensors:
        return {"scale": (IN,), "shift": (IN,)}


@frozen
class BatchNorm(_Norm):
    """Static batch norm (HeteroFL, Diao et al., ICLR 2021): statistics of the batch, of rows with weight only.

    The statistics are put out while training and put in otherwise; nothing is tracked. Tensors scale and shift
    [channels].
    """

    kind: ClassVar[str] = "batch_norm"
    prefix: ClassVar[str] = "batch_norm"


@frozen
class GroupNorm(_Norm):
    """Every sample and group of neighbouring channels to mean 0 and variance 1; scale and shift [channels].

    Where the channels kept at a width cannot be divided by ``groups``, their greatest common divisor is used.
    """

    kind: ClassVar[str] = "group_norm"
    prefix: ClassVar[str] = "group_norm"
    groups: int = field(validator=fields.size, kw_only=True)

    def output(self, *shapes: Shape) -> Shape:
        if shapes[0][-1] % self.groups:
            raise ModelSpecError(f"groups must divide the {shapes[0][-1]} channels of its input, not {self.groups}")
        return shapes[0]


@frozen
class LayerNorm(_Norm):
    """The channels of every sample and position to mean 0 and variance 1; scale and shift [channels]."""

    kind: ClassVar[str] = "layer_norm"
    prefix: ClassVar[str] = "layer_norm"


@frozen
class Dropout(Single):
    """While training, 0 with probability ``rate`` and x/(1 - rate) otherwise."""

    kind: ClassVar[str] = "dropout"
    prefix: ClassVar[str] = "dropout"
    rate: float = field(validator=fields.number(0, 0.99))
