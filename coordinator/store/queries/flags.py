"""What gates remarked on updates that they let pass: a sentence called ``flag`` among their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, or_

from coordinator.store.models import Update
from coordinator.strategies import GATES

FLAGGED: Final[ColumnElement[bool]] = Update.scores.is_not(None) & or_(
    *(Update.scores[gate]["flag"].as_string() != "" for gate in GATES)
)
STATEMENT: Final = " OR ".join(f"scores->'{gate}'->>'flag' <> ''" for gate in GATES)
"""The same in SQL that people read, over the table ``update``."""


def flags(scores: Mapping[str, Any] | None) -> dict[str, str]:
    """{gate: what it remarked}."""
    found = {gate: given.get("flag") for gate, given in (scores or {}).items() if isinstance(given, Mapping)}
    return {gate: str(flag) for gate, flag in found.items() if flag}
