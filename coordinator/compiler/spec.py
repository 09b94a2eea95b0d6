"""ModelSpec: the canonical form of a model, a list of layers that is also its JSON.

    {"name": "digits", "input": [64], "classes": 10,
     "layers": [{"dense": {"units": 256}}, "relu", {"dense": {"units": 10}}]}

A spec that exists is valid: every layer fits the shape before it, the last one is the dense layer of the
logits, and the loss is softmax cross-entropy. Images are (height, width, channels).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, get_args

import attrs
from attrs import field, frozen

from protocol.subnetwork import CLASSES

Shape = tuple[int, ...]
Pair = tuple[int, int]
Padding = Literal["same", "valid"]

MAX_SIZE = 1 << 20  # of any single dimension
MAX_PARAMETERS = 1 << 27
MAX_LAYERS = 256
MAX_VALUES = 1 << 26  # that one sample becomes inside a layer, patches of convolutions included
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class ModelSpecError(ValueError):
    """A model description is wrong. The text names the layer and what was expected of it."""


def _size(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise ModelSpecError(f"{attribute.name} must be a whole number from 1 to {MAX_SIZE}, not {value!r}")


def _pair(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if (
        not isinstance(value, tuple)
        or len(value) != 2
        or any(type(n) is not int or not 1 <= n <= MAX_SIZE for n in value)
    ):
        raise ModelSpecError(f"{attribute.name} must be two whole numbers from 1 to {MAX_SIZE}, not {value!r}")


def _name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value == "":
        return
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value == CLASSES:
        raise ModelSpecError(
            f"{attribute.name} must be a letter followed by up to 63 letters, digits or _, "
            f"and not {CLASSES!r}: got {value!r}"
        )


def _padding(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in get_args(Padding):
        raise ModelSpecError(f'{attribute.name} must be "same" or "valid", not {value!r}')


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelSpecError(f"expected an image (height, width, channels) as input, got shape {shape}")
    return shape[0], shape[1], shape[2]


@frozen
class Dense:
    """y = x·W + b; weight [in, units], bias [units]."""

    kind: ClassVar[str] = "dense"
    prefix: ClassVar[str] = "dense"
    units: int = field(validator=_size)
    name: str = field(default="", validator=_name)

    def output(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ModelSpecError(f'expected a flat input, got shape {shape}; put "flatten" before it')
        return (self.units,)


@frozen
class Conv2D:
    """Cross-correlation over images; weight [kernel height, kernel width, channels, filters], bias [filters].

    Padding "same" gives ⌈size/stride⌉ positions, the odd pixel of padding going to the end; "valid" pads
    nothing.
    """

    kind: ClassVar[str] = "conv2d"
    prefix: ClassVar[str] = "conv"
    filters: int = field(validator=_size)
    kernel: Pair = field(validator=_pair)
    stride: Pair = field(default=(1, 1), validator=_pair)
    padding: Padding = field(default="same", validator=_padding)
    name: str = field(default="", validator=_name)

    def output(self, shape: Shape) -> Shape:
        height, width, _ = _image(shape)
        if self.padding == "same":
            return -(-height // self.stride[0]), -(-width // self.stride[1]), self.filters
        if self.kernel[0] > height or self.kernel[1] > width:
            raise ModelSpecError(f"kernel {self.kernel} is larger than its input {(height, width)}")
        rows = (height - self.kernel[0]) // self.stride[0] + 1
        columns = (width - self.kernel[1]) // self.stride[1] + 1
        return rows, columns, self.filters

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
class MaxPool:
    """The maximum of every window; windows do not overlap, rows and columns left over are dropped."""

    kind: ClassVar[str] = "max_pool"
    size: Pair = field(validator=_pair)

    def output(self, shape: Shape) -> Shape:
        height, width, channels = _image(shape)
        if self.size[0] > height or self.size[1] > width:
            raise ModelSpecError(f"window {self.size} is larger than its input {(height, width)}")
        return height // self.size[0], width // self.size[1], channels


@frozen
class Relu:
    """max(x, 0); its derivative at 0 is 0."""

    kind: ClassVar[str] = "relu"

    def output(self, shape: Shape) -> Shape:
        return shape


@frozen
class Flatten:
    """An image as one row, the channel fastest."""

    kind: ClassVar[str] = "flatten"

    def output(self, shape: Shape) -> Shape:
        height, width, channels = _image(shape)
        return (height * width * channels,)


Layer = Dense | Conv2D | MaxPool | Relu | Flatten
Parametrised = Dense | Conv2D
KINDS: dict[str, type[Layer]] = {cls.kind: cls for cls in (Dense, Conv2D, MaxPool, Relu, Flatten)}


def _input(_: object, __: attrs.Attribute[Any], value: object) -> None:
    sizes = isinstance(value, tuple) and all(type(n) is int and 1 <= n <= MAX_SIZE for n in value)
    if not sizes or len(value) not in (1, 3):  # type: ignore[arg-type]
        raise ModelSpecError(
            f"input must be [features] or [height, width, channels], all 1 to {MAX_SIZE}, not {value!r}"
        )


def _text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise ModelSpecError(f"{attribute.name} must be a text of 1 to 64 characters, not {value!r}")


def _named(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers with every empty name filled in: kind and counter."""
    seen: Counter[str] = Counter()
    named: list[Layer] = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ModelSpecError(f"layer {index} must be one of {', '.join(KINDS)}, not {type(layer).__name__}")
        if isinstance(layer, Parametrised):
            seen[layer.prefix] += 1
            layer = layer if layer.name else attrs.evolve(layer, name=f"{layer.prefix}{seen[layer.prefix]}")
        named.append(layer)
    return tuple(named)


