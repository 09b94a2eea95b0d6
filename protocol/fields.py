"""What the fields of messages may hold: validators that refuse with a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from attrs import Attribute

from .errors import ProtocolError, shown

_SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")
SECRET = re.compile(r"[!-~]{32,128}")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # no database takes NUL and half surrogates


def check(test: Callable[[Any], bool], expected: str) -> Callable[[Any, Attribute[Any], Any], None]:
    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not test(value):
            found = shown(value) if attribute.repr else "something else"  # secrets stay out of sentences
            raise ProtocolError(f"{attribute.name} is {found}, expected {expected}")

    return validate


def storable(text: str, length: int) -> bool:
    return len(text) <= length and not _UNSTORABLE.search(text)


def ascending(ranges: tuple[tuple[int, int], ...]) -> bool:
    ends = [-1, *(end for pair in ranges for end in pair)]
    apart = all(last < first for last, first in zip(ends[::2], ends[1::2], strict=False))
    return apart and all(first <= last for first, last in ranges) and ends[-1] <= 1 << 53


def between(low: float, high: float) -> Callable[[Any, Attribute[Any], Any], None]:
    return check(lambda value: low <= value <= high, f"a number from {low} to {high}")


natural = between(0, 1 << 53)
count = between(0, (1 << 31) - 1)
seconds = between(0, 1e9)
sha256 = check(lambda value: bool(_SHA256.fullmatch(value)), "64 hexadecimal digits")
name = check(lambda value: bool(NAME.fullmatch(value)), "1 to 80 letters, digits, . _ : -")
secret = check(lambda value: bool(SECRET.fullmatch(value)), "32 to 128 visible ASCII characters")
text = check(lambda value: storable(value, 2000), "at most 2000 characters, no NUL, no half surrogate")
texts = check(lambda value: len(value) <= 64 and all(storable(v, 200) for v in value), "at most 64 short texts")
sizes = check(lambda value: 0 < len(value) <= 8 and all(0 < n < 1 << 31 for n in value), "1 to 8 positive sizes")
values = check(
    lambda value: len(value) <= 4096 and all(storable(k, 200) and 0 <= v < math.inf for k, v in value.items()),
    "at most 4096 numbers ≥ 0 with short names",
)
