"""Runs side by side, live ones and simulated ones: one chart, and the figures that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from bokeh.models import ColumnDataSource, NumeralTickFormatter
from flask import Blueprint, Response, request

from coordinator import auth
from coordinator import charts as look
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import queries
from coordinator.store.queries import CurvePoint, RunDetail
from web import address, chart_views, charts, live
from web.address import CURVE_AXES, MEASURES, choice
from web.answers import Answer
from web.charts import Chart, Columns
from web.memory import Memory
from web.wording import span

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MOST: Final = 6
"""Runs on one chart: as many as there are tones and dashes that can be told apart."""
NEAR: Final = 0.98
"""Of the accuracy that all of them reach: the level at which they are compared, if none is given."""
_TONES: Final = ("accent", "warn", "info", "bad", "ink", "mute")
_DASHES: Final = ("solid", "dashed", "solid", "dotted", "dashdot", "dashed")


@frozen(kw_only=True)
class Entry:
    """A run in the comparison: its colour by name, and what it took to reach the level (None: it did not)."""

    tone: str
    dash: str
    detail: RunDetail
    reached: CurvePoint | None


def install(blueprint: Blueprint, services: Services, memory: Memory) -> None:
    page = Compare(services, memory)
    guard = auth.require("viewer")
    blueprint.add_url_rule("/compare", "compare", guard(page.show))
    blueprint.add_url_rule("/compare/chart", "compare_chart", guard(page.chart))


@frozen
class Compare:
    services: Services
    memory: Memory

    def show(self) -> Response:
        names, axis, measure, level = _names(), choice("x", CURVE_AXES), choice("y", MEASURES), _level()

        def gather(session: Session, now: float) -> dict[str, Any]:
            curves = [self._curve(session, name) for name in names]
            shown = level if level is not None else common(curves)
            return {
                "entries": [
                    Entry(tone=tone, dash=dash, detail=self._detail(session, name, now), reached=reached(curve, shown))
                    for name, curve, tone, dash in zip(names, curves, _TONES, _DASHES, strict=False)
                ],
                "level": shown,
                "given": level is not None,
                "names": names,
                "runs": queries.runs(session, queries.Order("created", descending=True, size=30), now).rows,
                "axis": axis, "axes": CURVE_AXES, "measure": measure, "measures": MEASURES, "most": MOST,
            }  # fmt: skip

        return live.page(self.services, "compare.html", gather)

    def chart(self) -> Response:
        names, axis, measure = _names(), choice("x", CURVE_AXES), choice("y", MEASURES)
        theme = choice("theme", charts.THEMES)

        def take(session: Session, tag: str, now: float) -> Answer:
            found = [(name, charts.thinned(self._curve(session, name))) for name in names]
            return Answer(tag, chart_views.told(drawn(found, axis, measure, theme)))

        return live.shared(self.services, take, mimetype="application/json")

    def _curve(self, session: Session, run: str) -> Sequence[CurvePoint]:
        return self.memory.recall(("curve", run), lambda: queries.curve(session, run))

    def _detail(self, session: Session, run: str, now: float) -> RunDetail:
        sums = self.memory.recall(("sums", run), lambda: queries.run_sums(session, run))
        return queries.run(session, run, now, sums)


def common(curves: Sequence[Sequence[CurvePoint]]) -> float | None:
    """An accuracy that all of them reached: 98 % of the worst one's best."""
    bests = [max((one.accuracy for one in curve if one.accuracy is not None), default=0.0) for curve in curves]
    return round(NEAR * min(bests), 4) if bests and min(bests) > 0 else None


def reached(curve: Sequence[CurvePoint], level: float | None) -> CurvePoint | None:
    """The first version whose accuracy is at least ``level``."""
    if level is None:
        return None
    return next((one for one in curve if one.accuracy is not None and one.accuracy >= level), None)


def drawn(found: Sequence[tuple[str, Sequence[CurvePoint]]], axis: str, measure: str, theme: str) -> Chart:
    """Accuracy, or loss, of every run over time, version or bytes received."""
    longest = max((curve[-1].seconds for _, curve in found if curve), default=0.0)
    seconds, unit = (1, "seconds") if longest < 180 else (60, "minutes") if longest < 10800 else (3600, "hours")
    labels = {"time": f"{unit} since its start", "version": "version", "bytes": "MB received from all devices"}
    sources = {
        f"run-{place}": _columns(name, curve, axis, measure, seconds) for place, (name, curve) in enumerate(found)
    }

    def draw() -> Any:
        tones = charts.colours(theme)
        plot = look.plot(tones, 320)
        lines = [
            plot.line(
                "x", "y", source=ColumnDataSource(columns, name=name), color=tones[tone], width=2, line_dash=dash
            )
            for (name, columns), tone, dash in zip(sources.items(), _TONES, _DASHES, strict=False)
        ]
        tips = [("Run", "@run"), ("Version", "@version"), ("Accuracy", "@accuracy{0.0 %}"), ("After", "@after")]
        look.explain(plot, lines, tips)
        plot.yaxis.formatter = NumeralTickFormatter(format="0 %" if measure == "accuracy" else "0.[000]")
        plot.xaxis.axis_label = labels[axis]
        plot.xaxis[0].name = "across"
        return plot

    return Chart(draw, sources, {"across": {"axis_label": labels[axis]}})


def _columns(name: str, curve: Sequence[CurvePoint], axis: str, measure: str, seconds: float) -> Columns:
    shown = [one for one in curve if getattr(one, measure) is not None]
    across: Columns = {
        "time": [one.seconds / seconds for one in shown],
        "version": [one.version for one in shown],
        "bytes": [one.bytes_up / 1e6 for one in shown],
    }
    columns: Columns = {
        "x": across[axis],
        "y": [getattr(one, measure) for one in shown],
        "run": [name] * len(shown),
        "version": [one.version for one in shown],
        "accuracy": [one.accuracy for one in shown],
        "after": [span(one.seconds) for one in shown],
    }
    return columns


def _names() -> tuple[str, ...]:
    given = tuple(dict.fromkeys(name.strip()[:80] for name in request.args.getlist("run") if name.strip()))
    if len(given) > MOST:
        raise ShoalError("bad-request", f"There are {len(given)} runs to compare, expected at most {MOST}")
    return given


def _level() -> float | None:
    level = address.number("level")
    if level is not None and not 0 < level <= 1:
        raise ShoalError("bad-request", f"level is {level:g}, expected an accuracy above 0, at most 1")
    return level
