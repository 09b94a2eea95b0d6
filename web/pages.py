"""The pages. Each reads its filter from the URL, asks the queries and renders a template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from flask import Blueprint, Response, request

from coordinator import auth, spreadsheet
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import queries
from web import live
from web.wording import WIDTH_STEPS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

PAGE_SIZE: Final = 50
TELEMETRY_SPAN: Final = 3600.0
CURVE_AXES: Final = ("time", "version", "bytes")
LANES: Final = 40
"""Devices on one page of the timeline."""
WINDOWS: Final = (120, 300, 900, 3600)
"""Seconds of work that the timeline shows; the second is the usual one."""


def install(blueprint: Blueprint, services: Services) -> None:
    pages = Pages(services)
    guard = auth.require("viewer")
    routes: dict[str, Callable[..., Response]] = {
        "/": pages.overview,
        "/devices": pages.devices,
        "/devices/<id>": pages.device,
        "/runs": pages.runs,
        "/runs/<id>": pages.run,
        "/assignments/<id>": pages.assignment,
        "/history": pages.history,
        "/history.csv": pages.history_csv,
    }
    for rule, view in routes.items():
        blueprint.add_url_rule(rule, view.__name__, guard(view))


@frozen
class Pages:
    services: Services

    def overview(self) -> Response:
        return live.page(self.services, "overview.html", lambda session, now: {"seen": queries.overview(session, now)})

    def devices(self) -> Response:
        wanted = queries.DeviceFilter(
            status=_text("status"), group=_text("group"), text=_text("text"), flag=_text("flag")
        )
        order = _order("name")

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
                "series": queries.telemetry(session, id, now - TELEMETRY_SPAN, now, points=120),
            }

        return live.page(self.services, "device.html", gather, telemetry=True)

    def runs(self) -> Response:
        state, order = _text("state"), _order("-created")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "page": queries.runs(session, order, now, state),
                "state": state,
                "states": queries.STATES,
            }

        return live.page(self.services, "runs.html", gather)

    def run(self, id: str) -> Response:
        axis = choice("x", CURVE_AXES)
        lanes = whole("lanes", 1)

        def gather(session: Session, now: float) -> dict[str, Any]:
            detail = queries.run(session, id, now)
            shown = window(detail.row.created_at, detail.row.ended_at, now)
            return {
                "detail": detail,
                "axis": axis,
                "axes": CURVE_AXES,
                "window": shown,
                "windows": WINDOWS,
                "lanes": lanes,
                "lane_pages": -(-queries.workers(session, id, shown.since, shown.until) // LANES),
                "open": queries.assignments(session, run=id, only_open=True, limit=12),
                "updates": queries.updates(session, queries.UpdateFilter(run=id), queries.Order("at", True, 1, 12)),
                "events": queries.events(session, run=id, limit=10),
                "steps": WIDTH_STEPS,
            }

        return live.page(self.services, "run.html", gather)

    def assignment(self, id: str) -> Response:
        def gather(session: Session, now: float) -> dict[str, Any]:
            return {"found": queries.why(session, id)}

        return live.page(self.services, "assignment.html", gather)

    def history(self) -> Response:
        wanted = update_filter()
        # What an index gives without sorting: the ledger's order, or that of one run or device.
        order = _order("-at" if wanted.run or wanted.device else "-id")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "page": queries.updates(session, wanted, order),
                "wanted": wanted,
                "runs": queries.run_names(session),
                "outcomes": queries.OUTCOMES,
                "steps": WIDTH_STEPS,
            }

        return live.page(self.services, "history.html", gather)

    def history_csv(self) -> Response:
        wanted = update_filter()
        wanted.conditions()  # a wrong filter is refused before the first byte

        def rows() -> Iterator[queries.UpdateRow]:
            with self.services.database.read() as session:
                yield from queries.export(session, wanted)

        headers = {"Content-Disposition": 'attachment; filename="updates.csv"'}
        lines = spreadsheet.lines(queries.UPDATE_COLUMNS, rows())
        return Response(lines, content_type="text/csv; charset=utf-8", headers=headers)
