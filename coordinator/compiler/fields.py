"""What the fields of a model description may hold, and how described values become JSON and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs

from protocol.subnetwork import CLASSES

Shape = tuple[int, ...]
Pair = tuple[int, int]
Padding = Literal["same", "valid"]
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

MAX_SIZE = 1 << 20  # of any single dimension
INPUT = "input"  # what layers call the input of the model
SPARSE = {"sparse": True}
"""Metadata of a field that canonical JSON leaves out where it holds its default."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
T = TypeVar("T")


class ModelSpecError(ValueError):
    """A model description is wrong. The text names the layer and what was expected of it."""


def size(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_SIZE:
        raise ModelSpecError(f"{attribute.name} must be a whole number from 1 to {MAX_SIZE}, not {value!r}")


def index(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        raise ModelSpecError(f"{attribute.name} must be a whole number from 0 to {MAX_SIZE - 1}, not {value!r}")


def sizes(least: int, most: int, words: str) -> Validator:
    """A validator of tuples of ``least`` to ``most`` sizes."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        fits = isinstance(value, tuple) and least <= len(value) <= most
        if not fits or any(type(n) is not int or not 1 <= n <= MAX_SIZE for n in value):  # type: ignore[attr-defined]
            raise ModelSpecError(f"{attribute.name} must be {words} from 1 to {MAX_SIZE}, not {value!r}")

    return check


pair = sizes(2, 2, "two whole numbers")


def number(least: float, most: float) -> Validator:
    """A validator of finite numbers from ``least`` to ``most``."""

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not plain or not least <= value <= most:  # type: ignore[operator]
            raise ModelSpecError(f"{attribute.name} must be a number from {least:g} to {most:g}, not {value!r}")

    return check


def truth(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not bool:
        raise ModelSpecError(f"{attribute.name} must be true or false, not {value!r}")


def name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value == "":
        return
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value in (CLASSES, INPUT):
        raise ModelSpecError(
            f"{attribute.name} must be a letter followed by up to 63 letters, digits or _, "
            f"and neither {CLASSES!r} nor {INPUT!r}: got {value!r}"
        )


def source(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise ModelSpecError(f"{attribute.name} must be the name of a layer, not {value!r}")


def sources(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or len(value) < 2 or not all(isinstance(n, str) and n for n in value):
        raise ModelSpecError(f"{attribute.name} must be the names of two or more layers, not {value!r}")


def padding(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in get_args(Padding):
        raise ModelSpecError(f'{attribute.name} must be "same" or "valid", not {value!r}')


def text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise ModelSpecError(f"{attribute.name} must be a text of 1 to 64 characters, not {value!r}")


# -- JSON: "kind" or {"kind": {field: value}}


def to_json(value: Any) -> str | dict[str, Any]:
    """A described value by its kind and fields."""
    content: dict[str, Any] = {}
    for attribute in attrs.fields(type(value)):
        held = getattr(value, attribute.name)
        if not (attribute.metadata.get("sparse") and held == attribute.default):
            content[attribute.name] = list(held) if isinstance(held, tuple) else held
    return {value.kind: content} if content else str(value.kind)


def from_json(kinds: Mapping[str, type[T]], label: str, value: object) -> T:
    """Inverse of :func:`to_json` for one of ``kinds``; ModelSpecError starts with ``label``."""
    kind, content = (value, {}) if isinstance(value, str) else _single(label, value)
    if kind not in kinds:
        raise ModelSpecError(f"{label}: unknown kind {kind!r}, expected one of {', '.join(kinds)}")
    attributes = attrs.fields(kinds[kind])  # type: ignore[arg-type]
    required = tuple(a.name for a in attributes if a.default is attrs.NOTHING)
    others = tuple(a.name for a in attributes if a.default is not attrs.NOTHING)
    named = content.get("name") if isinstance(content, dict) else None
    label = f"{label} ({named if isinstance(named, str) and named else kind})"
    found = members(content, required, others, label)
    if found.get("name") == "":
        raise ModelSpecError(f"{label}: name must not be empty; leave it out for the default")
    try:
        return kinds[kind](**{key: tuple(v) if isinstance(v, list) else v for key, v in found.items()})
    except ModelSpecError as error:
        raise ModelSpecError(f"{label}: {error}") from None


def _single(label: str, value: object) -> tuple[str, object]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ModelSpecError(f'{label}: expected "kind" or {{"kind": {{…}}}}, got {value!r:.100}')
    return next(iter(value.items()))


def members(value: object, required: tuple[str, ...], others: tuple[str, ...], label: str) -> dict[str, Any]:
    """The members of a JSON object, all required ones there and none that is unknown."""
    if not isinstance(value, Mapping):
        raise ModelSpecError(f"{label}: expected an object, got {type(value).__name__}")
    for key in value:
        if key not in required + others:
            expected = ", ".join(required + others) or "none"
            raise ModelSpecError(f"{label}: unknown key {key!r}, expected {expected}")
    for key in required:
        if key not in value:
            raise ModelSpecError(f"{label}: {key} is missing")
    return dict(value)
