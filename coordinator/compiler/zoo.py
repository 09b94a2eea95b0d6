"""Models that recipes, benchmarks and the demo name; each is data."""

from __future__ import annotations

from .spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec, Relu

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
    # 8×8 digits of scikit-learn.
    ModelSpec("digits", (64,), 10, (Dense(256), Relu(), Dense(10))),
)

ZOO: dict[str, ModelSpec] = {spec.name: spec for spec in _MODELS}
