"""Messages and their JSON: what is valid comes back equal, everything else is refused by a sentence."""

from __future__ import annotations

import json
import math
import random
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
from attrs import NOTHING, Factory, asdict, evolve, fields, fields_dict, resolve_types
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import RESULTS, Command, CommandResult
from protocol.errors import ProtocolError
from protocol.messages import (
    STATES,
    Amend,
    Ask,
    Assignment,
    Blob,
    Capability,
    CheckIn,
    Chunk,
    DeviceEvent,
    EnrolmentReply,
    EnrolmentRequest,
    Fresh,
    Holdout,
    Merge,
    Message,
    Plan,
    Progress,
    Receipt,
    Retry,
    Telemetry,
    Timings,
    Update,
)
from protocol.wire import MAX_MESSAGE, decode, encode, frame, parse_json, structure, unframe, unstructure

from .mutation import ROUNDS, damage, damage_json, read_or_refused
from .samples import EXAMPLES, MESSAGES, QUICK, SHA, example_fields

KINDS = pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)


def test_every_message_class_has_an_example_and_a_strategy():
    ours = {kind for kind in Message.__subclasses__() if kind.__module__.startswith("protocol.")}
    assert ours == set(EXAMPLES) == set(MESSAGES)


@KINDS
def test_a_message_comes_back_equal(kind):
    @QUICK
    @given(MESSAGES[kind])
    def comes_back(message):
        assert decode(kind, encode(message)) == message
        assert structure(kind, unstructure(message)) == message

    comes_back()


@KINDS
def test_what_comes_back_has_the_declared_types(kind):
    """1 for a float arrives as 1.0, a JSON list as a tuple: equality alone would not tell."""

    @QUICK
    @given(MESSAGES[kind])
    def same_types(message):
        back = decode(kind, encode(message))
        assert repr(back) == repr(decode(kind, encode(back)))
        for attribute in fields(resolve_types(kind)):
            value, declared = getattr(back, attribute.name), attribute.type
            allowed = get_args(declared) if NoneType in get_args(declared) else (declared,)
            assert type(value) in {get_origin(each) or each for each in allowed}

    same_types()


def test_the_json_is_compact_and_plain():
    assert encode(EXAMPLES[Chunk]) == b'{"assignment":"a-1","commit":1,"index":3}'
    assert encode(EXAMPLES[Timings]) == b'{"download":1.5,"train":60.0,"upload":null}'
    assert unstructure(EXAMPLES[Receipt])["missing"] == [[0, 2], [5, 5]]


def test_a_whole_number_is_a_fine_float():
    assert decode(Timings, b'{"download":1,"train":2,"upload":3}') == Timings(download=1.0, train=2.0, upload=3.0)


# -- wrong JSON types

WRONG: dict[Any, list[Any]] = {
    int: ["32", True, False, 1.5, 1.0, None, [], [1], {}],
    float: ["1", "", True, None, [], {}, 10**400, -(10**400)],
    str: [1, 1.5, True, None, [], ["a"], {}],
    bool: [0, 1, "true", None, [], {}],
    tuple: ["a", "", 1, True, None, {}, {"0": 1}],
    dict: [[], [["w", 1.0]], "w", 1, True, None, {"w": "1"}, {"w": True}, {"w": None}, {"w": [1.0]}, {"w": 10**400}],
    Message: [None, [], "x", 1, True, [{}], {}, {"odd": 1}],
}
WRONG_ITEMS: dict[Any, list[Any]] = {
    str: [[1], ["a", None], [True], [["a"]]],
    int: [["1"], [True], [1.5], [None], [[1]]],
    Message: [[1], [None], [[]], [{}]],
    tuple: [[1], [[]], [[1]], [[1, 2, 3]], [[1, "2"]], [[True, 2]], [[1, 1.5]], [None], [{"0": 1, "1": 2}]],
}


def _wrong_values(declared: Any) -> list[Any]:
    optional = NoneType in get_args(declared)
    kind = next(each for each in get_args(declared) if each is not NoneType) if optional else declared
    origin = get_origin(kind) or kind
    found = WRONG[Message if issubclass(origin, Message) else origin]
    if origin is tuple:
        item = get_args(kind)[0]
        item = get_origin(item) or item
        found = found + WRONG_ITEMS[Message if issubclass(item, Message) else item]
    return [value for value in found if not (optional and value is None)]


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        pytest.param(kind, a.name, wrong, id=f"{kind.__name__}.{a.name}-{str(wrong)[:20]}")
        for kind in EXAMPLES
        for a in fields(resolve_types(kind))
        for wrong in _wrong_values(a.type)
    ],
)
def test_a_wrong_type_is_refused_never_coerced(kind, name, wrong):
    plain = unstructure(EXAMPLES[kind]) | {name: wrong}
    with pytest.raises(ProtocolError) as refusal:
        decode(kind, json.dumps(plain).encode())
    assert f"{kind.__name__}.{name}" in str(refusal.value)


