"""What all layers of a model have in common: what they read, the shape they make, the tensors they hold.

Shapes are those of one sample: (features,), (steps, channels) of a signal or (height, width, channels) of an image.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from attrs import field, frozen

from . import fields
from .fields import SPARSE, ModelSpecError, Shape


@frozen
class Over:
    """A tensor's axis over the channels a layer reads ("in") or makes ("out"), in ``repeat`` positions."""

    channels: Literal["in", "out"]
    repeat: int = 1


IN, OUT = Over("in"), Over("out")
Tensors = dict[str, tuple[int | Over, ...]]


def image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelSpecError(f"expected an image (height, width, channels) as input, got shape {shape}")
    return shape[0], shape[1], shape[2]


def signal(shape: Shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ModelSpecError(f"expected a signal (steps, channels) as input, got shape {shape}")
    return shape[0], shape[1]


@frozen
class Layer:
    """What all layers have: a name others may refer to, and the layer they read, by default the one before."""

    kind: ClassVar[str]
    prefix: ClassVar[str] = ""
    """Of the names given to layers with tensors that have none; the layer's channel group goes by its name."""
    makes_channels: ClassVar[bool] = False
    """True if its output axis runs over a channel group of its own."""
    name: str = field(default="", validator=fields.name, kw_only=True, metadata=SPARSE)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the layers it reads; "" is the one before."""
        return (getattr(self, "input", ""),)

    def output(self, *shapes: Shape) -> Shape:
        """Shape it makes of the shapes it reads; ModelSpecError if it cannot."""
        return shapes[0]

    def tensors(self) -> Tensors:
        """Its tensors and their axes."""
        return {}

    def positions(self, before: Shape, after: Shape) -> int:
        """How often it multiplies one sample with its tensors."""
        return 1

    def values(self, before: Shape, after: Shape) -> int:
        """How many numbers one sample becomes inside."""
        return math.prod(after)


@frozen
class Single(Layer):
    """A layer that reads one other."""

    input: str = field(default="", validator=fields.source, kw_only=True, metadata=SPARSE)


@frozen
class Weighted(Single):
    """A layer that makes channels of its own by weights and, unless ``bias`` is false, adds a bias."""

    makes_channels: ClassVar[bool] = True
    bias: bool = field(default=True, validator=fields.truth, kw_only=True, metadata=SPARSE)
    name: str = field(default="", validator=fields.name, kw_only=True)

    def with_bias(self, **tensors: tuple[int | Over, ...]) -> Tensors:
        return tensors | ({"bias": (OUT,)} if self.bias else {})
