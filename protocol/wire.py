"""Messages as JSON, structured without any coercion, and frames that carry bytes behind a message.

A missing or unknown field, a wrong JSON type ("32" is not 32, true is not 1), a value out of range or a
number that is not finite is a :class:`ProtocolError` whose sentence names the field. A field with a default is left out
while it has that value, so that an older reader, who does not know it, is not troubled by it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from attrs import NOTHING, fields, has, resolve_types
from cattrs.gen import make_dict_unstructure_fn

from .errors import ProtocolError, listed, shown
from .messages import Message

MAX_MESSAGE = 64 * 1024

M = TypeVar("M", bound=Message)


def _exactly(kind: type, name: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ProtocolError(f"expected {name}, not {type(value).__name__}")
        return value

    return structure


def _number(value: Any, _: Any) -> float:
    # JSON has one number type: 1 is a fine float, true and "1" are not.
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond every float
        pass
    raise ProtocolError(f"expected a finite number, not {shown(value)}")


def _sequence(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    items = get_args(kind)
    each = items[0] if items[-1] is Ellipsis else None

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list or (each is None and len(value) != len(items)):
            many = "" if each is not None else f" of {len(items)}"
            raise ProtocolError(f"expected a list{many}, not {type(value).__name__}")
        kinds = [each] * len(value) if each is not None else items
        return tuple(converter.structure(v, k) for v, k in zip(value, kinds, strict=True))

    return structure


def _object(cls: type[M], converter: cattrs.Converter) -> Callable[[Any, Any], M]:
    kinds = {a.name: a.type for a in fields(resolve_types(cls))}
    needed = {a.name for a in fields(cls) if a.default is NOTHING}

    def structure(value: Any, _: Any) -> M:
        if type(value) is not dict:
            raise ProtocolError(f"expected an object for {cls.__name__}, not {type(value).__name__}")
        if not needed <= value.keys() <= kinds.keys():
            odd = listed((needed - value.keys()) | (value.keys() - kinds.keys()))
            raise ProtocolError(f"{cls.__name__} has missing or unknown fields: {odd}")
        read: dict[str, Any] = {}
        for name, raw in value.items():
            try:
                read[name] = converter.structure(raw, kinds[name])
            except ProtocolError as error:
                raise ProtocolError(f"{cls.__name__}.{name}: {error}") from error
        return cls(**read)

    return structure


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for kind, name in ((str, "a string"), (int, "a whole number"), (bool, "true or false")):
        converter.register_structure_hook(kind, _exactly(kind, name))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is dict, _floats)
    converter.register_structure_hook_factory(
        lambda kind: _origin(kind) is tuple, lambda kind: _sequence(kind, converter)
    )
    converter.register_structure_hook_factory(has, lambda cls: _object(cls, converter))
    converter.register_unstructure_hook_factory(
        has, lambda cls: make_dict_unstructure_fn(resolve_types(cls), converter, _cattrs_omit_if_default=True)
    )
    return converter


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _floats(value: Any, _: Any) -> dict[str, float]:
    if type(value) is not dict:
        raise ProtocolError(f"expected an object of numbers, not {type(value).__name__}")
    return {name: _number(v, float) for name, v in value.items()}


_strict = _converter()


def structure(kind: type[M], value: object) -> M:
    """A message of class ``kind`` from plain JSON values, without any coercion."""
    return _strict.structure(value, kind)


def unstructure(message: Message) -> dict[str, Any]:
    """A message as plain JSON values."""
    plain: dict[str, Any] = json.loads(encode(message))
    return plain


def encode(message: Message) -> bytes:
    """JSON of a message; ProtocolError if it takes more than 64 KiB."""
    data = json.dumps(_strict.unstructure(message), separators=(",", ":"), allow_nan=False).encode()
    return _within_limit(data)


def decode(kind: type[M], data: bytes) -> M:
    """Inverse of :func:`encode`; at most 64 KiB."""
    return structure(kind, parse_json(_within_limit(data)))


def _within_limit(data: bytes) -> bytes:
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    return data


def parse_json(data: bytes) -> object:
    """JSON without NaN, Infinity or repeated keys."""
    try:
        return json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_unique)
    except ProtocolError:
        raise
    except (ValueError, RecursionError) as error:  # also integers of more than 4300 digits
        raise ProtocolError("the message is not JSON that can be read") from error


def _no_constant(name: str) -> float:
    raise ProtocolError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("the message names a field twice")
    return found


_LENGTH = struct.Struct("<I")


def frame(message: Message, body: bytes = b"") -> bytes:
    """A message with bytes behind it: four bytes of JSON length, the JSON, the body."""
    text = encode(message)
    return b"".join([_LENGTH.pack(len(text)), text, body])


def unframe(kind: type[M], data: bytes) -> tuple[M, bytes]:
    """Inverse of :func:`frame`."""
    if len(data) < 4:
        raise ProtocolError(f"{len(data)} bytes are too few for a framed message")
    (length,) = _LENGTH.unpack_from(data)
    if length > min(MAX_MESSAGE, len(data) - 4):
        raise ProtocolError(f"the frame claims a message of {length} bytes, {len(data) - 4} are there")
    return decode(kind, data[4 : 4 + length]), data[4 + length :]
