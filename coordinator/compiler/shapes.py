"""The tensors of a model: their names, their axes, and the values training starts from."""

from __future__ import annotations

import math

import attrs
import numpy as np

from protocol.subnetwork import CLASSES, Axis, Layout
from protocol.weights import Array, Weights

from .fields import Shape
from .kinds import Add, Concat, Dense, Layer, Reshape
from .layer import Over
from .spec import ModelSpec


def layout(spec: ModelSpec) -> Layout:
    """Axes of ``<layer>.<tensor>``, in model order.

    A layer that makes channels owns the group of its name; what reads it runs over the same group. Groups that are
    added are one, named by the first of their layers. The axis of the logits runs over ``classes``. Axes over the raw
    input belong to no group, nor do channels that are added to it, reshaped apart or put out as targets.
    """
    axes = _Axes(spec)
    found: Layout = {}
    for index, layer in enumerate(spec.layers):
        read, made = axes.read(index), axes.made[index]
        for name, roles in layer.tensors().items():
            found[f"{layer.name}.{name}"] = tuple(axes.resolved(_over(role, read, made)) for role in roles)
    return found


def made_axis(spec: ModelSpec, index: int) -> Axis:
    """The axis over the channels that layer ``index`` makes; -1 is the input."""
    axes = _Axes(spec)
    return axes.resolved(axes.input if index < 0 else axes.made[index])


def _over(role: int | Over, read: Axis, made: Axis) -> Axis:
    if isinstance(role, int):
        return Axis(role)
    axis = read if role.channels == "in" else made
    return _repeated(axis, role.repeat)


def _repeated(axis: Axis, count: int) -> Axis:
    """The axis, all of it ``count`` times over."""
    if axis.group is None and not axis.parts:
        return Axis(axis.size * count)
    return Axis(axis.size * count, axis.group, axis.repeat * count, axis.parts)


class _Axes:
    """Channel axes of what every layer makes; groups that must be cut together are tied by union and find."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._tied: dict[str, str] = {}
        self._fixed: set[str] = set()
        self.input = Axis(spec.input[-1])
        self.made: list[Axis] = []
        for index, layer in enumerate(spec.layers):
            self.made.append(self._axis(index, layer))
        last = spec.layers[-1]
        if not isinstance(last, Dense):
            self._fix(self.made[-1])
        else:
            self._tied[last.name] = CLASSES

    def read(self, index: int) -> Axis:
        """The axis of what layer ``index`` reads first."""
        source = self._spec.sources[index][0]
        return self.input if source < 0 else self.made[source]

    def resolved(self, axis: Axis) -> Axis:
        """The axis with its groups' final names, None where they are never cut."""
        if axis.parts:
            return attrs.evolve(axis, parts=tuple(self.resolved(part) for part in axis.parts))
        group = None if axis.group is None else self._root(axis.group)
        if group is None or group in self._fixed:
            return Axis(axis.size)
        return attrs.evolve(axis, group=group)

    def _axis(self, index: int, layer: Layer) -> Axis:
        before, after = self.read(index), self._spec.shapes[index]
        if layer.makes_channels:
            return Axis(after[-1], layer.name)
        if isinstance(layer, Add):
            for source in self._spec.sources[index][1:]:
                self._tie(before, self.input if source < 0 else self.made[source])
            return before
        if isinstance(layer, Concat):
            sources = self._spec.sources[index]
            return Axis(after[-1], parts=tuple(self.input if s < 0 else self.made[s] for s in sources))
        return before if after[-1] == before.size else self._reshaped(layer, before, after)

    def _reshaped(self, layer: Layer, before: Axis, after: Shape) -> Axis:
        """Channels in more positions (flatten) or in fewer again; else they cannot be told apart any more."""
        if after[-1] % before.size == 0:
            return _repeated(before, after[-1] // before.size)
        fewer = before.size // after[-1]
        if isinstance(layer, Reshape) and before.size % after[-1] == 0 and before.repeat % fewer == 0 and before.group:
            return Axis(after[-1], before.group, before.repeat // fewer)
        self._fix(before)
        return Axis(after[-1])

    def _tie(self, one: Axis, other: Axis) -> None:
        """Cut both in the same places from now on: together where they are built alike, else not at all."""
        if one.group and other.group and one.repeat == other.repeat:
            first, second = sorted((self._root(one.group), self._root(other.group)), key=self._order)
            if first != second:
                self._tied[second] = first
                if second in self._fixed:
                    self._fixed.add(first)
        elif one.parts and [p.size for p in one.parts] == [p.size for p in other.parts] and one.repeat == other.repeat:
            for part, counterpart in zip(one.parts, other.parts, strict=True):
                self._tie(part, counterpart)
        elif one != other:
            self._fix(one)
            self._fix(other)

    def _fix(self, axis: Axis) -> None:
        self._fixed |= {self._root(part.group) for part in axis.runs_over() if part.group}

    def _root(self, group: str) -> str:
        while group in self._tied:
            group = self._tied[group]
        return group

    def _order(self, group: str) -> int:
        return self._spec.number(group)


def initial_weights(spec: ModelSpec, rng: np.random.Generator) -> Weights:
    """Full-size weights, normal with variance 2/fan-in, biases zero (He et al., ICCV 2015, eq. 10).

    Recurrent weights have variance 1/units, embeddings 1/size; norms start as the identity, the forget gate of an
    LSTM at 1 (Gers et al., 2000).
    """
    weights: Weights = {}
    axes = layout(spec)
    for layer in spec.parametrised:
        for name in layer.tensors():
            sizes = tuple(axis.size for axis in axes[f"{layer.name}.{name}"])
            weights[f"{layer.name}.{name}"] = _initial(name, sizes, rng)
        if layer.prefix == "lstm":
            units = weights[f"{layer.name}.recurrent"].shape[0]
            weights[f"{layer.name}.bias"][units : 2 * units] = 1
    return weights


def _initial(name: str, sizes: tuple[int, ...], rng: np.random.Generator) -> Array:
    if len(sizes) == 1:
        return np.full(sizes, name == "scale", np.float32)
    variance = {"recurrent": 1 / sizes[0], "table": 1 / sizes[-1]}.get(name, 2 / math.prod(sizes[:-1]))
    return (math.sqrt(variance) * rng.standard_normal(sizes)).astype(np.float32)