@frozen
class ModelSpec:
    """A model: ``input`` is the shape of one sample, (features,) or (height, width, channels)."""

    name: str = field(validator=_text)
    input: Shape = field(validator=_input)
    classes: int = field(validator=_size)
    layers: tuple[Layer, ...] = field(converter=_named)
    shapes: tuple[Shape, ...] = field(init=False, repr=False, eq=False)
    """Shape of one sample after every layer."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ModelSpecError(f"a model has 1 to {MAX_LAYERS} layers, not {len(self.layers)}")
        names: set[str] = set()
        shapes: list[Shape] = []
        shape, parameters = self.input, 0
        for index, layer in enumerate(self.layers):
            before = shape
            try:
                shape = layer.output(before)
            except ModelSpecError as error:
                raise ModelSpecError(f"layer {index} ({_label(layer)}): {error}") from None
            shapes.append(shape)
            _check_values(index, layer, before, shape)
            if isinstance(layer, Parametrised):
                if layer.name in names:
                    raise ModelSpecError(f"layer {index} ({layer.name}): the name is taken, names must be unique")
                names.add(layer.name)
                fan_in = before[-1] * (layer.kernel[0] * layer.kernel[1] if isinstance(layer, Conv2D) else 1)
                parameters += (fan_in + 1) * shape[-1]
        self._check_end(parameters)
        object.__setattr__(self, "shapes", tuple(shapes))

    def _check_end(self, parameters: int) -> None:
        last = self.layers[-1]
        if not isinstance(last, Dense) or last.units != self.classes:
            raise ModelSpecError(
                f"layer {len(self.layers) - 1} ({_label(last)}): the last layer must be dense with "
                f"units = classes = {self.classes}, it gives the logits"
            )
        if parameters > MAX_PARAMETERS:
            raise ModelSpecError(f"the model has {parameters} parameters, more than {MAX_PARAMETERS}")

    @property
    def parametrised(self) -> tuple[Parametrised, ...]:
        """The layers with weights, in model order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Parametrised))

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with every name and default written out: the canonical form."""
        layers = [_layer_to_json(layer) for layer in self.layers]
        return {"name": self.name, "input": list(self.input), "classes": self.classes, "layers": layers}

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> ModelSpec:
        """The spec a JSON text or object describes; ModelSpecError names what is wrong with it."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ModelSpecError(f"the model is not JSON: {error}") from None
        fields = _fields(value, ("name", "input", "classes", "layers"), (), "the model")
        layers = fields["layers"]
        if not isinstance(layers, list):
            raise ModelSpecError(f"layers must be a list, not {type(layers).__name__}")
        shape = fields["input"]
        return cls(
            fields["name"],
            tuple(shape) if isinstance(shape, list) else shape,
            fields["classes"],
            tuple(_layer_from_json(index, layer) for index, layer in enumerate(layers)),
        )


def _check_values(index: int, layer: Layer, before: Shape, after: Shape) -> None:
    values = math.prod(after)
    if isinstance(layer, Conv2D):
        values = after[0] * after[1] * max(math.prod(layer.kernel) * before[2], after[2])
    if values > MAX_VALUES:
        raise ModelSpecError(
            f"layer {index} ({_label(layer)}): makes {values} values of one sample, at most {MAX_VALUES} are allowed"
        )


def _label(layer: Layer) -> str:
    return (layer.name if isinstance(layer, Parametrised) else "") or layer.kind


def _layer_to_json(layer: Layer) -> str | dict[str, Any]:
    fields = attrs.asdict(layer)
    if not fields:
        return layer.kind
    return {layer.kind: {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}}


def _layer_from_json(index: int, value: object) -> Layer:
    kind, content = (value, {}) if isinstance(value, str) else _single(index, value)
    if kind not in KINDS:
        raise ModelSpecError(f"layer {index}: unknown kind {kind!r}, expected one of {', '.join(KINDS)}")
    cls = KINDS[kind]
    attributes = attrs.fields(cls)
    required = tuple(a.name for a in attributes if a.default is attrs.NOTHING)
    optional = tuple(a.name for a in attributes if a.default is not attrs.NOTHING)
    named = content.get("name") if isinstance(content, dict) else None
    label = f"layer {index} ({named if isinstance(named, str) and named else kind})"
    fields = _fields(content, required, optional, label)
    if fields.get("name") == "":
        raise ModelSpecError(f"{label}: name must not be empty; leave it out for the default")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    try:
        return cls(**values)
    except ModelSpecError as error:
        raise ModelSpecError(f"{label}: {error}") from None


def _single(index: int, value: object) -> tuple[str, object]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ModelSpecError(f'layer {index}: expected "kind" or {{"kind": {{…}}}}, got {value!r:.100}')
    return next(iter(value.items()))


def _fields(value: object, required: tuple[str, ...], optional: tuple[str, ...], label: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ModelSpecError(f"{label}: expected an object, got {type(value).__name__}")
    for key in value:
        if key not in required + optional:
            expected = ", ".join(required + optional) or "none"
            raise ModelSpecError(f"{label}: unknown key {key!r}, expected {expected}")
    for key in required:
        if key not in value:
            raise ModelSpecError(f"{label}: {key} is missing")
    return dict(value)
