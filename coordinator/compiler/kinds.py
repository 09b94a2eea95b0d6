"""Every kind of layer there is."""

from __future__ import annotations

from .layer import Layer
from .plain import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Dropout,
    Flatten,
    Gelu,
    GlobalAveragePool,
    GroupNorm,
    LayerNorm,
    LeakyRelu,
    MaxPool,
    Relu,
    Relu6,
    Reshape,
    Sigmoid,
    Silu,
    Tanh,
)  # fmt: skip
from .weighted import Conv1D, Conv2D, Dense, DepthwiseConv2D, Embedding, Gru, Lstm, TransposedConv2D

KINDS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        *(Dense, Conv2D, Conv1D, DepthwiseConv2D, TransposedConv2D, MaxPool, AveragePool, GlobalAveragePool),
        *(Relu, Relu6, LeakyRelu, Sigmoid, Tanh, Gelu, Silu, Flatten, Reshape, Add, Concat),
        *(BatchNorm, GroupNorm, LayerNorm, Dropout, Embedding, Gru, Lstm),
    )
}
"""Every kind of layer by the name it has in JSON."""

__all__ = [
    "KINDS", "Add", "AveragePool", "BatchNorm", "Concat", "Conv1D", "Conv2D", "Dense", "DepthwiseConv2D", "Dropout",
    "Embedding", "Flatten", "Gelu", "GlobalAveragePool", "GroupNorm", "Gru", "Layer", "LayerNorm", "LeakyRelu", "Lstm",
    "MaxPool", "Relu", "Relu6", "Reshape", "Sigmoid", "Silu", "Tanh", "TransposedConv2D",
]  # fmt: skip