@pytest.mark.parametrize(("kind", "name"), example_fields())
def test_a_missing_field_is_refused(kind, name):
    plain = unstructure(EXAMPLES[kind])
    del plain[name]
    with pytest.raises(ProtocolError, match=f"{kind.__name__} has missing or unknown fields: '{name}'"):
        structure(kind, plain)


@KINDS
def test_a_field_with_a_default_may_be_missing_and_is_not_sent(kind):
    plain = unstructure(EXAMPLES[kind])
    for name, attribute in fields_dict(kind).items():
        if attribute.default is not NOTHING:
            message = structure(kind, {key: value for key, value in plain.items() if key != name})
            default = attribute.default
            assert getattr(message, name) == (default.factory() if isinstance(default, Factory) else default)
            assert name not in unstructure(message)


@KINDS
def test_an_unknown_field_is_refused(kind):
    with pytest.raises(ProtocolError, match=f"{kind.__name__} has missing or unknown fields: 'odd'"):
        structure(kind, unstructure(EXAMPLES[kind]) | {"odd": 1})


@KINDS
@pytest.mark.parametrize("text", [b"null", b"[]", b"1", b'"x"', b"true"])
def test_anything_but_an_object_is_refused(kind, text):
    with pytest.raises(ProtocolError, match=f"expected an object for {kind.__name__}, not "):
        decode(kind, text)


def test_the_sentence_names_the_whole_path():
    plain = unstructure(EXAMPLES[Assignment])
    plain["plan"]["width"] = "0.5"
    with pytest.raises(ProtocolError, match=r"^Assignment.plan: Plan.width: expected a finite number, not '0.5'$"):
        structure(Assignment, plain)


# -- ranges

