"""From a live run to a simulation: its conditions as a population."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any, Final

from attrs import frozen
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store.models import Assignment, Device, Run, StatusChange, Update

LEAST: Final = 3
"""Updates a device must have sent for its figures to count."""
BITS: Final = 8e-3


@frozen
class Conditions:
    """What a device met with: milliseconds per sample by width and the deviation of their logarithms, kbit/s with their
    relative deviation (None: not measured), mean seconds there and away (0: never away)."""

    device: str
    label: str
    ms_per_sample: dict[float, float]
    jitter: float
    down_kbps: float | None
    up_kbps: float | None
    deviation: float
    on: float
    away: float


def conditions(session: Session, run: str) -> list[Conditions]:
    """Of every device that sent at least LEAST updates to ``run``; ShoalError not-found if there is no such run or
    device."""
    row = session.get(Run, run)
    if row is None:
        raise ShoalError("not-found", f"There is no run {run[:80]!r}")
    work = session.execute(
        select(Update, Assignment.plan)
        .join(Assignment, Assignment.id == Update.assignment_id)
        .where(Update.run_id == run, Update.samples > 0)
        .order_by(Update.at, Update.id)
    ).all()
    mine: dict[str, list[tuple[Update, dict[str, Any]]]] = {}
    for update, plan in work:
        mine.setdefault(update.device_id, []).append((update, plan))
    named = {device.id: device for device in session.scalars(select(Device).where(Device.id.in_(list(mine))))}
    found = [
        _of(named[id], updates, *_presence(session, id, row)) for id, updates in mine.items() if len(updates) >= LEAST
    ]
    if not found:
        sentence = f"Run {run} has no device with {LEAST} updates or more: there is nothing to make a population of"
        raise ShoalError("not-found", sentence)
    return sorted(found, key=lambda one: one.device)


def to_toml(name: str, found: Sequence[Conditions]) -> str:
    """The population: one group for each device, so that everybody is there once."""
    lines = [
        f"name = {json.dumps(name)}",
        f"about = {json.dumps(f'What the devices of {name} met with, one group for each.')}",
        f"devices = {len(found)}",
    ]
    for one in found:
        widths = ", ".join(f'"{width:g}" = {ms:.6g}' for width, ms in sorted(one.ms_per_sample.items(), reverse=True))
        lines += [
            "",
            "[[group]]",
            f"name = {json.dumps(one.device[:40])}",
            f"label = {json.dumps(one.label)}",
            f"compute = {{ ms_per_sample = {{ {widths} }}, jitter = {one.jitter:.4g} }}",
        ]
        if one.down_kbps is not None and one.up_kbps is not None:
            rates = f"down_kbps = {one.down_kbps:.6g}, up_kbps = {one.up_kbps:.6g}"
            lines.append(f"link = {{ {rates}, deviation = {one.deviation:.4g} }}")
        if one.away:
            lines.append(f'availability = {{ on = "{one.on:.1f}s", away = "{one.away:.1f}s" }}')
    return "\n".join(lines) + "\n"


def _of(device: Device, updates: list[tuple[Update, dict[str, Any]]], on: float, away: float) -> Conditions:
    by_width: dict[float, list[float]] = {}
    for update, plan in updates:
        padded = update.steps * int(plan["batch"])  # a step takes as long for a batch that is filled up
        if update.seconds_train > 0:
            by_width.setdefault(update.width, []).append(1e3 * update.seconds_train / padded)
    logs = [math.log(one / fmean(times)) for times in by_width.values() for one in times]
    down = [u.bytes_down * BITS / u.seconds_download for u, _ in updates if u.seconds_download > 0 and u.bytes_down]
    # The seconds of an upload travel with the next update.
    pairs = [(before.bytes_up, after.seconds_upload) for (before, _), (after, _) in pairwise(updates)]
    up = [size * BITS / seconds for size, seconds in pairs if seconds]
    deviations = [pstdev(rates) / fmean(rates) for rates in (down, up) if len(rates) >= LEAST]
    return Conditions(
        device=device.name,
        label=device.group,
        ms_per_sample={width: fmean(times) for width, times in by_width.items()},
        jitter=min(pstdev(logs), 3.0) if len(logs) >= LEAST else 0.0,
        down_kbps=fmean(down) if down else None,
        up_kbps=fmean(up) if up else None,
        deviation=min(fmean(deviations), 3.0) if deviations else 0.0,
        on=on,
        away=away,
    )


def _presence(session: Session, device: str, run: Run) -> tuple[float, float]:
    """Mean seconds that a device was there, and away (late or offline), between two changes of that during the run."""
    rows = session.execute(
        select(StatusChange.new, StatusChange.at)
        .where(StatusChange.device_id == device, StatusChange.at >= run.created_at)
        .order_by(StatusChange.at, StatusChange.id)
    ).all()
    turns: list[tuple[bool, float]] = []
    for row in rows:
        there = row.new not in ("offline", "late", "revoked")
        if not turns or turns[-1][0] != there:
            turns.append((there, row.at))
    spans = [(there, after - at) for (there, at), (_, after) in pairwise(turns)]
    on, away = ([span for there, span in spans if there == wanted and span > 0] for wanted in (True, False))
    return (fmean(on), fmean(away)) if on and away else (0.0, 0.0)
