"""Models that recipes, benchmarks and the demo name; each is data."""

from __future__ import annotations

from .spec import (
    Add,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalAveragePool,
    Layer,
    Lstm,
    MaxPool,
    ModelSpec,
    Relu,
)  # fmt: skip


def _block(filters: int, stride: int, before: str, name: str) -> tuple[Layer, ...]:
    """Two convolutions beside a shortcut, both reading ``before``; a 1×1 one fits the shortcut where they stride."""
    steps = (stride, stride)
    main = (
        *(Conv2D(filters, (3, 3), steps, bias=False, input=before), BatchNorm(), Relu()),
        *(Conv2D(filters, (3, 3), bias=False), BatchNorm(name=f"{name}_main")),
    )
    if stride == 1:
        return *main, Add((before, f"{name}_main")), Relu(name=name)
    shortcut = Conv2D(filters, (1, 1), steps, bias=False, input=before, name=f"{name}_short")
    return *main, shortcut, Add((f"{name}_main", f"{name}_short")), Relu(name=name)


def _separable(filters: int) -> tuple[Layer, ...]:
    """A depthwise convolution and a 1×1 one, each normalised and rectified."""
    return (
        *(DepthwiseConv2D((3, 3), bias=False), BatchNorm(), Relu()),
        *(Conv2D(filters, (1, 1), bias=False), BatchNorm(), Relu()),
    )


_MODELS = (
    # 561 hand-made features of the UCI HAR smartphone data, six activities.
    ModelSpec("mlp", (561,), 6, (Dense(256), Relu(), Dense(128), Relu(), Dense(6))),
    # MNIST-shaped grey images.
    ModelSpec(
        "cnn",
        (28, 28, 1),
        10,
        (
            *(Conv2D(32, (3, 3)), Relu(), MaxPool((2, 2))),
            *(Conv2D(64, (3, 3)), Relu(), MaxPool((2, 2))),
            *(Flatten(), Dense(128), Relu(), Dense(10)),
        ),
    ),
    # The raw signals of the UCI HAR data: 2.56 s of nine channels.
    ModelSpec(
        "cnn1d",
        (128, 9),
        6,
        (
            *(Conv1D(32, 5), Relu(), MaxPool((2,))),
            *(Conv1D(64, 5), Relu(), MaxPool((2,))),
            *(Flatten(), Dense(128), Relu(), Dense(6)),
        ),
    ),
    # The image classifier of MLPerf Tiny (Banbury et al., 2021), 32×32 colour images.
    ModelSpec(
        "resnet8",
        (32, 32, 3),
        10,
        (
            *(Conv2D(16, (3, 3), bias=False), BatchNorm(), Relu(name="stem")),
            *_block(16, 1, "stem", "block1"),
            *_block(32, 2, "block1", "block2"),
            *_block(64, 2, "block2", "block3"),
            *(GlobalAveragePool(), Dense(10)),
        ),
    ),
    # The keyword spotter of MLPerf Tiny (DS-CNN, Zhang et al., 2017): 49 frames of 10 cepstral coefficients.
    ModelSpec(
        "dscnn",
        (49, 10, 1),
        12,
        (
            *(Conv2D(64, (10, 4), (2, 2), bias=False), BatchNorm(), Relu()),
            *(layer for _ in range(4) for layer in _separable(64)),
            *(GlobalAveragePool(), Dense(12)),
        ),
    ),
    # The raw signals of the UCI HAR data, step by step.
    ModelSpec("lstm", (128, 9), 6, (Lstm(32), Dense(6))),
    # 8×8 digits of scikit-learn.
    ModelSpec("digits", (64,), 10, (Dense(256), Relu(), Dense(10))),
)

ZOO: dict[str, ModelSpec] = {spec.name: spec for spec in _MODELS}
