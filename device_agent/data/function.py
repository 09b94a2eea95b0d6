"""A Python function of the owner's: ``module:function``, called without arguments, gives (x, y) or (x, y, classes)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from device_agent.errors import DataError

from .source import Samples, Source


def samples(source: Source, *_: object) -> Samples:
    """What the function returns; DataError if it cannot be found, fails, or returns something else."""
    name = source.function or ""
    module, function = [*name.split(":", 1), ""][:2]
    if not module or not function.isidentifier():
        raise DataError(f"function in [data] is {name!r}, expected module:function")
    try:
        call: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(f"{name} cannot be found: {error}") from error
    try:
        result = call()
    except Exception as error:  # whatever the owner's code raises is the owner's to read
        raise DataError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise DataError(f"{name} returned {type(result).__name__}, expected (x, y) or (x, y, classes)")
    classes = np.asarray(result[2]) if len(result) == 3 else None
    return Samples(np.asarray(result[0]), np.asarray(result[1]), classes)
