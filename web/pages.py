"""The pages of the fleet and its runs. Each reads its filter from the URL, asks the queries and renders a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen
from flask import Blueprint, Response

from coordinator import auth
from coordinator.services import Services
from coordinator.store import queries
from web import address, live
from web.address import WINDOWS, Window, choice, text, whole, window
from web.memory import Memory
from web.wording import WIDTH_STEPS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TELEMETRY_SPAN: Final = 3600.0
CURVE_AXES: Final = ("time", "version", "bytes")
MEASURES: Final = ("accuracy", "loss")
EVENTS: Final = 15
PARTS: Final = 20
"""Devices on one page of a run's contributions."""
LANES: Final = 40
"""Devices on one page of the timeline."""


def install(blueprint: Blueprint, services: Services, memory: Memory) -> None:
    pages = Pages(services, memory)
    guard = auth.require("viewer")
    routes: dict[str, Callable[..., Response]] = {
        "/": pages.overview,
        "/devices": pages.devices,
        "/devices/<id>": pages.device,
        "/runs": pages.runs,
        "/runs/<id>": pages.run,
        "/assignments/<id>": pages.assignment,
    }
    for rule, view in routes.items():
        blueprint.add_url_rule(rule, view.__name__, guard(view))


@frozen
class Pages:
    services: Services
    memory: Memory

    def overview(self) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            seen = self.memory.recall("overview", lambda: queries.overview(session, now))
            return {"seen": evolve(seen, events=queries.events(session, limit=EVENTS))}

        return live.page(self.services, "overview.html", gather)

    def devices(self) -> Response:
        wanted = queries.DeviceFilter(
            status=text("status"), group=text("group"), text=text("text"), flag=text("flag")
        )
        order = address.order("name")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "page": queries.devices(session, wanted, order),
                "wanted": wanted,
                "statuses": queries.status_counts(session),
                "groups": queries.groups(session),
            }

        return live.page(self.services, "devices.html", gather, telemetry=True)

    def device(self, id: str) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "detail": queries.device(session, id),
                "assignments": queries.assignments(session, device=id, limit=15),
                "changes": queries.status_changes(session, id, limit=12),
                "events": queries.events(session, device=id, limit=12),
                "deployed": queries.deployed(session, id),
                "series": queries.telemetry(session, id, now - TELEMETRY_SPAN, now, points=120),
            }

        return live.page(self.services, "device.html", gather, telemetry=True)

    def runs(self) -> Response:
        state, order = text("state"), address.order("-created")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "page": queries.runs(session, order, now, state),
                "state": state,
                "states": queries.STATES,
            }

        return live.page(self.services, "runs.html", gather)

    def run(self, id: str) -> Response:
        axis, measure = choice("x", CURVE_AXES), choice("y", MEASURES)
        lanes = whole("lanes", 1)
        order = queries.Order.parse(text("by") or "-share", whole("part", 1), PARTS)

        def gather(session: Session, now: float) -> dict[str, Any]:
            recall = self.memory.recall
            detail = queries.run(session, id, now, recall(("sums", id), lambda: queries.run_sums(session, id)))
            shown = window(detail.row.created_at, detail.row.ended_at, now)
            lanes_of = ("lanes", id, shown.asked, text("until"))
            return {
                "detail": detail,
                "axis": axis,
                "axes": CURVE_AXES,
                "measure": measure,
                "measures": MEASURES,
                "window": shown,
                "windows": WINDOWS,
                "lanes": lanes,
                "lane_pages": -(-recall(lanes_of, lambda: _workers(session, id, shown)) // LANES),
                "open": queries.assignments(session, run=id, only_open=True, limit=12),
                "updates": queries.updates(session, queries.UpdateFilter(run=id), queries.Order("at", True, 1, 12)),
                "parts_of": recall(("parts", id, order), lambda: queries.contributions(session, id, order)),
                "events": queries.events(session, run=id, limit=40),
                "model": queries.model_of(session, id),
                "steps": WIDTH_STEPS,
            }

        return live.page(self.services, "run.html", gather)

    def assignment(self, id: str) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            return {"found": queries.why(session, id)}

        return live.page(self.services, "assignment.html", gather)


def _workers(session: Session, run: str, shown: Window) -> int:
    return queries.workers(session, run, shown.since, shown.until)
