"""What each device gave to a run, how late its updates came, and what its own hold-out says of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen
from sqlalchemy import Float, Integer, Select, case, cast, func, select
from sqlalchemy.orm import Session, aliased

from coordinator.store.models import Assignment, Device, Update
from coordinator.store.queries.page import Columns, Order, Page, slot

_applied = case((Update.outcome == "applied", Update.weight))
_sums = (
    select(
        Update.device_id,
        func.count().label("updates"),
        func.count(case((Update.outcome == "applied", 1))).label("applied"),
        func.sum(_applied).label("weight"),
        func.avg(Update.width).label("width"),
        func.avg(Update.staleness).label("staleness"),
        func.sum(Update.bytes_up).label("bytes_up"),
        func.max(Update.at).label("last"),
        func.max(case((Update.holdout_samples.is_not(None), Update.id))).label("told"),
    )
    .group_by(Update.device_id)
)  # fmt: skip
_BY: Final = ("updates", "applied", "width", "staleness", "bytes_up", "last")


@frozen(kw_only=True)
class Contribution:
    """One device's part in a run. ``share`` is its part of all weight that was applied, 0 to 1; ``width`` and
    ``staleness`` are means; ``local_accuracy`` (0 to 1) and ``local_loss`` are what the newest model it began with
    reached on its own hold-out of ``local_samples``."""

    device_id: str
    device: str
    group: str
    updates: int
    applied: int
    share: float | None
    width: float
    staleness: float | None
    bytes_up: int
    last: float
    local_samples: int | None
    local_accuracy: float | None
    local_loss: float | None


@frozen
class Delay:
    """Staleness in a span of time: the mean and the largest of ``count`` updates."""

    begin: float
    end: float
    mean: float
    most: int
    count: int


def of_its_run(devices: Sequence[str] | None = None) -> Select[tuple[str, float]]:
    """(device_id, share): the part of the updates applied in a run that come from a device that got work of it last.

    Counts only, so that indexes alone answer: of all devices, or of some. A run that has applied none has no rows.
    """
    last = (
        select(Assignment.run_id)
        .where(Assignment.device_id == Device.id)
        .order_by(Assignment.offered_at.desc())
        .limit(1)
        .correlate(Device)
        .scalar_subquery()
    )
    query = select(Device.id.label("device_id"), last.label("run_id"))
    works = (query if devices is None else query.where(Device.id.in_(devices))).subquery()
    applied = select(Update.run_id, func.count().label("count")).where(Update.outcome == "applied")
    runs = select(works.c.run_id).distinct()
    whole = applied.where(Update.run_id.in_(runs)).group_by(Update.run_id).subquery()
    own = (
        select(func.count())
        .where(Update.device_id == works.c.device_id, Update.run_id == works.c.run_id, Update.outcome == "applied")
        .correlate(works)
        .scalar_subquery()
    )
    share = cast(own, Float) / whole.c.count
    return select(works.c.device_id, share.label("share")).join(whole, whole.c.run_id == works.c.run_id)


def contributions(session: Session, run: str, order: Order) -> Page[Contribution]:
    """One page of the devices that ever delivered to a run, in two passes over its updates."""
    sums = _sums.where(Update.run_id == run).subquery()
    total, weight = session.execute(select(func.count(), func.sum(sums.c.weight))).one()
    told = aliased(Update)
    columns: Columns = {
        "device": func.lower(Device.name),
        "group": func.lower(Device.group),
        "local": told.holdout_accuracy,
        "share": sums.c.weight,
        **{name: sums.c[name] for name in _BY},
    }
    query = (
        select(Device.id, Device.name, Device.group, sums, told)
        .join(sums, sums.c.device_id == Device.id)
        .outerjoin(told, told.id == sums.c.told)
        .order_by(*order.by(columns, Device.id))
    )
    rows = tuple(
        Contribution(
            device_id=row.id,
            device=row.name,
            group=row.group,
            updates=row.updates,
            applied=row.applied,
            share=row.weight / weight if weight and row.weight is not None else None,
            width=row.width,
            staleness=None if row.staleness is None else float(row.staleness),
            bytes_up=int(row.bytes_up),
            last=row.last,
            local_samples=row[-1].holdout_samples if row[-1] else None,
            local_accuracy=row[-1].holdout_accuracy if row[-1] else None,
            local_loss=row[-1].holdout_loss if row[-1] else None,
        )
        for row in session.execute(query.limit(order.size).offset(order.offset))
    )
    return Page(rows, total, order)


def delays(session: Session, run: str, since: float, until: float, spans: int = 60) -> tuple[Delay, ...]:
    """Staleness from ``since`` until ``until``, in at most ``spans`` equal spans of whole seconds."""
    origin = int(since)
    seconds = max(1, -(-int(until - origin + 1) // spans))
    place = slot(Update.at, origin, seconds)
    query = (
        select(place, func.avg(Update.staleness), func.max(Update.staleness), cast(func.count(), Integer))
        .where(Update.run_id == run, Update.staleness.is_not(None), Update.at >= since, Update.at <= until)
        .group_by(place)
        .order_by(place)
    )
    return tuple(
        Delay(float(origin + index * seconds), float(origin + (index + 1) * seconds), float(mean), int(most), count)
        for index, mean, most, count in session.execute(query)
    )
