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
    spelled["layers"][0]["dense"]["units"] = 255
    assert ModelSpec.from_json(spelled).sha256 != ModelSpec.from_json(DIGITS).sha256


LOGITS = {"dense": {"units": 10}}
WRONG = {
    "not JSON": ("{", "is not JSON"),
    "not an object": ("[]", "expected an object"),
    "unknown key": (DIGITS | {"color": 1}, "unknown key 'color', expected name, input, classes, layers"),
    "missing key": ({k: v for k, v in DIGITS.items() if k != "input"}, "input is missing"),
    "empty name": (DIGITS | {"name": ""}, "name must be a text of 1 to 64"),
    "classes as float": (DIGITS | {"classes": 10.0}, "classes must be a whole number"),
    "classes as truth": (DIGITS | {"classes": True}, "classes must be a whole number"),
    "input of two": (DIGITS | {"input": [8, 8]}, r"input must be \[features\] or"),
    "input of zero": (DIGITS | {"input": [0]}, "input must be"),
    "input as text": (DIGITS | {"input": "64"}, "input must be"),
    "layers as object": (DIGITS | {"layers": {}}, "layers must be a list"),
    "no layers": (DIGITS | {"layers": []}, "a model has 1 to"),
    "unknown kind": (described("swish", LOGITS), "layer 0: unknown kind 'swish', expected one of dense"),
    "two kinds in one": (described({"relu": {}, "flatten": {}}), r'layer 0: expected "kind" or'),
    "number as layer": (described(3), r'layer 0: expected "kind" or'),
    "unknown layer key": (described({"dense": {"units": 1, "bias": True}}), r"layer 0 \(dense\): unknown key 'bias'"),
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
