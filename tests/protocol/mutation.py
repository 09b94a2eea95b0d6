"""Damage for valid encodings: what a broken disk, a hostile peer or a fuzzer would make of them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from protocol.errors import ProtocolError
from protocol.messages import Receipt

from .samples import SHA

T = TypeVar("T")

ROUNDS = [pytest.param(400, id="quick"), pytest.param(20_000, id="soak", marks=pytest.mark.soak)]

# As JSON text, because Python values could not say all of it.
HOSTILE = (
    "null", "true", "false", "0", "1", "-1", "1.5", "1.0", "-0.0", "1e308", "1e999", "-1e999", "NaN", "Infinity",
    "-Infinity", "9" * 19, "9" * 400, "9" * 5000, "-" + "9" * 30, '""', '"32"', '"\\u0000"', '"\\ud800"',
    '"\\ud83d\\ude00"', '"' + "x" * 3000 + '"', "[]", "{}", "[[]]", "[null]", '[1,"1"]', '{"a":1,"a":2}',
    "[" * 300 + "]" * 300, "[" * 20_000 + "]" * 20_000, '{"":' * 900 + "1" + "}" * 900,
    "[" * 900 + "]" * 900, "[0,0,0]", "[1,2,3]", '[4,"g0",2]', "[2147483648]", '"shoal\\n"', '"\\u2028"',
)  # fmt: skip


def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """``data`` after one to three accidents: flipped bits, cuts, insertions, overwrites, or a splice with ``other``."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0:
                flipped = bytearray(data)
                for _ in range(rng.randint(1, 4) if data else 0):
                    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                data = bytes(flipped)
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
            case 3:
                data = data[:at] + data[end:]
            case 4:
                data = data[:at] + other[rng.randrange(len(other) + 1) :]
            case _:
                word = rng.choice([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b'"', b"9" * 9, b"[", b"}"])
                data = data[:at] + word + data[at + len(word) :]
    return data


def damage_json(rng: random.Random, plain: Any) -> bytes:
    """JSON of ``plain`` after one to three changes: hostile values, missing, unknown, renamed and repeated keys."""
    plain = copy.deepcopy(plain)
    texts: dict[str, str] = {}
    for _ in range(rng.randint(1, 3)):
        container = _container(rng, plain)
        mark = f"@{len(texts)}@"
        texts[json.dumps(mark)] = rng.choice(HOSTILE)
        if isinstance(container, dict):
            _change_object(rng, container, mark, texts)
        elif container and rng.random() < 0.7:
            container[rng.randrange(len(container))] = mark
        else:
            container.insert(rng.randint(0, len(container)), mark)
    text = json.dumps(plain)
    for mark, hostile in texts.items():
        text = text.replace(mark, hostile)
    return text.encode()


def _container(rng: random.Random, plain: Any) -> Any:
    """A random object or list inside ``plain``, ``plain`` itself among them."""
    found = [plain]
    for container in found:
        inner = container.values() if isinstance(container, dict) else container
        found.extend(value for value in inner if isinstance(value, dict | list))
    return rng.choice(found)


def _change_object(rng: random.Random, container: dict[str, Any], mark: str, texts: dict[str, str]) -> None:
    key = rng.choice(list(container)) if container else "odd"
    match rng.randrange(8):
        case 0:
            container.pop(key, None)
        case 1:
            container[rng.choice(["odd", "", "x" * 300, "\ud800", "id"])] = mark
        case 2:
            value = container.pop(key, None)
            container[key + "'"] = value
        case 3:  # the same key twice
            texts[json.dumps(mark)] = f"1,{json.dumps(key)}:{rng.choice(HOSTILE)}"
            container[key] = mark
        case _:
            container[key] = mark


def read_or_refused(read: Callable[[bytes], T], data: bytes) -> T | None:
    """What ``read`` makes of ``data``, None if it refuses; any other end than a ProtocolError fails the test.

    The sentence of a refusal must be one that a receipt can carry and a log can show.
    """
    try:
        return read(data)
    except ProtocolError as error:
        sentence = str(error)
    assert sentence.isprintable()
    assert len(sentence) <= 600
    Receipt(assignment="a", commit=1, state="refused", sha256=SHA, missing=(), reason=sentence)
    return None