NATURAL = ([0, 1 << 53], [-1, (1 << 53) + 1, 10**30])
COUNT = ([0, (1 << 31) - 1], [-1, 1 << 31, 10**30])
SECONDS = ([0, 1e9], [-1e-9, 1.1e9, 1e308])
NAME = (["a", "0", "a" * 80, "A.b_c:d-e"], ["", "a" * 81, "-a", ".a", "a b", "a\n", "ä", "a/b", "a\0", "+", "#"])
TEXT = (["", "é" * 2000, "line\nline", "😀"], ["x" * 2001, "a\0b", "\ud800", "\udfff x"])
TEXTS = ([[], ["x"] * 64, ["é" * 200]], [["x"] * 65, ["x" * 201], ["\0"], ["\ud800"]])
COMMIT = ([1, 1_000_000], [0, -1, 1_000_001])
SHARE = ([0, 0.5, 1], [-1e-9, 1.001])
SHA256 = ([SHA, "0" * 64], ["", "0" * 63, "0" * 65, "g" * 64, SHA.upper(), SHA + "\n"])
LOSS = ([-1e30, 1e30, 0], [-1.1e30, 1.1e30])
CODING = (["float32", "int8"], ["", "Int8", "int4"])
NORMS = (
    [{}, {"": 0.0}, {"w": 1e308}, {str(n): 0.5 for n in range(4096)}],
    [{"w": -1e-9}, {"w" * 201: 0.5}, {"\ud800": 0.5}, {"\0": 0.5}, {str(n): 0.5 for n in range(4097)}],
)
RANGES = {
    (Blob, "sha256"): SHA256,
    (Blob, "size"): NATURAL,
    (Plan, "width"): ([1 / 1024, 1], [0, 1 / 1025, 1.0001, -1]),
    (Plan, "batch"): ([1, 2, 64, 1024], [0, -1, -2, 3, 48, 2048]),
    (Plan, "steps"): ([1, 1_000_000], [0, 1_000_001]),
    (Plan, "learning_rate"): ([0, 1000], [-0.1, 1000.1]),
    (Plan, "coding"): CODING,
    (Plan, "seconds"): ([None, 0.001, 1e6], [0, -1, 1.1e6]),
    (Plan, "commits"): COMMIT,
    (Plan, "refresh"): ([None, *COMMIT[0]], COMMIT[1]),
    (Plan, "momentum"): SHARE,
    (Plan, "dampening"): SHARE,
    (Plan, "weight_decay"): ([0, 100], [-1e-9, 101]),
    (Plan, "clip"): ([0, 1e9], [-1e-9, 1.1e9]),
    (Plan, "proximal"): ([0, 1e6], [-1e-9, 1.1e6]),
    (Plan, "roll"): COUNT,
    (Amend, "number"): COUNT,
    (Amend, "reason"): TEXT,
    (Ask, "commit"): COMMIT,
    (Fresh, "merge"): SHARE,
    (Fresh, "keep"): SHARE,
    (Merge, "merge"): SHARE,
    (Merge, "loss_before"): ([None, -1e30, 1e30], [-1.1e30, 1.1e30]),
    (CheckIn, "protocol"): COUNT,
    (CheckIn, "features"): TEXTS,
    (CheckIn, "input"): ([[1], [1] * 8, [(1 << 31) - 1]], [[], [1] * 9, [0], [-1], [1 << 31]]),
    (CheckIn, "classes"): ([1, 1_000_000], [0, 1_000_001]),
    (CheckIn, "held"): ([None, *NAME[0]], NAME[1]),
    (CheckIn, "unsent"): ([[], ["a"] * 256], [["a"] * 257, [""], ["a", "a b"]]),
    (Assignment, "kind"): (["train"], ["", "evaluate", "Train"]),
    (Assignment, "id"): NAME,
    (Assignment, "lease"): SECONDS,
    (Retry, "seconds"): SECONDS,
    (Retry, "reason"): TEXT,
    (Progress, "step"): COUNT,
    (Progress, "loss"): ([None, *LOSS[0]], LOSS[1]),
    (Holdout, "samples"): ([1, (1 << 31) - 1], [0, -1, 1 << 31]),
    (Holdout, "accuracy"): SHARE,
    (Timings, "upload"): ([None, *SECONDS[0]], SECONDS[1]),
    (Update, "commit"): COMMIT,
    (Update, "loss"): LOSS,
    (Update, "accuracy"): ([0, 1], [-0.01, 1.01]),
    (Update, "squared_gradient"): NORMS,
    (Update, "squared_gradient_peak"): NORMS,
    (Update, "coding"): CODING,
    (Update, "size"): ([1, 1 << 32], [0, (1 << 32) + 1]),
    (Update, "sha256"): SHA256,
    (Update, "chunk"): ([0, 1 << 20], [-1, (1 << 20) + 1]),
    (Chunk, "index"): COUNT,
    (Receipt, "state"): (list(STATES), ["", "lost"]),
    (Receipt, "missing"): (
        [[], [[0, 0]], [[0, 1], [2, 2]], [[7, 1 << 53]], [[n, n] for n in range(1000)]],
        [[[-1, 0]], [[1, 0]], [[0, 2], [2, 3]], [[3, 4], [0, 1]], [[0, 10**30]], [[n, n] for n in range(1001)]],
    ),
    (Receipt, "reason"): TEXT,
    (Telemetry, "load"): ([None, 0, 1e6], [-0.1, 1.1e6]),
    (Telemetry, "temperature"): ([None, -100, 300], [-101, 301]),
    (Telemetry, "cpu"): ([None, 0, 1], [-0.1, 1.1]),
    (Telemetry, "throttled"): ([None, *TEXTS[0]], TEXTS[1]),
    (Telemetry, "battery"): ([None, 0, 100], [-1, 101]),
    (Telemetry, "goodput"): ([None, 0, 1e12], [-1, 2e12]),
    (Telemetry, "phases"): ([None, *NORMS[0]], NORMS[1]),
    (Telemetry, "waiting"): ([None, *TEXT[0]], TEXT[1]),
    (CheckIn, "labels"): ([None, [], [0] * 10, [(1 << 31) - 1] * 10], [[0] * 9, [0] * 11, [-1] * 10, [1 << 31] * 10]),
    (Capability, "speed"): ([None, *NORMS[0]], NORMS[1]),
    (DeviceEvent, "kind"): NAME,
    (DeviceEvent, "text"): TEXT,
    (CommandResult, "state"): (list(RESULTS), ["", "open"]),
    (CommandResult, "text"): (["", "x" * 20_000], ["x" * 20_001, "a\0b", "\ud800"]),
    (Command, "kind"): NAME,
    (Capability, "runtimes"): TEXTS,
    (EnrolmentRequest, "token"): TEXT,
    (EnrolmentRequest, "secret"): (["!" * 32, "~" * 128], ["s" * 31, "s" * 129, "s" * 31 + "ß", "s" * 31 + " "]),
    (EnrolmentReply, "broker_port"): ([1, 65535], [0, 65536]),
    (EnrolmentReply, "heartbeat"): ([0.1, 86400], [0.09, 86401]),
}


