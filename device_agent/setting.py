"""One setting: its default, its range, and how a value from TOML or the environment becomes its."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from attrs import Attribute, AttrsInstance, field, fields, has, resolve_types

from .errors import UsageError

T = TypeVar("T", bound=AttrsInstance)


def setting(
    default: Any = None, low: float | None = None, high: float | None = None, one_of: tuple[str, ...] = ()
) -> Any:
    """A field of a class of settings: a number between ``low`` and ``high``, or a word that is ``one_of`` these."""
    return field(default=default, metadata={"low": low, "high": high, "one_of": one_of})


def read(cls: type[T], values: Mapping[str, Any], table: str, where: str, folder: Path, **given: Any) -> T:
    """``cls`` from the TOML table ``[table]``; UsageError names what is unknown, of another type or out of range.

    Paths are relative to ``folder``; ``given`` are fields of ``cls`` that are no settings.
    """
    prefix = f"{table}." if table else ""
    known = {attribute.name: attribute for attribute in fields(resolve_types(cls)) if attribute.name not in given}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise UsageError(f"{where} has the unknown setting {prefix + unknown[0]!r}, known are {', '.join(known)}")
    settings = {name: _value(known[name], value, prefix + name, folder) for name, value in values.items()}
    return cls(**given, **settings)


def from_text(attribute: Attribute[Any], text: str, variable: str) -> Any:
    """A value from an environment variable; the words of a list are parted by commas."""
    kind = _kind(attribute)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return [_parsed(item, part.strip(), variable) for part in text.split(",")]
    return _parsed(kind, text, variable)


def _parsed(kind: Any, text: str, variable: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError) as error:
        raise UsageError(f"{variable} is {text!r}, expected {kind.__name__}") from error


def _kind(attribute: Attribute[Any]) -> Any:
    """The type of a setting, without its None."""
    kind = attribute.type
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    return kind


def _value(attribute: Attribute[Any], value: Any, name: str, folder: Path) -> Any:
    kind = _kind(attribute)
    if get_origin(kind) is None and has(kind):
        if not isinstance(value, kind):
            raise UsageError(f"setting {name} is {value!r}, expected a table [{name}]")
        return value
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if type(value) is not list or not value or any(type(one) is not item for one in value):
            raise UsageError(f"setting {name} is {value!r}, expected a list of {item.__name__}")
        value = tuple(value)
    elif kind is Path:
        if type(value) is not str:
            raise UsageError(f"setting {name} is {value!r}, expected str")
        value = folder / value
    else:
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise UsageError(f"setting {name} is {value!r}, expected {kind.__name__}")
    _within(attribute, value, name)
    return value


def _within(attribute: Attribute[Any], value: Any, name: str) -> None:
    low, high = attribute.metadata.get("low"), attribute.metadata.get("high")
    one_of = attribute.metadata.get("one_of")
    if low is not None or high is not None:
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        bad = [n for n in (value if type(value) is tuple else (value,)) if not least <= n <= most]
        if bad:
            raise UsageError(f"setting {name} is {bad[0]}, expected {least:g} to {most:g}")
    if one_of and value not in one_of:
        raise UsageError(f"setting {name} is {value!r}, expected one of {', '.join(one_of)}")
