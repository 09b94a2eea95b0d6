"""Plain JSON to attrs classes, strictly, and back. What is read here is also what the OpenAPI document describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from attrs import NOTHING, fields, has

from coordinator.errors import ShoalError
from coordinator.store.queries import Page
from protocol.messages import Message
from protocol.wire import parse_json, structure

T = TypeVar("T")

MAX_LIST = 10_000

_NAMES = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "null"}


def read_body(kind: type[T], data: bytes) -> T:
    """A request's body; ProtocolError or ShoalError bad-request names what does not fit."""
    value = parse_json(data) if data else {}
    if issubclass(kind, Message):
        return structure(kind, value)
    if type(value) is not dict:
        raise ShoalError("bad-request", f"The body is of type {type(value).__name__}, expected an object")
    return _build(kind, value, _exact)


def read_query(kind: type[T], given: Mapping[str, list[str]]) -> T:
    """The parameters behind the question mark, each at most once."""
    for name, values in given.items():
        if len(values) > 1:
            raise ShoalError("bad-request", f"{name[:40]} is given {len(values)} times, expected once")
    return _build(kind, {name: values[0] for name, values in given.items()}, _from_text)


def nothing_given(what: str, names: list[str]) -> None:
    if names:
        raise ShoalError("bad-request", f"This takes no {what}, but {', '.join(sorted(names))[:120]} was given")


def plain(value: Any) -> Any:
    """What a JSON encoder takes: numbers that JSON cannot say become null, keys become strings."""
    if isinstance(value, Page):
        order = value.order
        rows = [plain(row) for row in value.rows]
        return {"rows": rows, "total": value.total, "page": order.page, "size": order.size}
    if has(type(value)):
        return {one.name: plain(getattr(value, one.name)) for one in fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one kind itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _build(kind: type[T], given: Mapping[str, Any], read: Any) -> T:
    hints = get_type_hints(kind)
    if unknown := sorted(given.keys() - hints.keys()):
        expected = f"expected {', '.join(hints)}" if hints else "expected none"
        raise ShoalError("bad-request", f"Unknown field {', '.join(unknown)[:120]}: {expected}")
    required = [one.name for one in fields(kind) if one.default is NOTHING]  # type: ignore[arg-type]
    if missing := [name for name in required if name not in given]:
        raise ShoalError("bad-request", f"Missing field {', '.join(missing)}")
    return kind(**{name: read(name, value, alternatives(hints[name])) for name, value in given.items()})


def _exact(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        if kind is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if get_origin(kind) is Literal and type(value) is str and value in get_args(kind):
            return value
        if get_origin(kind) is tuple and type(value) is list and len(value) <= MAX_LIST:
            return tuple(_exact(name, one, get_args(kind)[:1]) for one in value)
        if type(value) is kind and kind is not float:
            return value
    raise _refused(name, value, kinds)


def _from_text(name: str, text: str, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        try:
            if kind in (int, float) and math.isfinite(number := kind(text)):
                return number
        except ValueError:
            continue
        if kind is str or (get_origin(kind) is Literal and text in get_args(kind)):
            return text
        if kind is bool and text in ("true", "false"):
            return text == "true"
    raise _refused(name, text, kinds)


def _refused(name: str, value: Any, kinds: tuple[Any, ...]) -> ShoalError:
    said = " or ".join(map(_said, kinds))
    return ShoalError("bad-request", f"{name} is {str(value)[:60]!r}, expected {said}")


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a list of at most {MAX_LIST} times {_NAMES[get_args(kind)[0]]}"
    return _NAMES[kind]
