"""Samples without labels, for a model to answer, as somebody sent them."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.dataset import as_floats, inputs
from device_agent.errors import DataError
from protocol.weights import Array

_FORMAT: Any = np.lib.format
_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, MemoryError, NotImplementedError)


def array(data: bytes) -> NDArray[Any]:
    """What a file in NumPy's format ``.npy`` holds; its size is compared with ``data`` before memory is taken."""
    file = io.BytesIO(data)
    try:
        version = _FORMAT.read_magic(file)
        header = _FORMAT.read_array_header_1_0 if version == (1, 0) else _FORMAT.read_array_header_2_0
        shape, _, dtype = header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != len(data) - file.tell():
            raise DataError(f"it claims {dtype} {shape}, and {len(data) - file.tell()} bytes follow")
        file.seek(0)
        found: NDArray[Any] = _FORMAT.read_array(file, allow_pickle=False)
        return found
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"it cannot be read as an .npy file: {error}") from error


def listed(data: bytes) -> NDArray[Any]:
    """The numbers of ``{"x": [...]}``, lists in lists for axes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError("the body is not JSON that can be read") from error
    if type(value) is not dict or value.keys() != {"x"} or type(value["x"]) is not list:
        raise DataError('the body is no JSON object of the form {"x": [...]}')
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(value["x"])
    except (ValueError, OverflowError) as error:
        raise DataError("x holds lists of different lengths, or numbers beyond every range") from error
    if found.dtype.kind not in "fiu":
        raise DataError("x holds something that is no number, or is empty")
    return found.astype(np.float64)


def shaped(x: NDArray[Any], shape: tuple[int, ...]) -> Array:
    """One sample or many, each in ``shape`` or as one row, as float32 [n, *shape]; DataError if they cannot be."""
    size = math.prod(shape)
    if x.shape == shape or x.shape == (size,):
        x = x[None]
    if x.shape[1:] not in (shape, (size,)) or not len(x):
        raise DataError(f"x has shape {list(x.shape)}, the model takes samples of shape {list(shape)}")
    return as_floats(inputs(x.reshape(len(x), *shape)))
