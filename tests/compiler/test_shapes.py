"""The tensors of a model and the values they start from."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec, Relu
from coordinator.compiler.zoo import ZOO
from protocol.subnetwork import Axis, Region, groups, nested

SMALL = ModelSpec(
    "small", (4, 6, 2), 3, (Conv2D(8, (3, 3)), Relu(), MaxPool((2, 2)), Flatten(), Dense(5), Relu(), Dense(3))
)


def test_layout_of_a_small_convolutional_model():
    conv, dense, classes = Axis(8, "conv1"), Axis(5, "dense1"), Axis(3, "classes")
    assert layout(SMALL) == {
        "conv1.weight": (Axis(3), Axis(3), Axis(2), conv),
        "conv1.bias": (conv,),
        "dense1.weight": (Axis(48, "conv1", 6), dense),
        "dense1.bias": (dense,),
        "dense2.weight": (dense, classes),
        "dense2.bias": (classes,),
    }
    assert list(layout(SMALL))[:3] == ["conv1.weight", "conv1.bias", "dense1.weight"]


def test_input_axes_are_never_cut():
    """Not even after flatten: the channels of the raw input belong to no group."""
    spec = ModelSpec("m", (4, 4, 3), 2, (Flatten(), Dense(2)))
    assert layout(spec)["dense1.weight"] == (Axis(48), Axis(2, "classes"))
    assert groups(layout(spec)) == {"classes": 2}


def test_a_width_keeps_the_first_channels_at_every_position():
    weight = np.arange(48 * 5, dtype=np.float32).reshape(48, 5)
    full = {name: np.zeros([a.size for a in axes], np.float32) for name, axes in layout(SMALL).items()}
    full["dense1.weight"] = weight
    region = Region(layout(SMALL), nested(layout(SMALL), 0.5))
    np.testing.assert_equal(region.cut(full)["dense1.weight"], weight.reshape(6, 8, 5)[:, :4, :3].reshape(24, 3))


def test_initial_weights_are_he_normal_and_biases_zero():
    weights = initial_weights(ZOO["cnn"], np.random.default_rng(3))
    assert [value.shape for value in weights.values()] == [
        (3, 3, 1, 32), (32,), (3, 3, 32, 64), (64,), (3136, 128), (128,), (128, 10), (10,),
    ]  # fmt: skip
    assert all(value.dtype == np.float32 for value in weights.values())
    assert weights["dense1.weight"].std() == pytest.approx(np.sqrt(2 / 3136), rel=0.01)
    assert weights["conv2.weight"].std() == pytest.approx(np.sqrt(2 / 288), rel=0.02)
    assert not any(value.any() for name, value in weights.items() if name.endswith("bias"))


def test_initial_weights_depend_on_the_generator_only():
    first, again = (initial_weights(SMALL, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_equal(first, again)
