"""The settings that a release of kind ``config`` may carry: how a device works, never what it is, where its data lies,
whom it talks to or what it tells. Both sides check the same table; the device's own ranges have the last word."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from .errors import ProtocolError, listed, shown

_SPAN = re.compile(r"([01]\d|2[0-3]):[0-5]\d-(2[0-4]|[01]\d):[0-5]\d")


@frozen
class Bound:
    """A value of type ``kind``: a number from ``low`` to ``high``, or a word that is ``one_of`` these."""

    kind: type
    low: float | None = None
    high: float | None = None
    one_of: tuple[str, ...] = ()

    def allows(self, value: object) -> bool:
        if self.kind is tuple:
            return type(value) is list and bool(value) and all(type(v) is str and _SPAN.fullmatch(v) for v in value)
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            return False
        if isinstance(value, int | float) and self.low is not None and self.high is not None:
            return self.low <= value <= self.high
        return not self.one_of or value in self.one_of

    def __str__(self) -> str:
        if self.kind is tuple:
            return "a list of spans such as 22:00-06:00"
        if self.kind is bool:
            return "true or false"
        if self.one_of:
            return f"one of {', '.join(self.one_of)}"
        whole = "a whole number" if self.kind is int else "a number"
        return f"{whole} from {self.low:g} to {self.high:g}"


REMOTE: Final[Mapping[str, Bound]] = {
    "heartbeat": Bound(float, 0.1, 86400),
    "threads": Bound(int, 1, 64),
    "cache_bytes": Bound(int, 1 << 20, 1 << 50),
    "pace": Bound(float, 1, 1000),
    "checkpoint_seconds": Bound(float, 0.05, 86400),
    "spool_bytes": Bound(int, 1 << 20, 1 << 40),
    "log_level": Bound(str, one_of=("debug", "info", "warning", "error")),
    "conditions.hours": Bound(tuple),
    "conditions.temperature": Bound(float, -50, 200),
    "conditions.temperature_resume": Bound(float, -50, 200),
    "conditions.memory_free": Bound(int, 0, 1 << 50),
    "conditions.battery": Bound(float, 0, 100),
    "conditions.mains": Bound(bool),
    "conditions.unmetered": Bound(bool),
    "conditions.metered": Bound(str, one_of=("auto", "yes", "no")),
    "conditions.nice": Bound(int, 0, 19),
    "conditions.cpu_share": Bound(float, 0.01, 1),
}
"""Names as in ``agent.toml``; those behind a dot stand in a table."""


def read_settings(text: str) -> dict[str, Any]:
    """The settings of a config release, by name as in REMOTE; ProtocolError names what may not come from afar, is of
    another type or out of range."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProtocolError(f"the settings are not valid TOML: {error}") from error
    found: dict[str, Any] = {}
    for name, value in given.items():
        table = any(known.startswith(f"{name}.") for known in REMOTE)
        if table and type(value) is not dict:
            raise ProtocolError(f"setting {name} is {shown(value)}, expected a table [{name}]")
        found.update({f"{name}.{key}": one for key, one in value.items()} if table else {name: value})
    if unknown := found.keys() - REMOTE.keys():
        raise ProtocolError(f"not to be set from afar: {listed(unknown)}; what may be is {', '.join(REMOTE)}")
    for name, value in found.items():
        if not REMOTE[name].allows(value):
            raise ProtocolError(f"setting {name} is {shown(value)}, expected {REMOTE[name]}")
    return found
