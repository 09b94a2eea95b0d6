"""Models rewritten: narrowed to a subnetwork, batch norms folded into what they follow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from attrs import frozen

from protocol.subnetwork import Region, Subnetwork
from protocol.weights import Array, Weights

from . import kinds
from .fields import INPUT, Shape
from .shapes import layout, made_axis
from .spec import ModelSpec, ModelSpecError

# What a step per channel can be folded into.
SCALED = (kinds.Dense, kinds.Conv1D, kinds.Conv2D, kinds.DepthwiseConv2D, kinds.TransposedConv2D)
NORMED = (kinds.GroupNorm, kinds.LayerNorm)


@frozen
class Node:
    """A layer and the numbers of the nodes it reads, -1 for the model's input."""

    layer: kinds.Layer
    sources: tuple[int, ...]


def linked(nodes: Sequence[Node]) -> tuple[kinds.Layer, ...]:
    """The layers, each naming what it reads wherever that is not the one before it."""
    joins = (kinds.Add, kinds.Concat)
    wanted = {
        source
        for index, node in enumerate(nodes)
        for source in node.sources
        if source >= 0 and (source != index - 1 or isinstance(node.layer, joins))
    }
    names = _names([node.layer for node in nodes], wanted)
    found: list[kinds.Layer] = []
    for index, (layer, sources) in enumerate((node.layer, node.sources) for node in nodes):
        read = tuple(INPUT if source < 0 else names.get(source, "") for source in sources)
        if isinstance(layer, joins):
            layer = attrs.evolve(layer, inputs=read)
        else:
            layer = attrs.evolve(layer, input="" if sources[0] == index - 1 else read[0])  # type: ignore[call-arg]
        found.append(attrs.evolve(layer, name=names.get(index, "")))
    return tuple(found)


def _names(layers: Sequence[kinds.Layer], wanted: set[int]) -> dict[int, str]:
    """Names for the layers with tensors and for those ``wanted``, those they have already kept."""
    taken = {layer.name for layer in layers if layer.name}
    names: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for index, layer in enumerate(layers):
        if layer.name:
            names[index] = layer.name
        elif layer.prefix or index in wanted:
            stem = layer.prefix or layer.kind
            while (name := f"{stem}{counts.update([stem]) or counts[stem]}") in taken:
                pass
            names[index] = name
            taken.add(name)
    return names


def narrowed(spec: ModelSpec, weights: Weights, subnetwork: Subnetwork) -> tuple[ModelSpec, Weights]:
    """The subnetwork as a model of its own; ``weights`` are full-size."""
    return narrower(spec, subnetwork), Region(layout(spec), subnetwork).cut(weights)


def narrower(spec: ModelSpec, subnetwork: Subnetwork) -> ModelSpec:
    """The model that a subnetwork is."""
    layers: list[kinds.Layer] = []
    for index, layer in enumerate(spec.layers):
        kept = subnetwork.size(made_axis(spec, index))
        if isinstance(layer, kinds.Dense | kinds.Lstm | kinds.Gru):
            layer = attrs.evolve(layer, units=kept)
        elif isinstance(layer, kinds.Conv1D | kinds.Conv2D | kinds.TransposedConv2D):
            layer = attrs.evolve(layer, filters=kept)
        elif isinstance(layer, kinds.Embedding):
            layer = attrs.evolve(layer, size=kept)
        elif isinstance(layer, kinds.Reshape):
            layer = attrs.evolve(layer, shape=(*layer.shape[:-1], kept))
        elif isinstance(layer, kinds.GroupNorm):
            layer = attrs.evolve(layer, groups=math.gcd(layer.groups, kept))
        layers.append(layer)
    return attrs.evolve(spec, layers=tuple(layers))


Affine = tuple[Array, Array]
"""What every channel is multiplied with, and what is then added."""


def folded(spec: ModelSpec, weights: Mapping[str, Array], statistics: Mapping[str, Array]) -> tuple[ModelSpec, Weights]:
    """The model without batch norms, with the same outputs wherever they are given ``statistics``.

    ``statistics`` holds ``statistic/<norm>.mean`` and ``.variance`` of every batch norm. One that follows a layer with
    weights that nothing else reads goes into those weights; one over an image becomes a depthwise 1×1 convolution.
    ModelSpecError names one that can be neither.
    """
    nodes = [Node(layer, read) for layer, read in zip(spec.layers, spec.sources, strict=True)]
    own = [{name: weights[f"{layer.name}.{name}"] for name in layer.tensors()} for layer in spec.layers]
    steps = {
        index: affine(layer, own[index], statistics)
        for index, layer in enumerate(spec.layers)
        if isinstance(layer, kinds.BatchNorm)
    }
    layers, made = fold(nodes, own, steps, spec.shapes)
    return attrs.evolve(spec, layers=layers), made


def fold(
    nodes: Sequence[Node], tensors: Sequence[Weights], steps: Mapping[int, Affine], shapes: Sequence[Shape]
) -> tuple[tuple[kinds.Layer, ...], Weights]:
    """Linked layers and their weights without the nodes whose numbers are keys of ``steps``."""
    readers = Counter(source for node in nodes for source in node.sources)
    places = {-1: -1}
    kept: list[Node] = []
    values: list[Weights] = []
    for index, (node, own) in enumerate(zip(nodes, tensors, strict=True)):
        layer, sources = node.layer, tuple(places[source] for source in node.sources)
        if index in steps:
            place = sources[0]
            before = kept[place].layer if place >= 0 else None
            if isinstance(before, (*SCALED, *NORMED)) and readers[node.sources[0]] == 1:
                places[index] = place
                values[place] = _absorbed(before, values[place], *steps[index])
                if isinstance(before, SCALED):
                    kept[place] = attrs.evolve(kept[place], layer=attrs.evolve(before, bias=True))
                continue
            if len(shapes[index]) != 3:
                raise ModelSpecError(
                    f"layer {index} ({layer.name or layer.kind}): a batch norm over a signal or a flat row must follow "
                    f"a layer with weights that nothing else reads, to be folded into it"
                )
            factor, offset = steps[index]
            layer, own = kinds.DepthwiseConv2D((1, 1), name=layer.name), {"weight": factor[None, None], "bias": offset}
        places[index] = len(kept)
        values.append(own)
        kept.append(Node(layer, sources))
    layers = linked(kept)
    return layers, {
        f"{layer.name}.{name}": np.ascontiguousarray(value, np.float32)
        for layer, own in zip(layers, values, strict=True)
        for name, value in own.items()
    }


def affine(layer: kinds.BatchNorm, own: Mapping[str, Array], statistics: Mapping[str, Array]) -> Affine:
    """What a batch norm multiplies every channel with and then adds, once its statistics are known; float64."""
    try:
        mean, variance = (statistics[f"statistic/{layer.name}.{name}"] for name in ("mean", "variance"))
    except KeyError as error:
        reason = f"batch norm {layer.name!r} needs the statistics of its data: {error} is missing"
        raise ModelSpecError(reason) from None
    factor = own["scale"].astype(np.float64) / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    return factor, own["shift"] - mean * factor


def _absorbed(layer: kinds.Layer, own: Weights, factor: Array, offset: Array) -> Weights:
    """The layer's tensors so that it makes factor·y + offset of every channel instead of y."""
    if isinstance(layer, NORMED):
        return {"scale": own["scale"] * factor, "shift": own["shift"] * factor + offset}
    return {"weight": own["weight"] * factor, "bias": own.get("bias", 0) * factor + offset}
