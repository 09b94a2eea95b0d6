"""Named arrays as bytes: the safetensors layout, read strictly.

Eight bytes of header length (little-endian), a JSON header ``{name: {dtype, shape, data_offsets}}`` padded
with spaces to a multiple of eight, then the raw little-endian data without gaps or overlaps. Anything else is
refused before an array is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from .errors import ProtocolError, shown

MAX_HEADER = 1 << 20
MAX_AXES = 8
MAX_BYTES = 1 << 40
METADATA = "__metadata__"
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

Tensors = dict[str, NDArray[Any]]


@frozen
class _Entry:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def encode(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Bytes of named arrays (dtypes of :data:`DTYPES`) and of string metadata."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    parts: list[memoryview] = []
    offset = 0
    # Wide types first: every array then starts aligned to its item size.
    for name, array in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _CODES or name == METADATA:
            raise ProtocolError(f"tensor {name!r} of dtype {array.dtype} cannot be encoded, only {', '.join(DTYPES)}")
        if array.ndim > MAX_AXES:
            raise ProtocolError(f"tensor {name!r} has {array.ndim} axes, at most {MAX_AXES} can be encoded")
        data = np.ascontiguousarray(array, dtype).data
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + data.nbytes],
        }
        parts.append(data)
        offset += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ProtocolError(f"a tensor header of {len(text)} bytes is over the limit of {MAX_HEADER}")
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Read-only arrays over ``data`` and the metadata; ProtocolError unless every byte is accounted for."""
    header, start = _header(data)
    metadata = _metadata(header.pop(METADATA, {}))
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda e: (e.begin, e.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise ProtocolError(f"tensor {shown(entry.name)} begins at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != len(data) - start:
        raise ProtocolError(f"the tensors take {position} bytes, but {len(data) - start} are there")
    return {entry.name: _array(data, start, entry) for entry in entries}, metadata


def _array(data: bytes, start: int, entry: _Entry) -> NDArray[Any]:
    return np.frombuffer(data, entry.dtype, math.prod(entry.shape), start + entry.begin).reshape(entry.shape)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise ProtocolError(f"{len(data)} bytes are too few for tensors, expected at least 8")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ProtocolError(f"a tensor header of {length} bytes is claimed, {len(data) - 8} of {MAX_HEADER} are there")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_unique)
    except ProtocolError:
        raise
    except (ValueError, RecursionError) as error:  # also integers of more than 4300 digits
        raise ProtocolError("the tensor header is not JSON that can be read") from error
    if not isinstance(header, dict):
        raise ProtocolError("the tensor header is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("the tensor header names something twice")
    return found


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ProtocolError("the tensor metadata is not an object of strings")
    return value


def _entry(name: str, value: Any) -> _Entry:
    what = f"tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ProtocolError(f"{what} needs exactly dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ProtocolError(f"{what} has dtype {shown(code)}, expected one of {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise ProtocolError(f"{what} has shape {shown(shape)}, expected a list of at most {MAX_AXES} sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise ProtocolError(f"{what} has data_offsets {shown(offsets)}, expected [begin, end]")
    itemsize = DTYPES[code].itemsize
    size = math.prod(shape) * itemsize
    # NumPy multiplies the other sizes of an empty shape as well.
    if offsets[1] - offsets[0] != size or math.prod(n for n in shape if n) * itemsize > MAX_BYTES:
        raise ProtocolError(f"{what} of {DTYPES[code]} {shown(shape)} does not fit its data_offsets {shown(offsets)}")
    return _Entry(name, DTYPES[code], tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_BYTES for n in value)
