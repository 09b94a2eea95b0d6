"""ModelSpec: what is a model, and what is said about what is not."""

from __future__ import annotations

import json

import pytest

from coordinator.compiler.spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec, ModelSpecError, Relu
from coordinator.compiler.zoo import ZOO

DIGITS = {
    "name": "digits",
    "input": [64],
    "classes": 10,
    "layers": [{"dense": {"units": 256}}, "relu", {"dense": {"units": 10}}],
}
CONV = {"conv2d": {"filters": 4, "kernel": [3, 3]}}


def described(*layers, shape=(64,), classes=10):
    return {"name": "m", "input": list(shape), "classes": classes, "layers": list(layers)}


def test_json_text_and_object_give_the_same_spec():
    spec = ModelSpec("digits", (64,), 10, (Dense(256), Relu(), Dense(10)))
    assert ModelSpec.from_json(DIGITS) == ModelSpec.from_json(json.dumps(DIGITS)) == spec == ZOO["digits"]


def test_names_count_per_kind():
    spec = ModelSpec("m", (8, 8, 1), 2, (Conv2D(2, (3, 3)), Conv2D(2, (3, 3)), Flatten(), Dense(3), Dense(2)))
    assert [layer.name for layer in spec.parametrised] == ["conv1", "conv2", "dense1", "dense2"]


def test_shapes_follow_the_layers():
    layers = (
        Conv2D(4, (3, 3), (2, 2)),
        MaxPool((2, 3)),
        Relu(),
        Conv2D(5, (2, 1), padding="valid"),
        Flatten(),
        Dense(2),
    )
    spec = ModelSpec("m", (11, 12, 3), 2, layers)
    assert spec.shapes == ((6, 6, 4), (3, 2, 4), (3, 2, 4), (2, 2, 5), (20,), (2,))


def test_padding_puts_the_odd_pixel_at_the_end():
    assert Conv2D(1, (4, 3)).padding_before((8, 8, 1)) == (1, 1)
    assert Conv2D(1, (3, 3), (2, 2)).padding_before((8, 7, 1)) == (0, 1)
    assert Conv2D(1, (3, 3), padding="valid").padding_before((8, 8, 1)) == (0, 0)


@pytest.mark.parametrize("spec", ZOO.values(), ids=str)
def test_json_round_trip(spec):
    assert ModelSpec.from_json(json.dumps(spec.to_json())) == spec


def test_the_hash_is_that_of_the_canonical_form():
    """Defaults written out or left out name the same model; any change names another."""
    spelled = json.loads(json.dumps(DIGITS))
    spelled["layers"][0]["dense"]["name"] = "dense1"
    assert ModelSpec.from_json(spelled).sha256 == ModelSpec.from_json(DIGITS).sha256
    assert ModelSpec.from_json(DIGITS).sha256 == "d3a0df3b87f7ff86217091d274c834c4a0e6e725e27917c7027a2836655686f3"
    spelled["layers"][0]["dense"]["units"] = 255
    assert ModelSpec.from_json(spelled).sha256 != ModelSpec.from_json(DIGITS).sha256


def test_what_came_later_is_written_only_where_it_is_used():
    """Specs written before layers could name what they read keep their hashes."""
    plain = ModelSpec.from_json(described({"dense": {"units": 10, "bias": True, "input": ""}}))
    assert plain.to_json()["layers"] == [{"dense": {"units": 10, "name": "dense1"}}]
    odd = described({"dense": {"units": 10, "bias": False, "input": "input"}}) | {"loss": {"huber": {}}, "scaler": True}
    assert ModelSpec.from_json(odd).to_json() == odd | {
        "layers": [{"dense": {"units": 10, "name": "dense1", "bias": False, "input": "input"}}],
        "loss": {"huber": {"delta": 1.0}},
    }


def test_layers_read_what_they_name():
    spec = ModelSpec.from_json(
        described(
            {"conv2d": {"filters": 4, "kernel": [3, 3], "name": "a"}},
            {"relu": {"name": "b"}},
            {"conv2d": {"filters": 2, "kernel": [1, 1], "input": "input"}},
            {"concat": {"inputs": ["b", "conv2", "a"]}},
            "flatten",
            {"dense": {"units": 10}},
            shape=(8, 8, 1),
        )
    )
    assert spec.sources == ((-1,), (0,), (-1,), (1, 2, 0), (3,), (4,))
    assert spec.shapes[3] == (8, 8, 10)
    assert ModelSpec.from_json(json.dumps(spec.to_json())) == spec


