"""Engine inputs as rows and back: what a run is recovered from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import asdict

from coordinator.strategies.base import DeviceView
from coordinator.training.inputs import (
    Answered,
    Asked,
    CheckedIn,
    Delivered,
    Departed,
    Evaluated,
    Input,
    Operated,
    Rejected,
    Ticked,
)
from protocol.errors import ProtocolError
from protocol.messages import Ask, CheckIn, Update
from protocol.wire import structure, unstructure

Place = tuple[int, int]
"""Segment and offset of an update's body."""

_PLAIN: dict[str, Callable[..., Input]] = {
    "answered": Answered,
    "evaluated": Evaluated,
    "ticked": Ticked,
    "departed": Departed,
    "operated": Operated,
}


def to_row(given: Input, place: Place | None = None) -> tuple[str, dict[str, Any]]:
    """Kind and JSON body of an input; ``place`` says where a Delivered's body was stored."""
    if isinstance(given, CheckedIn):
        return "checked-in", {"device": asdict(given.device), "check_in": unstructure(given.check_in)}
    if isinstance(given, Asked):
        return "asked", {"device": given.device, "ask": unstructure(given.ask)}
    if isinstance(given, Delivered):
        if place is None:
            raise ValueError("a delivered update is journalled with the place of its body")
        return "delivered", {"device": given.device, "update": unstructure(given.update), "place": list(place)}
    if isinstance(given, Rejected):
        return "rejected", {"device": given.device, "update": unstructure(given.update), "reason": given.reason}
    return next(kind for kind, cls in _PLAIN.items() if cls is type(given)), asdict(given)


def from_row(kind: str, body: dict[str, Any], read: Callable[[int, int, int], bytes]) -> Input:
    """The input that :func:`to_row` wrote; ``read`` fetches (segment, offset, size)."""
    if kind == "checked-in":
        return CheckedIn(DeviceView(**body["device"]), structure(CheckIn, body["check_in"]))
    if kind == "asked":
        return Asked(body["device"], structure(Ask, body["ask"]))
    if kind == "delivered":
        update = structure(Update, body["update"])
        segment, offset = body["place"]
        return Delivered(body["device"], update, read(segment, offset, update.size))
    if kind == "rejected":
        return Rejected(body["device"], structure(Update, body["update"]), body["reason"])
    if kind not in _PLAIN:
        raise ProtocolError(f"an input of kind {kind!r} is unknown to this version of Shoal")
    plain: Input = _PLAIN[kind](**body)
    return plain
