"""Values as bytes and back: attrs classes made of numbers, strings, tuples, dicts and arrays, bit for bit.

Arrays go into a tensors file, everything else as JSON into one more array, for it may be large. The types come from the
classes, never from the bytes, so that nothing but the expected classes can come back.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar, get_origin

import cattrs
import numpy as np
from attrs import has, resolve_types
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from protocol import tensors
from protocol.errors import ProtocolError

T = TypeVar("T")
REST = "value"


def freeze(value: Any) -> bytes:
    """Bytes of an attrs value."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def hoist(array: np.ndarray[Any, Any]) -> str:
        name = str(len(arrays))
        arrays[name] = array
        return name

    converter = _converter()
    converter.register_unstructure_hook_func(_is_array, hoist)
    rest = json.dumps(converter.unstructure(value, type(value))).encode()
    return tensors.encode({**arrays, REST: np.frombuffer(rest, np.uint8)})


def thaw(kind: type[T], data: bytes) -> T:
    """The value of class ``kind`` that :func:`freeze` made these bytes of; arrays are writable copies."""
    arrays, _ = tensors.decode(data)
    converter = _converter()
    converter.register_structure_hook_func(_is_array, lambda name, _: arrays[name].copy())
    try:
        return converter.structure(json.loads(arrays[REST].tobytes()), kind)
    except (KeyError, ValueError, TypeError, AttributeError, ForbiddenExtraKeysError) as error:
        raise ProtocolError(f"these bytes do not hold a {kind.__name__}: {str(error)[:200]}") from error


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or _origin(kind) is np.ndarray


def _is_dict(kind: Any) -> bool:
    return _origin(kind) is dict


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    # JSON keys are strings; floats as keys (widths) come back by way of repr, which is exact.
    converter.register_unstructure_hook_func(_is_dict, lambda d: _dict(converter, d))
    converter.register_structure_hook(type(None), lambda _value, _kind: None)
    converter.register_structure_hook_factory(
        has, lambda cls: make_dict_structure_fn(resolve_types(cls), converter, _cattrs_forbid_extra_keys=True)
    )
    converter.register_unstructure_hook_factory(
        has, lambda cls: make_dict_unstructure_fn(resolve_types(cls), converter)
    )
    return converter


def _dict(converter: cattrs.Converter, value: dict[Any, Any]) -> dict[Any, Any]:
    return {key: converter.unstructure(item) for key, item in value.items()}
