"""Alerts: the rules, what was delivered last, and a test."""

from __future__ import annotations

from attrs import frozen

from coordinator.alerts import record
from coordinator.alerts.channels import channels, tried
from coordinator.alerts.notice import trial
from coordinator.api.endpoint import Endpoint
from coordinator.auth import services

NEWEST = 50


@frozen(kw_only=True)
class ChannelRow:
    """A webhook or mail. ``attempts`` have failed since the last delivery, with ``error``; the next is at ``next_at``.
    ``seq`` is the line of the journal up to which everything is delivered; None before the first look."""

    name: str
    seq: int | None
    attempts: int
    error: str
    next_at: float | None


@frozen(kw_only=True)
class Delivery:
    """A message that arrived."""

    channel: str
    at: float
    count: int
    text: str


@frozen(kw_only=True)
class Alerting:
    """``kinds`` of the journal are told of; the others are thresholds, see the settings."""

    kinds: tuple[str, ...]
    quiet: float
    gather: float
    late_after: float
    stalled_after: float
    disk_low: float
    credential_days: float
    signed: bool
    channels: tuple[ChannelRow, ...]
    deliveries: tuple[Delivery, ...]


@frozen(kw_only=True)
class Attempt:
    """What came of a test message; ``error`` is empty if it arrived."""

    channel: str
    error: str


def show_alerts() -> Alerting:
    """The rules of alerts, their channels, and the last messages."""
    rules = services().settings.alerts
    with services().database.read() as reading:
        rows = []
        for name in dict.fromkeys(channel.name for channel in channels(rules)):
            stands = record.standing(reading, name)
            known = (stands.attempts, stands.error, stands.next_at) if stands else (0, "", None)
            seq = stands.seq if stands else None
            rows.append(ChannelRow(name=name, seq=seq, attempts=known[0], error=known[1], next_at=known[2]))
        last = record.last(reading, NEWEST)
        sent = tuple(Delivery(channel=row.channel, at=row.at, count=row.count, text=row.text) for row in last)
    return Alerting(
        kinds=rules.kinds,
        quiet=rules.quiet,
        gather=rules.gather,
        late_after=rules.late_after,
        stalled_after=rules.stalled_after,
        disk_low=rules.disk_low,
        credential_days=rules.credential_days,
        signed=bool(rules.secret),
        channels=tuple(rows),
        deliveries=sent,
    )


def try_alerts() -> tuple[Attempt, ...]:
    """Send a test message to every channel, now."""
    now = services().clock()
    results = tried(channels(services().settings.alerts), trial(now), now)
    return tuple(Attempt(channel=name, error=error) for name, error in results)


ENDPOINTS = (
    Endpoint(method="GET", path="/alerts", call=show_alerts, access="viewer", answer=Alerting),
    Endpoint(method="POST", path="/alerts/test", call=try_alerts, access="operator", answer=tuple[Attempt, ...]),
)
