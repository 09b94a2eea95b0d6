"""One transaction of the steward: what is written in it, and what may leave once it is committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from sqlalchemy.orm import Session

from protocol.messages import Message
from protocol.wire import encode


@define
class Turn:
    """``signs`` are signs of life: device → columns it told. ``now`` is the same for everything in the turn.
    ``gone`` are devices whose sessions end after the commit."""

    session: Session
    now: float
    signs: dict[str, dict[str, Any]] = field(factory=dict)
    sends: list[tuple[str, str, bytes]] = field(factory=list)
    after: list[Callable[[], object]] = field(factory=list)
    gone: list[str] = field(factory=list)

    def seen(self, device: str, **values: Any) -> None:
        self.signs.setdefault(device, {}).update(values)

    def send(self, device: str, leaf: str, message: Message) -> None:
        """Publish to a device after the commit."""
        self.sends.append((device, leaf, encode(message)))
