"""ModelSpec: the canonical form of a model, a list of layers that is also its JSON.

    {"name": "digits", "input": [64], "classes": 10,
     "layers": [{"dense": {"units": 256}}, "relu", {"dense": {"units": 10}}]}

A layer reads the one before it, or those it names, which stand before it too. A spec that exists is valid: every
layer fits what it reads, and the last one puts out what the loss wants. docs/models.md lists every layer and field.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from . import fields
from .fields import INPUT, MAX_SIZE, ModelSpecError, Padding, Pair, Shape
from .kinds import (
    KINDS,
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv1D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    Gelu,
    GlobalAveragePool,
    GroupNorm,
    Gru,
    Layer,
    LayerNorm,
    LeakyRelu,
    Lstm,
    MaxPool,
    Relu,
    Relu6,
    Reshape,
    Sigmoid,
    Silu,
    Tanh,
    TransposedConv2D,
)  # fmt: skip
from .layer import Over
from .objectives import OBJECTIVES, BatchMeanHinge, Objective, SoftmaxCrossEntropy

MAX_PARAMETERS = 1 << 27
MAX_LAYERS = 256
MAX_VALUES = 1 << 26  # that one sample becomes inside a layer, patches of convolutions included


def _input(_: object, __: attrs.Attribute[Any], value: object) -> None:
    plain = isinstance(value, tuple) and all(type(n) is int and 1 <= n <= MAX_SIZE for n in value)
    if not plain or not 1 <= len(value) <= 3:  # type: ignore[arg-type]
        raise ModelSpecError(
            f"input must be [features], [steps, channels] or [height, width, channels], all 1 to {MAX_SIZE}, "
            f"not {value!r}"
        )


def _named(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers with the empty names of those with tensors filled in: kind and counter."""
    seen: Counter[str] = Counter()
    named: list[Layer] = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ModelSpecError(f"layer {index} must be one of {', '.join(KINDS)}, not {type(layer).__name__}")
        if layer.prefix:
            seen[layer.prefix] += 1
            layer = layer if layer.name else attrs.evolve(layer, name=f"{layer.prefix}{seen[layer.prefix]}")
        named.append(layer)
    return tuple(named)


def _objectives(value: Objective | Iterable[Objective]) -> tuple[Objective, ...]:
    return (value,) if isinstance(value, Objective) else tuple(value)


