"""Whether the coordinator is well."""

from __future__ import annotations

from typing import Literal

from attrs import frozen
from flask import current_app
from sqlalchemy import func, select

from coordinator import __version__
from coordinator.api.endpoint import Endpoint
from coordinator.auth import services
from coordinator.store import queries
from coordinator.store.models import Assignment, Run, Update


@frozen
class Health:
    """Whether the database answers."""

    status: Literal["ok"]


@frozen(kw_only=True)
class Status:
    """``uptime`` in seconds. The queue is what waits: ``waiting_updates`` are stored but not yet part of a version,
    ``open_assignments`` are out with devices."""

    version: str
    uptime: float
    url: str
    devices: dict[str, int]
    running: int
    open_assignments: int
    waiting_updates: int


def healthz() -> Health:
    """Whether the coordinator answers and can read its database; for load balancers and service managers."""
    with services().database.read() as reading:
        reading.execute(select(1))
    return Health("ok")


def show_status() -> Status:
    """Version, uptime, and what is at work."""
    with services().database.read() as reading:
        return Status(
            version=__version__,
            uptime=services().clock() - current_app.extensions["shoal-started"],
            url=services().settings.url,
            devices=queries.status_counts(reading),
            running=reading.scalar(select(func.count()).select_from(Run).where(Run.state == "running")) or 0,
            open_assignments=reading.scalar(
                select(func.count()).select_from(Assignment).where(Assignment.state.in_(("offered", "taken")))
            )
            or 0,
            waiting_updates=reading.scalar(
                select(func.count()).select_from(Update).where(Update.outcome == "stored")
            )
            or 0,
        )


ENDPOINTS = (
    Endpoint(method="GET", path="/healthz", call=healthz, access="open", answer=Health),
    Endpoint(method="GET", path="/status", call=show_status, access="viewer", answer=Status),
)
