"""A model's layers written into a graph, one after another, each together with those that fuse into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from attrs import frozen

from protocol.subnetwork import Subnetwork

from . import activations, kinds, primitives
from .autodiff import Tape
from .fields import Shape
from .graph import Tensor
from .norm import Present
from .shapes import made_axis
from .spec import ModelSpec
from .targets import Target

WriteLayer = Callable[[kinds.Layer, "Network", Sequence[Tensor], "Tail"], Tensor]
Mode = Literal["training", "inference"]
_POOLED = kinds.Conv2D | kinds.Conv1D
_RECTIFIED = (
    *(kinds.Conv2D, kinds.Conv1D, kinds.Dense, kinds.DepthwiseConv2D, kinds.TransposedConv2D, kinds.Add),
    *(kinds.BatchNorm, kinds.GroupNorm, kinds.LayerNorm),
)


@frozen
class Tail:
    """What follows a layer and is written with it: pooling, then max(·, 0)."""

    pools: tuple[Shape, ...] = ()
    relu: bool = False


class Network:
    """Writes layers of ``spec``; collects what goes in and comes out beside weights and samples."""

    def __init__(
        self,
        tape: Tape,
        spec: ModelSpec,
        subnetwork: Subnetwork,
        weights: Mapping[str, Tensor],
        mode: Mode,
        target: Target,
        write_layer: WriteLayer,
    ) -> None:
        self.tape, self.graph, self.spec, self.target = tape, tape.graph, spec, target
        self.training = mode == "training"
        self.present: Present | None = None
        self.statistics: dict[str, Tensor] = {}
        """Mean and variance of every batch norm: put out while training, put in otherwise."""
        self._subnetwork, self._weights, self._write_layer = subnetwork, weights, write_layer
        self._readers = Counter(source for read in spec.sources for source in read)

    def write(self, values: dict[int, Tensor], first: int, last: int) -> Tensor:
        """Layers ``first`` to ``last``; ``values`` holds what they read by layer number and takes what they make."""
        index = first
        while index <= last:
            tail, end = self._tail(index, last)
            inputs = [values[source] for source in self.spec.sources[index]]
            values[end] = self._write_layer(self.spec.layers[index], self, inputs, tail)
            index = end + 1
        return values[last]

    def weight(self, layer: kinds.Layer, tensor: str) -> Tensor:
        return self._weights[f"{layer.name}.{tensor}"]

    def finished(self, layer: kinds.Layer, x: Tensor, tail: Tail) -> Tensor:
        """x plus the layer's bias, times its scaler, rectified: what is left of a layer after its product."""
        factor = self._factor(layer)
        bias = self._weights.get(f"{layer.name}.bias")
        if bias is not None:
            flat = primitives.add(self.tape, primitives.matrix(self.tape, x), bias, tail.relu and factor == 1)
            x = primitives.reshape(self.tape, flat, x.shape)
        if factor != 1:
            x = primitives.scale(self.tape, x, factor)
        return x if (bias is not None and factor == 1) or not tail.relu else activations.relu(self.tape, x)

    def statistic(self, layer: kinds.Layer, name: str, channels: int) -> Tensor:
        """An input: the mean or variance of a batch norm, known beforehand."""
        full = f"{layer.name}.{name}"
        if full not in self.statistics:
            self.statistics[full] = self.graph.input(f"statistic/{full}", (channels,))
        return self.statistics[full]

    def _factor(self, layer: kinds.Layer) -> float:
        """HeteroFL's scaler: full over kept channels of a hidden layer while training."""
        index = self.spec.layers.index(layer)
        if not (self.training and self.spec.scaler) or index == len(self.spec.layers) - 1:
            return 1.0
        axis = made_axis(self.spec, index)
        return axis.size / self._subnetwork.size(axis)

    def _tail(self, index: int, last: int) -> tuple[Tail, int]:
        """The pools and rectifiers right behind a layer that nothing else reads, and where they end.

        A maximum commutes with adding a constant, a positive factor and max(·, 0), so pooling goes first: bias and
        rectifier then have fewer elements to pass, in one operator.
        """
        layers = self.spec.layers
        head, pools, relu = layers[index], [], False
        while index < last and self._readers[index] == 1 and self.spec.sources[index + 1] == (index,):
            following = layers[index + 1]
            if isinstance(following, kinds.MaxPool) and isinstance(head, _POOLED):
                pools.append(following.size)
            elif isinstance(following, kinds.Relu) and isinstance(head, _RECTIFIED):
                relu = True
            else:
                break
            index += 1
        return Tail(tuple(pools), relu), index
