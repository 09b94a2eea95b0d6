"""A model as it is put together from ONNX's nodes: layers so far, and where every number of a value stands in them.

ONNX keeps channels first and moves axes about; a ModelSpec keeps channels last. A value therefore carries, for each of
its numbers, the position of that number in what its layer makes. Transposing, reshaping and slicing only move these
positions and make no layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NoReturn

import attrs
import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray

from protocol.weights import Weights

from . import kinds
from .curves import PROBES, Curve, Line, recognised
from .fields import ModelSpecError, Shape
from .objectives import Objective, SigmoidCrossEntropy, SoftmaxCrossEntropy
from .onnx_file import MAX_NUMBERS, Numbers, OnnxError
from .rewrite import NORMED, SCALED, Node, fold
from .spec import ModelSpec

Positions = NDArray[np.intp]


@frozen(eq=False)
class Value:
    """What a node of the file makes of one sample.

    ``positions`` has the shape of the ONNX tensor without its axis ``batch``, and says where each number stands in the
    output of layer ``source`` (-1 is the input), which has ``shape``. ``curve`` is the function the numbers have gone
    through since then, None for none.
    """

    source: int
    shape: Shape
    positions: Positions
    batch: int = 0
    curve: Curve | None = None
    prefix: tuple[Value, Curve] | None = None
    """A value on the way here whose own curve is a layer, and the curve from there."""

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def whole(self) -> bool:
        return self.positions.size == math.prod(self.shape)

    def curve_from(self, other: Value) -> Curve | None:
        """The function from ``other`` to this, if it is one."""
        if other is self:
            return PROBES
        if self.prefix is not None and self.prefix[0] is other:
            return self.prefix[1]
        bare = other.curve is None and other.source == self.source
        if bare and np.array_equal(other.positions, self.positions):
            return PROBES if self.curve is None else self.curve
        return None


@define(eq=False)
class _Made:
    layer: kinds.Layer
    sources: tuple[int, ...]
    tensors: Weights
    label: str


class Trace:
    """Layers in the order they are made; ``label`` names the node of the file that is being read."""

    def __init__(self, shape: Shape, positions: Positions) -> None:
        self.input = shape
        self.label = ""
        self._made: list[_Made] = []
        self._shapes: dict[int, Shape] = {-1: shape}
        self._settled: dict[tuple[object, ...], int] = {}
        self._kept: dict[int, bool] = {}
        """Of recurrent layers: whether all steps are read, or the last only."""
        self.start = Value(-1, shape, positions)

    def refuse(self, reason: str) -> NoReturn:
        raise OnnxError(f"{self.label}: {reason}")

    def add(self, layer: kinds.Layer, *reads: Value, **tensors: Numbers) -> tuple[int, Shape]:
        """One layer more; its number and the shape it makes."""
        try:
            shape = layer.output(*(value.shape for value in reads))
        except ModelSpecError as error:
            self.refuse(str(error))
        if math.prod(shape) > MAX_NUMBERS:
            self.refuse(f"makes {math.prod(shape)} numbers of one sample, at most {MAX_NUMBERS} are allowed")
        self._made.append(_Made(layer, tuple(value.source for value in reads), tensors, self.label))
        number = len(self._made) - 1
        self._shapes[number] = shape
        return number, shape

    def channels_first(self, layer: kinds.Layer, *reads: Value, **tensors: Numbers) -> Value:
        """What a layer makes, as ONNX has it."""
        number, shape = self.add(layer, *reads, **tensors)
        return Value(number, shape, np.moveaxis(np.arange(math.prod(shape)).reshape(shape), -1, 0))

    def in_place(self, layer: kinds.Layer, value: Value, **tensors: Numbers) -> Value:
        """What a layer that moves no number makes of a settled value."""
        number, shape = self.add(layer, value, **tensors)
        return attrs.evolve(value, source=number, shape=shape, curve=None, prefix=None)

    # -- values as layers read them ------------------------------------------------------------------------------

    def settled(self, value: Value) -> Value:
        """The value with its curve made a layer, and all of its numbers there."""
        value = self._chosen(value)
        if value.curve is None:
            if not value.whole:
                self.refuse("reads a part of what a layer makes; expected all of it, or the last step of lstm and gru")
            return value
        key = (value.source, value.curve.tobytes())
        found = recognised(value.curve)
        if found is None and value.prefix is not None:
            base = self.settled(value.prefix[0])
            return self.settled(attrs.evolve(value, source=base.source, curve=value.prefix[1], prefix=None))
        bare = attrs.evolve(value, curve=None, prefix=None)
        if key in self._settled:
            return attrs.evolve(bare, source=self._settled[key])
        if found is None:
            self.refuse(
                "reads a function of one number that is none of relu, relu6, leaky_relu, sigmoid, tanh, gelu and silu"
            )
        made = self._affine_line(bare, found) if isinstance(found, Line) else self.in_place(found, bare)
        self._settled[key] = made.source
        return made

    def _affine_line(self, value: Value, line: Line) -> Value:
        if line == Line(1, 0) or (abs(line.slope - 1) < 1e-6 and abs(line.offset) < 1e-6):
            return value
        return self.affine(value, np.array(line.slope), np.array(line.offset))

    def _chosen(self, value: Value) -> Value:
        """Of a recurrent layer, all steps or the last one, whichever is read."""
        recurrent = value.source >= 0 and isinstance(self._made[value.source].layer, kinds.Lstm | kinds.Gru)
        if not recurrent or len(value.shape) == 1:
            return value
        made, (steps, units) = self._made[value.source], value.shape
        first = (steps - 1) * units
        last = bool((value.positions >= first).all())
        if self._kept.setdefault(value.source, not last) == last:
            self.refuse("reads all steps of a recurrent layer and its last step; expected one of them")
        made.layer = attrs.evolve(made.layer, sequences=not last)  # type: ignore[call-arg]
        return attrs.evolve(value, shape=(units,), positions=value.positions - first) if last else value

    def image(self, value: Value) -> Value:
        """The value as what makes channels first of its last: [C, H, W] or [C, T]."""
        value = self.settled(value)
        last = np.moveaxis(value.positions, 0, -1)
        return self._laid_out(value, last, last.shape)

    def signal(self, value: Value) -> Value:
        """The value as [T, F], its steps first."""
        value = self.settled(value)
        return self._laid_out(value, value.positions, value.positions.shape)

    def _laid_out(self, value: Value, order: Positions, shape: Shape) -> Value:
        if not np.array_equal(order.reshape(-1), np.arange(order.size)):
            self.refuse("reads numbers in an order that only a transposed copy would have; expected channels in place")
        if value.shape == shape:
            return value
        number, made = self.add(kinds.Reshape(shape), value)
        return attrs.evolve(value, source=number, shape=made)

    def flat(self, value: Value) -> Value:
        """The value as one row, in an order of its own."""
        value = self.settled(value)
        if value.batch != 0 or value.positions.ndim != 1:
            self.refuse(f"expected a flat row per sample, got {value.positions.ndim} axes; flatten before it")
        if len(value.shape) == 1:
            return value
        number, shape = self.add(kinds.Flatten(), value)
        return attrs.evolve(value, source=number, shape=shape)

    def affine(self, value: Value, factor: Numbers, offset: Numbers) -> Value:
        """Every channel times a factor plus an offset; these broadcast to the value's positions."""
        value = self.settled(value)
        scale, shift = (self.per_channel(value, numbers) for numbers in (factor, offset))
        return self.in_place(kinds.BatchNorm(), value, scale=scale, shift=shift)

    def per_channel(self, value: Value, numbers: Numbers) -> Numbers:
        """Constants that broadcast to the value as one per channel of its layer."""
        try:
            spread = np.broadcast_to(numbers, value.positions.shape)
        except ValueError:
            self.refuse(f"a constant of shape {numbers.shape} does not fit values of {value.positions.shape}")
        channel = value.positions % value.channels
        found = np.zeros(value.channels, np.float64)
        found[channel.reshape(-1)] = spread.reshape(-1)
        if not np.array_equal(found[channel], spread):
            self.refuse("a constant that is not the same all over a channel is not supported")
        return found

    # -- the end -------------------------------------------------------------------------------------------------

    def finished(self, name: str, result: Value) -> tuple[ModelSpec, Weights]:
        """The model that makes ``result``, its affine steps folded into what they follow."""
        result, loss = self._end(result)
        if not np.array_equal(result.positions.reshape(-1), np.arange(result.positions.size)):
            self.refuse("the output is not in the order its layer makes it")
        kept = self._reachable(result.source)
        places = {-1: -1} | {number: place for place, number in enumerate(kept)}
        chosen = [self._made[number] for number in kept]
        nodes = [Node(made.layer, tuple(places[s] for s in made.sources)) for made in chosen]
        steps = {
            place: (made.tensors["scale"], made.tensors["shift"])
            for place, made in enumerate(chosen)
            if isinstance(made.layer, kinds.BatchNorm)
        }
        shapes = [self._shapes[number] for number in kept]
        self._check_steps(nodes, chosen, steps, shapes)
        layers, weights = fold(nodes, [made.tensors for made in chosen], steps, shapes)
        return ModelSpec(name, self.input, result.shape[-1], layers, loss), weights

    def _end(self, result: Value) -> tuple[Value, Objective]:
        """A sigmoid at the end belongs to the loss."""
        self.label = "the output"
        if result.curve is not None and isinstance(recognised(result.curve), kinds.Sigmoid):
            return self.flat(attrs.evolve(result, curve=None, prefix=None)), SigmoidCrossEntropy()
        return self.flat(result), SoftmaxCrossEntropy()

    def _reachable(self, last: int) -> list[int]:
        found: set[int] = set()
        waiting = [last]
        while waiting:
            number = waiting.pop()
            if number >= 0 and number not in found:
                found.add(number)
                waiting += self._made[number].sources
        return sorted(found)

    def _check_steps(
        self, nodes: list[Node], made: list[_Made], steps: Mapping[int, object], shapes: list[Shape]
    ) -> None:
        """That every step per channel has a layer with weights right before it, or is over an image."""
        readers = Counter(source for node in nodes for source in node.sources)
        for place in steps:
            source = before = nodes[place].sources[0]
            while before in steps and readers[before] == 1:
                before = nodes[before].sources[0]
            absorbs = before >= 0 and isinstance(nodes[before].layer, (*SCALED, *NORMED))
            if len(shapes[place]) != 3 and not (absorbs and readers[source] == 1):
                raise OnnxError(
                    f"{made[place].label}: scales or shifts channels that no layer with weights makes right before it; "
                    f"expected it behind a convolution, a dense layer or a norm, or over an image"
                )
