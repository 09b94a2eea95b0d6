"""The tensors of a model: their names, their axes, and the values training starts from."""

from __future__ import annotations

import math

import numpy as np

from protocol.subnetwork import CLASSES, Axis, Layout
from protocol.weights import Weights

from .spec import Conv2D, Flatten, ModelSpec, Parametrised


def layout(spec: ModelSpec) -> Layout:
    """Axes of ``<layer>.weight`` and ``<layer>.bias``, in model order.

    Every hidden parametrised layer owns the channel group of its name; the next layer's input axis runs over
    the same group. The axis of the logits runs over ``classes``, axes over the raw input belong to no group.
    """
    axes: Layout = {}
    shape, group, repeat = spec.input, None, 1
    last = spec.layers[-1]
    for layer, after in zip(spec.layers, spec.shapes, strict=True):
        if isinstance(layer, Parametrised):
            owned = CLASSES if layer is last else layer.name
            incoming, outgoing = Axis(shape[-1], group, repeat if group else 1), Axis(after[-1], owned)
            kernel = tuple(Axis(size) for size in layer.kernel) if isinstance(layer, Conv2D) else ()
            axes[f"{layer.name}.weight"] = (*kernel, incoming, outgoing)
            axes[f"{layer.name}.bias"] = (outgoing,)
            group, repeat = owned, 1
        elif isinstance(layer, Flatten):
            repeat = shape[0] * shape[1]
        shape = after
    return axes


def initial_weights(spec: ModelSpec, rng: np.random.Generator) -> Weights:
    """Full-size weights, normal with variance 2/fan-in, biases zero (He et al., ICCV 2015, eq. 10)."""
    weights: Weights = {}
    for name, axes in layout(spec).items():
        sizes = tuple(axis.size for axis in axes)
        if len(sizes) == 1:
            weights[name] = np.zeros(sizes, np.float32)
        else:
            deviation = math.sqrt(2 / math.prod(sizes[:-1]))
            weights[name] = (deviation * rng.standard_normal(sizes)).astype(np.float32)
    return weights