@pytest.mark.parametrize(("kind", "name"), RANGES, ids=lambda part: getattr(part, "__name__", part))
def test_the_ends_of_a_range_belong_to_it_and_what_lies_beyond_is_refused(kind, name):
    good, bad = RANGES[kind, name]
    plain = unstructure(EXAMPLES[kind])
    for value in good:
        message = structure(kind, plain | {name: value})
        assert unstructure(message).get(name, fields_dict(kind)[name].default) == value
    for value in bad:
        with pytest.raises(ProtocolError, match=rf"\b{name} is .*, expected "):
            structure(kind, plain | {name: value})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, a.name) for kind in EXAMPLES for a in fields(resolve_types(kind)) if float in (a.type, *get_args(a.type))],
)
def test_a_number_that_is_not_finite_can_neither_be_made_nor_read(kind, name, bad):
    value = {"w": bad} if isinstance(getattr(EXAMPLES[kind], name), dict) else bad
    with pytest.raises(ProtocolError, match=name):
        evolve(EXAMPLES[kind], **{name: value})
    with pytest.raises(ProtocolError, match=name):
        structure(kind, unstructure(EXAMPLES[kind]) | {name: value})
    with pytest.raises(ProtocolError, match="not a JSON number"):
        decode(kind, json.dumps(unstructure(EXAMPLES[kind]) | {name: value}).encode())


# -- sizes

WIDE = "\U0001f600"  # twelve bytes of JSON
LARGEST = {
    CheckIn: {"features": (WIDE * 200,) * 64, "unsent": ("a" * 80,) * 256},
    Retry: {"reason": WIDE * 2000},
    Update: {"squared_gradient": {str(n) + WIDE * 100: 0.1 for n in range(4096)}},
    Receipt: {"missing": tuple(((1 << 52) + n, (1 << 52) + n) for n in range(1000)), "reason": WIDE * 2000},
    DeviceEvent: {"text": WIDE * 2000},
    Capability: {"machine": WIDE * 2000, "system": WIDE * 2000, "python": WIDE * 2000, "runtimes": (WIDE * 200,) * 64},
    EnrolmentRequest: {"token": WIDE * 2000, "secret": "s" * 128},
    EnrolmentReply: {"broker_host": WIDE * 2000},
}
TOO_LARGE = {CheckIn, Update, Capability}


@KINDS
def test_a_message_stays_below_64_kib_or_is_refused_on_both_sides(kind):
    names = {a.name: "a" * 80 for a in fields(kind) if getattr(EXAMPLES[kind], a.name) in ("a-1", "r-1", "c-1", "b-1")}
    largest = evolve(EXAMPLES[kind], **names | LARGEST.get(kind, {}))
    if kind not in TOO_LARGE:
        assert len(encode(largest)) <= MAX_MESSAGE
        return
    with pytest.raises(ProtocolError, match="over the limit of 65536"):
        encode(largest)
    with pytest.raises(ProtocolError, match="over the limit of 65536"):
        decode(kind, json.dumps(asdict(largest)).encode())


def test_a_message_of_more_than_64_kib_is_not_even_parsed():
    text = encode(EXAMPLES[Chunk])
    assert decode(Chunk, text.ljust(MAX_MESSAGE)) == EXAMPLES[Chunk]
    with pytest.raises(ProtocolError, match="65537 bytes is over the limit of 65536"):
        decode(Chunk, text.ljust(MAX_MESSAGE + 1))
    with pytest.raises(ProtocolError, match="over the limit"):
        decode(Chunk, b"[" * (MAX_MESSAGE + 1))


