"""The charts of a run over HTTP: the figure as Bokeh's JSON, or with ``data`` only what has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen
from bokeh.embed import json_item
from flask import Blueprint, Response, request

from coordinator import auth
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import queries
from web import charts, live
from web.address import CURVE_AXES, LANES, MEASURES, choice, whole, window
from web.answers import Answer
from web.memory import Memory

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def install(blueprint: Blueprint, services: Services, memory: Memory) -> None:
    views = ChartViews(services, memory)
    blueprint.add_url_rule("/runs/<id>/charts/<name>", "chart", auth.require("viewer")(views.chart))


Draw = Callable[["Session", queries.RunBrief, str, float], charts.Chart]


@frozen
class ChartViews:
    services: Services
    memory: Memory

    def chart(self, id: str, name: str) -> Response:
        """One chart of one run in the theme asked for."""
        draw = self._charts.get(name)
        if draw is None:
            raise ShoalError("not-found", f"There is no chart {name[:40]!r}")
        theme = choice("theme", charts.THEMES)

        def take(session: Session, tag: str, now: float) -> Answer:
            return Answer(tag, told(draw(session, queries.run_brief(session, id), theme, now)))

        return live.shared(self.services, take, mimetype="application/json")

    def pieces(self, session: Session, id: str, now: float) -> dict[str, str]:
        """{chart: what has changed in it}, for the page of the run: of its parameters, in any theme."""
        brief = queries.run_brief(session, id)
        return {name: fresh(draw(session, brief, charts.THEMES[0], now)) for name, draw in self._charts.items()}

    @property
    def _charts(self) -> dict[str, Draw]:
        return {
            "curve": self._curve,
            "timeline": self._timeline,
            "staleness": self._staleness,
            "widths": self._widths,
            "delays": self._delays,
        }

    def _curve(self, session: Session, run: queries.RunBrief, theme: str, now: float) -> charts.Chart:
        across, measure = choice("x", CURVE_AXES), choice("y", MEASURES)
        points = self.memory.recall(("curve", run.id), lambda: queries.curve(session, run.id))
        return charts.curve(points, across, run.target, theme, measure)

    def _timeline(self, session: Session, run: queries.RunBrief, theme: str, now: float) -> charts.Chart:
        shown = window(run.created_at, run.ended_at, now)
        found = queries.work(session, run.id, shown.since, shown.until, now, whole("lanes", 1), LANES)
        return charts.timeline(found.bars, found.devices, shown.since, shown.until, theme)

    def _staleness(self, session: Session, run: queries.RunBrief, theme: str, now: float) -> charts.Chart:
        return charts.staleness(self.memory.recall(("late", run.id), lambda: queries.staleness(session, run.id)), theme)

    def _widths(self, session: Session, run: queries.RunBrief, theme: str, now: float) -> charts.Chart:
        until = run.ended_at or now
        found = self.memory.recall(
            ("widths", run.id), lambda: queries.widths(session, run.id, run.created_at, until)
        )
        return charts.widths(found, theme)

    def _delays(self, session: Session, run: queries.RunBrief, theme: str, now: float) -> charts.Chart:
        until = run.ended_at or now
        found = self.memory.recall(
            ("delays", run.id), lambda: queries.delays(session, run.id, run.created_at, until)
        )
        return charts.delays(found, theme)


def told(chart: charts.Chart) -> str:
    """The figure, or with ``data`` in the address what has changed in it."""
    # Bokeh's references depend on the order of the keys: never sorted.
    return fresh(chart) if "data" in request.args else _json({"item": json_item(chart.figure)})


def fresh(chart: charts.Chart) -> str:
    return _json({"sources": chart.sources, "properties": chart.properties})


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
