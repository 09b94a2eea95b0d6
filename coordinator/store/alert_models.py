"""The tables of alerts: how far every channel has read the journal, and what it delivered."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Key


class AlertChannel(Base):
    """A webhook or a mail server. Everything up to line ``seq`` of the journal is delivered, or was no news."""

    __tablename__ = "alert_channel"

    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    seq: Mapped[int] = mapped_column(Key)
    attempts: Mapped[int] = mapped_column(default=0)
    """That failed since the last delivery."""
    error: Mapped[str] = mapped_column(Text, default="")
    """Why the last attempt failed."""
    next_at: Mapped[float | None]
    """Before this nothing is tried again."""


class Alert(Base):
    """A message that was delivered."""

    __tablename__ = "alert"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    channel: Mapped[str] = mapped_column(String(120))
    at: Mapped[float]
    seq: Mapped[int] = mapped_column(Key)
    """The last line of the journal that it tells of."""
    count: Mapped[int]
    """How many devices, runs and other things it tells of."""
    text: Mapped[str] = mapped_column(Text)
    subjects: Mapped[list[Any]]
    """[[kind, subject, seconds since 1970], …]: for a while they are not told of again."""

    __table_args__ = (Index(None, "channel", "at"),)
