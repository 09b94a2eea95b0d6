"""How each kind of layer is written: one function per kind, found by its type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch

from . import activations, kinds, norm, pooling, primitives, recurrent
from .convolution import convolve, spread
from .depthwise import depthwise
from .fields import Pair, Shape
from .graph import Tensor
from .network import Network, Tail


@singledispatch
def write_layer(layer: kinds.Layer, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    """What ``layer`` makes of ``inputs``, with what ``tail`` says follows it."""
    return activations.PLAIN[layer.kind](net.tape, inputs[0])


def _as_image(net: Network, x: Tensor) -> Tensor:
    """A signal x[B, T, C] as an image of one row."""
    return primitives.reshape(net.tape, x, (x.shape[0], 1, *x.shape[1:])) if len(x.shape) == 3 else x


def _window(size: Shape) -> Pair:
    return (1, size[0]) if len(size) == 1 else (size[0], size[1])


@write_layer.register
def _(layer: kinds.Dense, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return net.finished(layer, primitives.product(net.tape, inputs[0], net.weight(layer, "weight")), tail)


@write_layer.register
def _(layer: kinds.Conv2D, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    first = tail.pools[0] if tail.pools else (1, 1)
    x = convolve(net.tape, inputs[0], net.weight(layer, "weight"), layer, _window(first), net.target)
    for window in tail.pools[1:]:
        x = pooling.max_pool(net.tape, x, _window(window))
    return net.finished(layer, x, tail)


@write_layer.register
def _(layer: kinds.Conv1D, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    weight = net.weight(layer, "weight")
    kernel = primitives.reshape(net.tape, weight, (1, *weight.shape))
    first = tail.pools[0] if tail.pools else (1, 1)
    x = convolve(net.tape, _as_image(net, inputs[0]), kernel, layer.over_images, _window(first), net.target)
    for window in tail.pools[1:]:
        x = pooling.max_pool(net.tape, x, _window(window))
    x = net.finished(layer, x, tail)
    return primitives.reshape(net.tape, x, (x.shape[0], *x.shape[2:]))


@write_layer.register
def _(layer: kinds.DepthwiseConv2D, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    x = depthwise(net.tape, inputs[0], net.weight(layer, "weight"), layer, net.target.depthwise)
    return net.finished(layer, x, tail)


@write_layer.register
def _(layer: kinds.TransposedConv2D, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return net.finished(layer, spread(net.tape, inputs[0], net.weight(layer, "weight"), layer, net.target), tail)


@write_layer.register
def _(layer: kinds.MaxPool, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    x = pooling.max_pool(net.tape, _as_image(net, inputs[0]), _window(layer.size))
    return primitives.reshape(net.tape, x, (x.shape[0], *layer.output(inputs[0].shape[1:])))


@write_layer.register
def _(layer: kinds.AveragePool, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    x = pooling.average_pool(net.tape, _as_image(net, inputs[0]), _window(layer.size))
    return primitives.reshape(net.tape, x, (x.shape[0], *layer.output(inputs[0].shape[1:])))


@write_layer.register
def _(layer: kinds.GlobalAveragePool, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    (batch, *_, channels), count = inputs[0].shape, math.prod(inputs[0].shape[1:-1])
    x = primitives.total(net.tape, primitives.reshape(net.tape, inputs[0], (batch, count, channels)), (1,))
    return primitives.scale(net.tape, primitives.reshape(net.tape, x, (batch, channels)), 1 / count)


@write_layer.register
def _(layer: kinds.LeakyRelu, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return activations.leaky_relu(net.tape, inputs[0], layer.slope)


@write_layer.register
def _(layer: kinds.Flatten, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return primitives.reshape(net.tape, inputs[0], (inputs[0].shape[0], math.prod(inputs[0].shape[1:])))


@write_layer.register
def _(layer: kinds.Reshape, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    """Channels that were cut are missing along the last axis."""
    ahead = (inputs[0].shape[0], *layer.shape[:-1])
    return primitives.reshape(net.tape, inputs[0], (*ahead, inputs[0].size // math.prod(ahead)))


@write_layer.register
def _(layer: kinds.Add, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    x, *others = inputs
    for number, other in enumerate(others, 1):
        x = primitives.add(net.tape, x, other, tail.relu and number == len(others))
    return x


@write_layer.register
def _(layer: kinds.Concat, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return primitives.concatenate(net.tape, inputs, len(inputs[0].shape) - 1)


@write_layer.register
def _(layer: kinds.BatchNorm, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    x, scale, shift = inputs[0], net.weight(layer, "scale"), net.weight(layer, "shift")
    if not net.training:
        mean, variance = (net.statistic(layer, name, x.shape[-1]) for name in ("mean", "variance"))
        return norm.fixed_norm(net.graph, x, (scale, shift), layer.epsilon, (mean, variance), tail.relu)
    assert net.present is not None
    y, mean, variance = norm.batch_norm(net.tape, x, (scale, shift), layer.epsilon, net.present, tail.relu)
    net.statistics |= {f"{layer.name}.mean": mean, f"{layer.name}.variance": variance}
    return y


@write_layer.register
def _(layer: kinds.GroupNorm, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    groups = math.gcd(layer.groups, inputs[0].shape[-1])
    parameters = net.weight(layer, "scale"), net.weight(layer, "shift")
    return norm.group_norm(net.tape, inputs[0], parameters, layer.epsilon, groups, tail.relu)


@write_layer.register
def _(layer: kinds.LayerNorm, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    parameters = net.weight(layer, "scale"), net.weight(layer, "shift")
    return norm.layer_norm(net.tape, inputs[0], parameters, layer.epsilon, tail.relu)


@write_layer.register
def _(layer: kinds.Dropout, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    """Kept where the uniform number that is put in, plus the rate kept, reaches 1."""
    if not net.training or layer.rate == 0:
        return inputs[0]
    graph, keep = net.graph, 1 - layer.rate
    chance = graph.input(f"dropout/{layer.name}", inputs[0].shape)
    mask = graph.floor(graph.add(chance, graph.scalar(keep)))
    return primitives.multiply(net.tape, inputs[0], graph.scale(mask, 1 / keep))


@write_layer.register
def _(layer: kinds.Embedding, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    return primitives.look_up(net.tape, net.weight(layer, "table"), net.graph.as_whole(inputs[0]))


@write_layer.register
def _(layer: kinds.Lstm, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    weight, state, bias = (net.weight(layer, name) for name in ("weight", "recurrent", "bias"))
    return recurrent.lstm(net.tape, inputs[0], weight, state, bias, layer.sequences)


@write_layer.register
def _(layer: kinds.Gru, net: Network, inputs: Sequence[Tensor], tail: Tail) -> Tensor:
    weight, state, bias, late = (net.weight(layer, name) for name in ("weight", "recurrent", "bias", "recurrent_bias"))
    return recurrent.gru(net.tape, inputs[0], weight, state, (bias, late), layer.sequences)