@frozen
class ModelSpec:
    """A model: ``input`` is the shape of one sample, (features,), (steps, channels) or (height, width, channels).

    ``scaler`` multiplies what hidden layers with weights make by full/kept channels while training (HeteroFL).
    """

    name: str = field(validator=fields.text)
    input: Shape = field(validator=_input)
    classes: int = field(validator=fields.size)
    layers: tuple[Layer, ...] = field(converter=_named)
    loss: tuple[Objective, ...] = field(default=(SoftmaxCrossEntropy(),), converter=_objectives)
    scaler: bool = field(default=False, validator=fields.truth)
    sources: tuple[tuple[int, ...], ...] = field(init=False, repr=False, eq=False)
    """Numbers of the layers every layer reads, -1 for the model's input."""
    shapes: tuple[Shape, ...] = field(init=False, repr=False, eq=False)
    """Shape of one sample after every layer."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ModelSpecError(f"a model has 1 to {MAX_LAYERS} layers, not {len(self.layers)}")
        object.__setattr__(self, "sources", _sources(self.layers))
        shapes: list[Shape] = []
        parameters = 0
        for index, (layer, read) in enumerate(zip(self.layers, self.sources, strict=True)):
            before = [self.input if source < 0 else shapes[source] for source in read]
            if isinstance(layer, Embedding) and read != (-1,):
                raise ModelSpecError(f"{_label(index, layer)}: an embedding reads the input of the model only")
            try:
                shapes.append(layer.output(*before))
            except ModelSpecError as error:
                raise ModelSpecError(f"{_label(index, layer)}: {error}") from None
            _check_values(index, layer, before[0], shapes[-1])
            for axes in layer.tensors().values():
                parameters += _product(axes, before[0][-1], shapes[-1][-1])
        object.__setattr__(self, "shapes", tuple(shapes))
        self._check_end(parameters)
        _check_used(self.layers, self.sources)

    def _check_end(self, parameters: int) -> None:
        last = self.layers[-1]
        where = _label(len(self.layers) - 1, last)
        mistakes = [o for o in self.loss if not isinstance(o, Objective)]
        if mistakes or not self.loss or (isinstance(self.loss[0], BatchMeanHinge) and len(self.loss) > 1):
            raise ModelSpecError(f"loss must be one or more of {', '.join(OBJECTIVES)}, batch_mean_hinge not first")
        if sum(objective.labels for objective in self.loss) not in (0, len(self._targeted())):
            raise ModelSpecError("loss: labels and targets cannot be mixed in one model")
        if any(isinstance(o, BatchMeanHinge) and o.output >= self.classes for o in self.loss):
            raise ModelSpecError(f"loss: batch_mean_hinge needs an output from 0 to {self.classes - 1}")
        if self.labelled and (not isinstance(last, Dense) or last.units != self.classes):
            raise ModelSpecError(
                f"{where}: the last layer must be dense with units = classes = {self.classes}, it gives the logits"
            )
        if self.shapes[-1] != (self.classes,):
            raise ModelSpecError(f"{where}: the last layer must make a flat row of classes = {self.classes} outputs")
        if parameters > MAX_PARAMETERS:
            raise ModelSpecError(f"the model has {parameters} parameters, more than {MAX_PARAMETERS}")

    def _targeted(self) -> list[Objective]:
        return [objective for objective in self.loss if not isinstance(objective, BatchMeanHinge)]

    @property
    def labelled(self) -> bool:
        """True if ``y`` holds one class number per sample, False if one target per output."""
        return any(objective.labels for objective in self.loss)

    @property
    def parametrised(self) -> tuple[Layer, ...]:
        """The layers with tensors, in model order."""
        return tuple(layer for layer in self.layers if layer.tensors())

    def number(self, name: str) -> int:
        """Position of the layer of this name; ModelSpecError if there is none."""
        for index, layer in enumerate(self.layers):
            if layer.name == name:
                return index
        raise ModelSpecError(f"the model has no layer named {name!r}")

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with every name and default written out, but for those that came later: the canonical form."""
        layers = [fields.to_json(layer) for layer in self.layers]
        value = {"name": self.name, "input": list(self.input), "classes": self.classes, "layers": layers}
        if self.loss != (SoftmaxCrossEntropy(),):
            terms = [fields.to_json(objective) for objective in self.loss]
            value["loss"] = terms[0] if len(terms) == 1 else terms
        return value | ({"scaler": True} if self.scaler else {})

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> ModelSpec:
        """The spec a JSON text or object describes; ModelSpecError names what is wrong with it."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ModelSpecError(f"the model is not JSON: {error}") from None
        found = fields.members(value, ("name", "input", "classes", "layers"), ("loss", "scaler"), "the model")
        layers = found["layers"]
        if not isinstance(layers, list):
            raise ModelSpecError(f"layers must be a list, not {type(layers).__name__}")
        loss = found.get("loss", SoftmaxCrossEntropy.kind)
        terms = loss if isinstance(loss, list) else [loss]
        return cls(
            found["name"],
            tuple(found["input"]) if isinstance(found["input"], list) else found["input"],
            found["classes"],
            tuple(fields.from_json(KINDS, f"layer {index}", layer) for index, layer in enumerate(layers)),
            tuple(fields.from_json(OBJECTIVES, "loss", term) for term in terms),
            found.get("scaler", False),
        )


def _sources(layers: tuple[Layer, ...]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the layers every layer reads; ModelSpecError on names that are taken, unknown or come later."""
    later = {layer.name for layer in layers}
    known = {INPUT: -1}
    found: list[tuple[int, ...]] = []
    for index, layer in enumerate(layers):
        label = _label(index, layer)
        if layer.name and layer.name in known:
            raise ModelSpecError(f"{label}: the name is taken, names must be unique")
        for name in layer.reads:
            if name and name not in known:
                reason = "there is no layer of that name" if name not in later else "that one does not stand before it"
                raise ModelSpecError(
                    f"{label}: reads {name!r}, but {reason}; expected {INPUT!r} or a layer before this one"
                )
        found.append(tuple(known[name] if name else index - 1 for name in layer.reads))
        if layer.name:
            known[layer.name] = index
    return tuple(found)


def _check_used(layers: tuple[Layer, ...], sources: tuple[tuple[int, ...], ...]) -> None:
    used = {source for read in sources for source in read} | {len(layers) - 1}
    for index, layer in enumerate(layers):
        if index not in used:
            raise ModelSpecError(f"{_label(index, layer)}: no layer reads it; expected one that does, or none of it")


def _check_values(index: int, layer: Layer, before: Shape, after: Shape) -> None:
    values = layer.values(before, after)
    if values > MAX_VALUES:
        raise ModelSpecError(
            f"{_label(index, layer)}: makes {values} values of one sample, at most {MAX_VALUES} are allowed"
        )


def _product(axes: tuple[int | Over, ...], read: int, made: int) -> int:
    total = 1
    for axis in axes:
        total *= axis if isinstance(axis, int) else axis.repeat * (read if axis.channels == "in" else made)
    return total


def _label(index: int, layer: Layer) -> str:
    return f"layer {index} ({layer.name or layer.kind})"


__all__ = [
    "KINDS", "OBJECTIVES", "Add", "AveragePool", "BatchNorm", "Concat", "Conv1D", "Conv2D", "Dense", "DepthwiseConv2D",
    "Dropout", "Embedding", "Flatten", "Gelu", "GlobalAveragePool", "GroupNorm", "Gru", "Layer", "LayerNorm",
    "LeakyRelu", "Lstm", "MaxPool", "ModelSpec", "ModelSpecError", "Padding", "Pair", "Relu", "Relu6", "Reshape",
    "Shape", "Sigmoid", "Silu", "Tanh", "TransposedConv2D",
]  # fmt: skip
