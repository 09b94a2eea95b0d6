"""The tensors of a model and the values they start from."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import (
    Add,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    Gru,
    Lstm,
    MaxPool,
    ModelSpec,
    Relu,
    Reshape,
)  # fmt: skip
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


def model(shape, *layers):
    return ModelSpec("m", shape, 2, (*layers, Dense(2)))


def test_channels_that_are_added_are_one_group():
    """Named by the first layer of those tied, also where a later sum ties two groups of several layers each."""
    spec = model(
        (4, 4, 1),
        *(Conv2D(4, (3, 3), name=name) for name in "abcd"),
        *(Add(("b", "d")), Conv2D(6, (1, 1)), Conv2D(4, (1, 1), name="e"), Add(("e", "d")), Flatten()),
    )
    assert groups(layout(spec)) == {"a": 4, "b": 4, "c": 4, "conv5": 6, "classes": 2}
    assert layout(spec)["e.weight"] == (Axis(1), Axis(1), Axis(6, "conv5"), Axis(4, "b"))


def test_channels_that_are_added_to_the_input_are_never_cut():
    spec = model((4, 4, 3), Conv2D(3, (3, 3), name="a"), Add(("a", "input")), Flatten())
    assert layout(spec)["a.weight"][-1] == Axis(3)
    assert layout(spec)["dense1.weight"][0] == Axis(48)


def test_depthwise_and_norms_follow_what_they_read():
    spec = model((4, 4, 1), Conv2D(4, (3, 3)), DepthwiseConv2D((3, 3)), BatchNorm(), Flatten())
    axes = layout(spec)
    assert axes["depthwise1.weight"] == (Axis(3), Axis(3), Axis(4, "conv1"))
    assert axes["batch_norm1.scale"] == axes["depthwise1.bias"] == (Axis(4, "conv1"),)


def test_concatenated_channels_are_cut_each_by_its_own_group():
    spec = model((2, 1, 1), Conv2D(4, (1, 1), name="a"), Conv2D(2, (1, 1), name="b"), Concat(("a", "b")), Flatten())
    (axis, _) = layout(spec)["dense1.weight"]
    assert axis == Axis(12, None, 2, (Axis(4, "a"), Axis(2, "b")))
    region = Region(layout(spec), nested(layout(spec), 0.5))
    kept = region.cut({name: np.zeros([a.size for a in axes]) for name, axes in layout(spec).items()} | {
        "dense1.weight": np.arange(24, dtype=np.float32).reshape(12, 2)
    })  # fmt: skip
    assert kept["dense1.weight"][:, 0].tolist() == [0, 2, 8, 12, 14, 20]


def test_gates_are_positions_of_the_hidden_group():
    axes = layout(model((5, 3), Lstm(4, True), Gru(6)))
    assert axes["lstm1.weight"] == (Axis(3), Axis(16, "lstm1", 4))
    assert axes["lstm1.recurrent"] == (Axis(4, "lstm1"), Axis(16, "lstm1", 4))
    assert axes["gru1.weight"] == (Axis(4, "lstm1"), Axis(18, "gru1", 3))
    assert axes["gru1.recurrent_bias"] == (Axis(18, "gru1", 3),)


def test_channels_that_are_torn_apart_are_never_cut():
    axes = layout(model((6,), Dense(24), Reshape((2, 3, 4)), Conv2D(4, (2, 2)), Reshape((6, 4)), Flatten()))
    assert axes["dense1.weight"] == (Axis(6), Axis(24))
    assert axes["conv1.weight"] == (Axis(2), Axis(2), Axis(4), Axis(4, "conv1"))
    assert axes["dense2.weight"][0] == Axis(24, "conv1", 6)


def test_norms_and_gates_start_where_they_do_no_harm():
    weights = initial_weights(model((5, 3), Lstm(4), BatchNorm()), np.random.default_rng(0))
    assert weights["lstm1.bias"].tolist() == [0] * 4 + [1] * 4 + [0] * 8
    assert weights["batch_norm1.scale"].tolist() == [1] * 4
    assert weights["batch_norm1.shift"].tolist() == [0] * 4


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
