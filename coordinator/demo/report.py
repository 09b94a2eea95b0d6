"""What the demo shows while it runs and says at its end, read from the database."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import asdict, frozen
from rich.console import Group
from rich.table import Table
from rich.text import Text
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.store.models import Device, Metric, Run, Update

OUTCOMES = ("applied", "stored", "stale", "refused", "expired")


@frozen
class DeviceReport:
    """``widths`` counts its updates by width, ``training_share`` is trainer time since its first assignment."""

    name: str
    tier: str
    widths: dict[str, int]
    updates: int
    bytes_up: int
    bytes_down: int
    training_share: float | None
    status: str
    staleness: float | None


@frozen
class Report:
    reached: bool
    accuracy: float | None
    target: float
    seconds: float
    first_accuracy_seconds: float | None
    versions: int
    updates: dict[str, int]
    devices: list[DeviceReport]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read(session: Session, run: str, started: float, now: float) -> Report:
    """The state of a run; ``started`` and ``now`` in seconds since 1970."""
    row = session.get_one(Run, run)
    points = session.execute(
        select(Metric.version, Metric.value, Metric.at)
        .where(Metric.run_id == run, Metric.name == "accuracy")
        .order_by(Metric.version)
    ).all()
    outcomes = session.execute(
        select(Update.outcome, func.count()).where(Update.run_id == run).group_by(Update.outcome)
    ).all()
    ended = row.ended_at or now
    return Report(
        reached=row.state == "finished",
        accuracy=points[-1].value if points else None,
        target=row.target or 0.0,
        seconds=round(ended - started, 1),
        first_accuracy_seconds=round(points[0].at - started, 1) if points else None,
        versions=row.version,
        updates={**dict.fromkeys(OUTCOMES, 0), **{outcome: count for outcome, count in outcomes}},  # noqa: C416
        devices=_devices(session, run),
    )


def _devices(session: Session, run: str) -> list[DeviceReport]:
    totals = {
        row.device_id: row
        for row in session.execute(
            select(
                Update.device_id,
                func.count().label("updates"),
                func.sum(Update.bytes_up).label("up"),
                func.sum(Update.bytes_down).label("down"),
                func.avg(Update.staleness).label("staleness"),
            )
            .where(Update.run_id == run)
            .group_by(Update.device_id)
        )
    }
    widths: dict[str, Counter[str]] = {}
    for device, width, count in session.execute(
        select(Update.device_id, Update.width, func.count())
        .where(Update.run_id == run)
        .group_by(Update.device_id, Update.width)
        .order_by(Update.width)
    ):
        widths.setdefault(device, Counter())[f"{width:g}"] = count
    reports = []
    for row in session.scalars(select(Device).order_by(Device.group.desc(), Device.name)):
        total = totals.get(row.id)
        reports.append(
            DeviceReport(
                name=row.name,
                tier=row.group,
                widths=dict(widths.get(row.id, {})),
                updates=total.updates if total else 0,
                bytes_up=int(total.up) if total else 0,
                bytes_down=int(total.down) if total else 0,
                training_share=_share(row.telemetry),
                status=row.status,
                staleness=float(total.staleness) if total and total.staleness is not None else None,
            )
        )
    return reports


def _share(telemetry: dict[str, Any] | None) -> float | None:
    if not telemetry or not telemetry.get("since"):
        return None
    return round(min(1.0, float(telemetry["training"]) / float(telemetry["since"])), 3)


def screen(report: Report, url: str) -> Group:
    """The live view: one line for the run, one row per device."""
    head = Text()
    head.append(f"version {report.versions}", style="bold")
    accuracy = "–" if report.accuracy is None else f"{report.accuracy:.3f}"
    head.append(f"   accuracy {accuracy} of {report.target:g}", style="green" if report.reached else "")
    head.append(f"   updates {sum(report.updates.values())}   {report.seconds:.0f} s\n")
    head.append(f"pages: {url}", style="dim")
    return Group(head, table(report))


def table(report: Report) -> Table:
    """One row per device."""
    rows = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in _COLUMNS:
        rows.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for device in report.devices:
        share = "–" if device.training_share is None else f"{device.training_share:.0%}"
        staleness = "–" if device.staleness is None else f"{device.staleness:.1f}"
        widths = "  ".join(f"{width}×{count}" for width, count in device.widths.items()) or "–"
        traffic = f"{_kilobytes(device.bytes_up)}/{_kilobytes(device.bytes_down)}"
        rows.add_row(device.name, device.tier, device.status, widths, str(device.updates), staleness, traffic, share)
    return rows


_COLUMNS = (
    ("device", "left"),
    ("tier", "left"),
    ("status", "left"),
    ("width×updates", "left"),
    ("updates", "right"),
    ("staleness", "right"),
    ("kB up/down", "right"),
    ("training", "right"),
)


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f}"