# -- JSON


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "not JSON that can be read"),
        (b"\xff\xfe", "not JSON that can be read"),
        (b'{"a":1', "not JSON that can be read"),
        (b"{'a':1}", "not JSON that can be read"),
        (b"1 2", "not JSON that can be read"),
        (b"9" * 5000, "not JSON that can be read"),
        (b"[" * 60_000, "not JSON that can be read"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'{"a":1,"a":1}', "names a field twice"),
        (b'[{"b":{"a":1,"\\u0061":2}}]', "names a field twice"),
    ],
)
def test_json_is_read_strictly(text, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        parse_json(text)


@pytest.mark.parametrize("depth", [10, 300, 600, 900, 30_000])
def test_deep_nesting_is_refused(depth):
    """By the JSON parser or by the type, depending on how deep the interpreter lets it go."""
    nest = b"[" * depth + b"]" * depth
    with pytest.raises(ProtocolError):
        decode(Chunk, nest)
    with pytest.raises(ProtocolError) as refusal:
        decode(Receipt, encode(EXAMPLES[Receipt]).replace(b"[[0,2],[5,5]]", nest))
    assert len(str(refusal.value)) < 300


def test_a_float_that_overflows_is_no_number():
    with pytest.raises(ProtocolError, match=r"Timings.train: expected a finite number, not inf"):
        decode(Timings, b'{"download":1,"train":1e999,"upload":null}')


# -- secrets


def test_secrets_appear_neither_in_representations_nor_in_sentences():
    request = EXAMPLES[EnrolmentRequest]
    assert request.secret not in repr(request)
    assert request.token not in repr(request)
    plain = unstructure(request)
    leaks = {"secret": ["hunter2", ["hunter2"], "hunter2" * 30], "token": ["hunter2\0", {"hunter2": 1}]}
    for name, values in leaks.items():
        for value in values:
            with pytest.raises(ProtocolError, match=name) as refusal:
                structure(EnrolmentRequest, plain | {name: value})
            assert "hunter2" not in str(refusal.value)


# -- frames


@QUICK
@given(MESSAGES[Update], st.binary(max_size=300))
def test_a_frame_comes_back_with_its_body(message, body):
    assert unframe(Update, frame(message, body)) == (message, body)


def test_a_frame_is_length_json_body():
    text = b'{"assignment":"a-1","commit":1,"index":3}'
    assert frame(EXAMPLES[Chunk], b"body") == b"\x29\0\0\0" + text + b"body"
    assert unframe(Chunk, b"\x29\0\0\0" + text) == (EXAMPLES[Chunk], b"")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "0 bytes are too few"),
        (b"\x29\0\0", "3 bytes are too few"),
        (b"\x29\0\0\0{}", "claims a message of 41 bytes, 2 are there"),
        (b"\xff\xff\xff\xff" + b"{}" * 10, "claims a message of 4294967295 bytes"),
        (b"\x01\x00\x01\x00" + b" " * 70_000, "claims a message of 65537 bytes"),
        (b"\0\0\0\0{}", "not JSON that can be read"),
    ],
)
def test_a_frame_that_lies_about_its_length_is_refused(data, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        unframe(Chunk, data)


# -- damage


def _judge(kind: type[Message], data: bytes) -> bool:
    message = read_or_refused(lambda text: decode(kind, text), data)
    if message is None:
        return False
    assert decode(kind, encode(message)) == message
    return True


@pytest.mark.parametrize("rounds", ROUNDS)
def test_damaged_bytes_are_a_valid_message_or_a_protocol_error(rounds):
    rng = random.Random(1)
    texts = {kind: encode(message) for kind, message in EXAMPLES.items()}
    valid = 0
    for _ in range(rounds):
        kind = rng.choice(list(texts))
        valid += _judge(kind, damage(rng, texts[kind], rng.choice(list(texts.values()))))
    assert 0 < valid < rounds / 2


@pytest.mark.parametrize("rounds", ROUNDS)
def test_damaged_json_is_a_valid_message_or_a_protocol_error(rounds):
    rng = random.Random(2)
    plain = {kind: unstructure(message) for kind, message in EXAMPLES.items()}
    valid = 0
    for _ in range(rounds):
        kind = rng.choice(list(plain))
        valid += _judge(kind, damage_json(rng, plain[kind]))
    assert 0 < valid < rounds / 2


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_damaged_frame_is_a_valid_update_or_a_protocol_error(rounds):
    rng = random.Random(3)
    whole = frame(EXAMPLES[Update], rng.randbytes(200))
    other = frame(EXAMPLES[Chunk], rng.randbytes(50))
    valid = 0
    for _ in range(rounds):
        back = read_or_refused(lambda data: unframe(Update, data), damage(rng, whole, other))
        if back is not None:
            assert unframe(Update, frame(*back)) == back
            valid += 1
    assert 0 < valid < rounds
