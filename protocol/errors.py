"""The one exception that bad input on the wire may end in, and how its sentence shows what came."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = 80


class ProtocolError(ValueError):
    """What arrived breaks the protocol. Its sentence names what was wrong and what was expected."""


def shown(value: object) -> str:
    """A foreign value for a sentence: at most 100 printable characters, however long or deep it is."""
    return _short.repr(value)[:100]


def listed(names: Iterable[object]) -> str:
    """The first three of some foreign names, in order."""
    return ", ".join(shown(name) for name in sorted(names, key=str)[:3])