LOGITS = {"dense": {"units": 10}}
WRONG = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ("[]", "expected an object"),
    "unknown key": (DIGITS | {"color": 1}, "unknown key 'color', expected name, input, classes, layers"),
    "missing key": ({k: v for k, v in DIGITS.items() if k != "input"}, "input is missing"),
    "empty name": (DIGITS | {"name": ""}, "name must be a text of 1 to 64"),
    "classes as float": (DIGITS | {"classes": 10.0}, "classes must be a whole number"),
    "classes as truth": (DIGITS | {"classes": True}, "classes must be a whole number"),
    "input of four": (DIGITS | {"input": [8, 8, 8, 8]}, r"input must be \[features\], \[steps"),
    "input of zero": (DIGITS | {"input": [0]}, "input must be"),
    "input as text": (DIGITS | {"input": "64"}, "input must be"),
    "layers as object": (DIGITS | {"layers": {}}, "layers must be a list"),
    "no layers": (DIGITS | {"layers": []}, "a model has 1 to"),
    "unknown kind": (described("swish", LOGITS), "layer 0: unknown kind 'swish', expected one of dense"),
    "two kinds in one": (described({"relu": {}, "flatten": {}}), r'layer 0: expected "kind" or'),
    "number as layer": (described(3), r'layer 0: expected "kind" or'),
    "unknown layer key": (
        described({"dense": {"units": 1, "biases": True}}),
        r"layer 0 \(dense\): unknown key 'biases'",
    ),
    "missing layer key": (described("dense"), r"layer 0 \(dense\): units is missing"),
    "zero units": (
        described({"dense": {"units": 0, "name": "a"}}),
        r"layer 0 \(a\): units must be a whole number from 1",
    ),
    "units as text": (described({"dense": {"units": "5"}}), r"layer 0 \(dense\): units must be a whole number"),
    "kernel of one": (described({"conv2d": {"filters": 1, "kernel": [3]}}), r"\(conv2d\): kernel must be two whole"),
    "kernel as number": (described({"conv2d": {"filters": 1, "kernel": 3}}), "kernel must be two whole numbers"),
    "stride of zero": (described({"conv2d": {"filters": 1, "kernel": [1, 1], "stride": [0, 1]}}), "stride must be two"),
    "padding": (described({"conv2d": {"filters": 1, "kernel": [1, 1], "padding": "full"}}), '"same" or "valid"'),
    "padding as list": (described({"conv2d": {"filters": 1, "kernel": [1, 1], "padding": []}}), '"same" or "valid"'),
    "name with a dot": (described({"dense": {"units": 1, "name": "a.b"}}), "name must be a letter"),
    "name of the classes": (described({"dense": {"units": 1, "name": "classes"}}), "name must be a letter"),
    "name left empty": (described({"dense": {"units": 1, "name": ""}}), "name must not be empty"),
    "name twice": (described(*[{"dense": {"units": 10, "name": "a"}}] * 2), r"layer 1 \(a\): the name is taken"),
    "default name taken": (
        described({"dense": {"units": 5, "name": "dense2"}}, LOGITS),
        r"layer 1 \(dense2\): the name is taken",
    ),
    "last layer": (described({"dense": {"units": 9}}), r"layer 0 \(dense1\): the last layer must be dense with .* 10"),
    "relu last": (described(LOGITS, "relu"), r"layer 1 \(relu\): the last layer must be dense"),
    "dense on an image": (described(LOGITS, shape=(8, 8, 1)), r"layer 0 \(dense1\): .* put \"flatten\" before"),
    "convolution of a row": (described(CONV, LOGITS), r"layer 0 \(conv1\): expected an image .* got shape \(64,\)"),
    "flatten of a row": (described("flatten", LOGITS), r"layer 0 \(flatten\): expected an image"),
    "kernel too large": (
        described({"conv2d": {"filters": 1, "kernel": [3, 9], "padding": "valid"}}, "flatten", LOGITS, shape=(8, 8, 1)),
        r"layer 0 \(conv1\): kernel \(3, 9\) is larger than its input \(8, 8\)",
    ),
    "window too large": (
        described({"max_pool": {"size": [9, 1]}}, "flatten", LOGITS, shape=(8, 8, 1)),
        r"layer 0 \(max_pool\): window \(9, 1\) is larger",
    ),
    "reads what is not there": (
        described({"dense": {"units": 10, "input": "a"}}),
        r"layer 0 \(dense1\): reads 'a', but there is no layer of that name; expected 'input' or a layer before",
    ),
    "reads itself": (
        described({"dense": {"units": 10, "name": "a", "input": "a"}}),
        r"layer 0 \(a\): reads 'a', but that one does not stand before it",
    ),
    "a circle": (
        described({"add": {"inputs": ["input", "b"], "name": "a"}}, {"dense": {"units": 64, "name": "b"}}, LOGITS),
        r"layer 0 \(a\): reads 'b', but that one does not stand before it",
    ),
    "read by none": (
        described({"dense": {"units": 9, "name": "a"}}, {"dense": {"units": 10, "input": "input"}}),
        r"layer 0 \(a\): no layer reads it",
    ),
    "sum of one": (described({"add": {"inputs": ["input"]}}, LOGITS), "inputs must be the names of two or more layers"),
    "sum of different shapes": (
        described({"dense": {"units": 9, "name": "a"}}, {"add": {"inputs": ["a", "input"]}}, LOGITS),
        r"layer 1 \(add\): expected equal shapes, but 'a' has \(9,\), 'input' \(64,\)",
    ),
    "concat of different sizes": (
        described({"max_pool": {"size": [2, 2], "name": "a"}}, {"concat": {"inputs": ["a", "input"]}}, shape=(8, 8, 1)),
        r"layer 1 \(concat\): expected shapes that differ in channels only, but 'a' has \(4, 4, 1\)",
    ),
    "reshape": (described({"reshape": {"shape": [8, 9]}}, "flatten", LOGITS), r"\(reshape\): expected 72 numbers"),
    "groups that do not divide": (
        described({"group_norm": {"groups": 5}}, LOGITS),
        r"layer 0 \(group_norm1\): groups must divide the 64 channels of its input, not 5",
    ),
    "rate": (described({"dropout": {"rate": 1}}, LOGITS), r"\(dropout\): rate must be a number from 0 to 0.99, not 1"),
    "slope": (described({"leaky_relu": {"slope": "a"}}, LOGITS), "slope must be a number from 0 to 1"),
    "signal wanted": (described({"lstm": {"units": 4}}, LOGITS), r"\(lstm1\): expected a signal .*, got shape \(64,\)"),
    "too many steps": (
        described({"gru": {"units": 4}}, LOGITS, shape=(513, 2)),
        r"layer 0 \(gru1\): is unrolled over at most 512 steps, got 513",
    ),
    "embedding inside": (
        described("relu", {"embedding": {"vocabulary": 5, "size": 4}}, "flatten", LOGITS),
        r"layer 1 \(embedding1\): an embedding reads the input of the model only",
    ),
    "unknown loss": (DIGITS | {"loss": "hinge"}, "loss: unknown kind 'hinge', expected one of softmax_cross_entropy"),
    "no loss": (DIGITS | {"loss": []}, "loss must be one or more of"),
    "hinge first": (DIGITS | {"loss": ["batch_mean_hinge", "softmax_cross_entropy"]}, "batch_mean_hinge not first"),
    "hinge on no output": (
        DIGITS | {"loss": ["softmax_cross_entropy", {"batch_mean_hinge": {"output": 10}}]},
        "batch_mean_hinge needs an output from 0 to 9",
    ),
    "labels and targets": (DIGITS | {"loss": ["softmax_cross_entropy", "huber"]}, "labels and targets cannot be mixed"),
    "outputs": (
        described("relu", classes=9) | {"loss": "huber"},
        r"layer 0 \(relu\): the last layer must make a flat row of classes = 9 outputs",
    ),
    "scaler": (DIGITS | {"scaler": 1}, "scaler must be true or false, not 1"),
    "too many parameters": (
        described({"dense": {"units": 1 << 20}}, {"dense": {"units": 1 << 20}}, LOGITS),
        "parameters",
    ),
    "too large inside": (
        described({"conv2d": {"filters": 1, "kernel": [99, 99]}}, "flatten", LOGITS, shape=(999, 999, 1)),
        r"layer 0 \(conv1\): makes \d+ values",
    ),
}


@pytest.mark.parametrize(("value", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(value, sentence):
    with pytest.raises(ModelSpecError, match=sentence):
        ModelSpec.from_json(value)


def test_only_layers_are_layers():
    with pytest.raises(ModelSpecError, match=r"layer 0 must be one of dense, .*, not str"):
        ModelSpec("m", (2,), 2, ("relu", Dense(2)))
