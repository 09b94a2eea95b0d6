"""Error feedback across assignments: what an update leaves unsaid, or said in vain, travels with a later one.

The residual of a run is kept at the model's full shape and cut to each assignment's subnetwork. When the
layout of the model changes, the residual ends: its channels mean something else then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import field, frozen

from protocol import coding as codings
from protocol import tensors
from protocol.errors import ProtocolError
from protocol.subnetwork import Channels, Region, Subnetwork, layout_from_json, layout_to_json
from protocol.weights import BLOCK, Weights, copy, finite, zeros_like
from protocol.wire import parse_json

LAYOUT, CHANNELS, SHAPE_EPOCH = "layout", "channels", "shape_epoch"


@frozen
class Base:
    """The weights an assignment starts from. ``region_text`` is the region as JSON, for the spool."""

    weights: Weights = field(repr=False)
    region: Region
    region_text: str
    shape_epoch: int


def read_base(blob: bytes) -> Base:
    """The weights blob of an assignment; its arrays are read-only views of ``blob``."""
    arrays, metadata = tensors.decode(blob)
    try:
        text = json.dumps({name: parse_json(metadata[name].encode()) for name in (LAYOUT, CHANNELS)})
        epoch = int(metadata.get(SHAPE_EPOCH, "0"))
    except KeyError as error:
        raise ProtocolError(f"the weights carry no {error.args[0]}") from error
    except ValueError as error:
        raise ProtocolError(f"the weights' metadata cannot be read: {error}") from error
    region = _region(text)
    region.check(arrays)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ProtocolError(f"tensor {name!r} of the weights is {array.dtype}, expected float32")
    return Base(arrays, region, text, epoch)


def encode(
    difference: Weights, coding: str, region: Region, residual: bytes | None
) -> tuple[bytes, bytes | None]:
    """The body that carries ``difference`` and what is owed inside the region; the residual left after it.

    The difference is used up: its arrays are written to.
    """
    old = _owed(residual, region)
    del residual  # on a small board every copy of the model counts
    owed = _carried(old, region, difference)
    if old is not None and not _bounded(difference, owed):
        # What is owed goes, or no update of this run would ever leave again.
        old, owed = None, zeros_like(difference)
    value, left = codings.encode(difference, coding, owed, out=difference)
    del owed
    body = tensors.encode(value)
    full = _replaced(old, region, left)
    del value, old, left
    return body, _kept(full, region)


def give_back(body: bytes, coding: str, region_text: str, residual: bytes | None) -> bytes | None:
    """The run's residual after an update that was not used: what it carried is owed again.

    An update that holds NaN or infinity is not given back: it would spoil every later one.
    """
    region = _region(region_text)
    value = codings.decode(tensors.decode(body)[0], coding, region.shapes)
    if not finite(value):
        return residual
    old = _owed(residual, region)
    if old is None:
        return _kept(region.lift(value), region)
    full = copy(old)
    region.add(full, value)
    return _kept(full, region)


def _owed(residual: bytes | None, region: Region) -> Weights | None:
    """The stored residual as read-only views, None if there is none for this layout."""
    if residual is None:
        return None
    try:
        arrays, metadata = tensors.decode(residual)
    except ProtocolError:
        return None  # of use to nobody any more
    return arrays if metadata.get(LAYOUT) == _layout_text(region) else None


def _carried(old: Weights | None, region: Region, difference: Weights) -> Weights:
    """What is owed inside the region."""
    if old is None:
        return zeros_like(difference)
    return old if _whole(region) else region.cut(old)


def _bounded(difference: Weights, owed: Weights) -> bool:
    """Whether their sum is finite, looked at a block at a time."""
    with np.errstate(over="ignore", invalid="ignore"):
        for name, value in difference.items():
            one, other = value.reshape(-1), owed[name].reshape(-1)
            for start in range(0, one.size, BLOCK):
                block = slice(start, start + BLOCK)
                if not np.isfinite(one[block] + other[block]).all():
                    return False
    return True


def _whole(region: Region) -> bool:
    """Whether the region is the model as it is, so that neither cut nor lift would change anything."""
    in_order = all(isinstance(kept, int) for kept in region.subnetwork.channels.values())
    sizes = {name: tuple(axis.size for axis in axes) for name, axes in region.layout.items()}
    return in_order and sizes == region.shapes


def _replaced(old: Weights | None, region: Region, left: Weights) -> Weights:
    """``old`` with ``left`` inside the region, at full shape."""
    if _whole(region):
        return left
    if old is None:
        return region.lift(left)
    full = copy(old)
    region.add(full, region.cut(full), -1.0)
    region.add(full, left)
    return full


def _kept(full: Weights, region: Region) -> bytes | None:
    if not finite(full) or not any(value.any() for value in full.values()):
        return None
    return tensors.encode(full, {LAYOUT: _layout_text(region)})


def _layout_text(region: Region) -> str:
    return json.dumps(layout_to_json(region.layout), sort_keys=True)


def _region(text: str) -> Region:
    plain: Any = parse_json(text.encode())
    return Region(layout_from_json(plain[LAYOUT]), Subnetwork(_channels(plain[CHANNELS])))


def _channels(value: Any) -> Mapping[str, Channels]:
    if not isinstance(value, dict):
        raise ProtocolError(f"channels is of type {type(value).__name__}, expected an object")
    found: dict[str, Channels] = {}
    for group, kept in value.items():
        if type(kept) is int:
            found[group] = kept
        elif isinstance(kept, list) and all(type(channel) is int for channel in kept):
            found[group] = tuple(kept)
        else:
            raise ProtocolError(
                f"channels of group {group!r} is {str(kept)[:60]}, expected a count or a list"
            )
    return found
