"""Forms as they were sent: their fields in types, and beside each field that is wrong a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from attrs import define, field
from flask import request

LONGEST: Final = 200_000
"""Characters that one field may have."""


@define
class Form:
    """``given`` is what is shown in the fields, ``problems`` what is wrong by field; the empty name is the whole."""

    given: Mapping[str, str] = field(factory=dict)
    problems: dict[str, str] = field(factory=dict)

    @classmethod
    def sent(cls) -> Form:
        """That of the present request."""
        return cls({name: value.replace("\r\n", "\n") for name, value in request.form.items() if name != "csrf"})

    def __getitem__(self, name: str) -> str:
        return self.given.get(name, "")

    @property
    def wrong(self) -> bool:
        return bool(self.problems)

    def refuse(self, name: str, sentence: str) -> None:
        """Say what is wrong with a field; the first sentence stays."""
        self.problems.setdefault(name, sentence.rstrip("."))

    def text(self, name: str, longest: int = 200) -> str:
        """A field without the space around it."""
        found = self[name].strip()
        if len(found) > min(longest, LONGEST):
            self.refuse(name, f"This has {len(found):,} characters, expected at most {longest:,}")
            return ""
        return found

    def chosen(self, name: str, allowed: tuple[str, ...]) -> str:
        """A field that is one of a few words, the first if it is empty."""
        found = self.text(name) or allowed[0]
        if found not in allowed:
            self.refuse(name, f"This is {found[:40]!r}, expected one of {', '.join(allowed)}")
            return allowed[0]
        return found

    def whole(self, name: str, low: int, high: int, usual: int = 0) -> int:
        """A field that is a whole number from ``low`` to ``high``; ``usual`` if it is empty."""
        found = self.text(name)
        if not found:
            return usual
        if not (found.isascii() and found.isdecimal()) or not low <= int(found[:30]) <= high:
            self.refuse(name, f"This is {found[:40]!r}, expected a whole number from {low:,} to {high:,}")
            return usual
        return int(found)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A field that is a number above ``low``, at most ``high``; None if it is empty."""
        found = self.text(name)
        try:
            value = float(found) if found else None
        except ValueError:
            value = math.nan
        if value is not None and not low < value <= high:
            self.refuse(name, f"This is {found[:40]!r}, expected a number above {low:g}, at most {high:g}")
            return None
        return value
