"""The charts as Bokeh figures in the colours of our style sheet, and the data that keeps them fresh.

A chart has named sources. The figure is sent once; after that only ``sources`` ({source: columns}) and ``properties``
({model name: {property: value}}) are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from attrs import field, frozen
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    DatetimeTickFormatter,
    FactorRange,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations.geometry import Span
from bokeh.transform import factor_cmap, factor_hatch

from coordinator import charts
from coordinator.store.queries import Bar, CurvePoint, Delay, Staleness, WidthSpan
from web.wording import WIDTH_STEPS, shade, span, width

Columns = dict[str, list[Any]]

THEMES: Final = ("light", "dark")
UNUSED: Final = ("stale", "refused", "expired", "cancelled")
"""Outcomes of work that did not reach the model: drawn pale, each with its own hatch."""
LANE: Final = 15
"""Pixels of the timeline for each device."""
STALENESS_BINS: Final = 40
POINTS: Final = 500
"""Versions on a curve: more than there are pixels would only take time."""
_DAY = "%H:%M:%S"


@frozen
class Chart:
    """What the browser needs: the figure the first time, sources and properties every time. To ``draw`` it is dear."""

    draw: Callable[[], Any]
    sources: Mapping[str, Columns]
    properties: Mapping[str, Mapping[str, Any]] = field(factory=dict)

    @property
    def figure(self) -> Any:
        return self.draw()


@cache
def colours(theme: str) -> Mapping[str, str]:
    """The tokens of the style sheet in one theme: {"ink": "#1b2430", ...}."""
    text = (files("web") / "static" / "shoal.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", text)
    return {name: light if theme == "light" else dark for name, light, dark in found}


def curve(
    points: Sequence[CurvePoint], axis: str, target: float | None, theme: str, measure: str = "accuracy"
) -> Chart:
    """Test accuracy, or loss, over time, version or bytes received."""
    shown = [point for point in thinned(points) if getattr(point, measure) is not None]
    seconds, unit = _unit(shown[-1].seconds if shown else 0)
    across: dict[str, list[Any]] = {
        "time": [point.seconds / seconds for point in shown],
        "version": [point.version for point in shown],
        "bytes": [point.bytes_up / 1e6 for point in shown],
    }
    label = {
        "time": f"{unit} since the start",
        "version": "version",
        "bytes": "MB received from all devices",
    }[axis]
    columns: Columns = {
        "x": across[axis],
        "accuracy": [point.accuracy for point in shown],
        "loss": [point.loss for point in shown],
        "version": [point.version for point in shown],
        "after": [span(point.seconds) for point in shown],
    }

    def draw() -> Any:
        tones = colours(theme)
        plot = _plot(theme, 280)
        source = ColumnDataSource(columns, name="curve")
        line = plot.line("x", measure, source=source, color=tones["accent"], width=2)
        plot.scatter("x", measure, source=source, color=tones["accent"], size=4)
        tips = [
            ("Version", "@version"),
            ("Accuracy", "@accuracy{0.0 %}"),
            ("Loss", "@loss{0.000}"),
            ("After", "@after"),
        ]
        charts.explain(plot, [line], tips, mode="vline")
        plot.yaxis.formatter = NumeralTickFormatter(format="0 %" if measure == "accuracy" else "0.[000]")
        plot.xaxis.axis_label = label
        plot.xaxis[0].name = "across"
        plot.y_range.range_padding = 0.08
        if target is not None and measure == "accuracy":
            plot.add_layout(Span(location=target, dimension="width", line_color=tones["mute"], line_dash="dashed"))
            plot.y_range.renderers = [line]
        return plot

    return Chart(draw, {"curve": columns}, {"across": {"axis_label": label}})


def thinned(points: Sequence[CurvePoint]) -> Sequence[CurvePoint]:
    """At most about POINTS of them, as evenly as may be, the last one always."""
    step = -(-len(points) // POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def timeline(bars: Sequence[Bar], devices: Sequence[str], since: float, until: float, theme: str) -> Chart:
    """Who trained what width when: a lane for each device, the first on top."""
    columns = _bar_columns(bars)
    lanes, start, end = list(reversed(devices)), _milliseconds(since), _milliseconds(until)
    properties: dict[str, dict[str, Any]] = {
        "window": {"start": start, "end": end},
        "lanes": {"factors": lanes},
        "timeline": {"height": _height(devices)},
    }

    def draw() -> Any:
        tones = colours(theme)
        shown = Range1d(start=start, end=end, name="window")
        every = FactorRange(factors=lanes, name="lanes")
        plot = _plot(theme, _height(devices), x_axis_type="datetime", y_range=every, x_range=shown)
        plot.name = "timeline"
        shades = [f"--width-{step}" for step in WIDTH_STEPS]
        marks = [tones["warn"], tones["bad"], tones["mute"], tones["mute"]]
        lanes_drawn = plot.hbar(
            "name", left="left", right="right", height=0.72, source=ColumnDataSource(columns, name="bars"),
            fill_color=factor_cmap("shade", [tones[name.removeprefix("--")] for name in shades], shades),
            line_color=factor_cmap("outcome", marks, UNUSED, nan_color="#00000000"),
            fill_alpha="strength", line_width=1.2,
            hatch_pattern=factor_hatch("outcome", ["right_diagonal_line", "cross", "dot", "dot"], UNUSED),
            hatch_color=factor_cmap("outcome", marks, UNUSED, nan_color="#00000000"), hatch_scale=9, hatch_weight=1.5,
        )  # fmt: skip
        tips = [
            ("Device", "@name"),
            ("Width", "@width of version @base"),
            ("Outcome", "@outcome @reason @flags"),
            ("Staleness", "@staleness"),
            ("Lasted", "@lasted @phases"),
        ]
        charts.explain(plot, [lanes_drawn], tips)
        plot.xaxis.formatter = DatetimeTickFormatter(
            milliseconds=_DAY, seconds=_DAY, minsec=_DAY, minutes="%H:%M", hourmin="%H:%M", hours="%H:%M"
        )
        charts.seldom(plot)
        plot.xaxis.axis_label = "UTC"
        plot.ygrid.visible = False
        plot.yaxis.major_label_text_font_size = "10.5px"
        return plot

    return Chart(draw, {"bars": columns}, properties)


def staleness(found: Staleness, theme: str) -> Chart:
    """How many updates came how late."""
    most = max(found.counts, default=0)
    wide = max(1, -(-(most + 1) // STALENESS_BINS))
    kinds = ("applied", "stored", "stale")
    bins: list[dict[str, int]] = [dict.fromkeys(kinds, 0) for _ in range(most // wide + 1)] if found.counts else []
    for value, outcomes in found.counts.items():
        for outcome, count in outcomes.items():
            bins[value // wide][outcome if outcome in kinds else "stale"] += count
    columns: Columns = {
        "middle": [index * wide + (wide - 1) / 2 for index in range(len(bins))],
        "versions": [str(i * wide) if wide == 1 else f"{i * wide} to {(i + 1) * wide - 1}" for i in range(len(bins))],
        "total": [sum(one.values()) for one in bins],
        "breadth": [wide * 0.86] * len(bins),
        **{kind: [one[kind] for one in bins] for kind in kinds},
    }

    def draw() -> Any:
        tones = colours(theme)
        plot = _plot(theme, 220)
        stacked = plot.vbar_stack(
            kinds, x="middle", width="breadth", source=ColumnDataSource(columns, name="staleness"),
            fill_color=[tones["good"], tones["info"], tones["warn"]], line_color=None,
        )  # fmt: skip
        tips = [("Staleness", "@versions"), *((kind.capitalize(), f"@{kind}") for kind in kinds)]
        charts.explain(plot, stacked, tips)
        plot.xaxis.axis_label = "versions the model had advanced"
        plot.xaxis.ticker = BasicTicker(min_interval=1)
        plot.y_range.start = 0
        return plot

    return Chart(draw, {"staleness": columns})


def widths(spans: Sequence[WidthSpan], theme: str) -> Chart:
    """How many updates of each width came when."""
    names = [f"--width-{step}" for step in reversed(WIDTH_STEPS)]
    counts = [_by_shade(one.counts) for one in spans]
    columns: Columns = {
        "middle": [_milliseconds((one.begin + one.end) / 2) for one in spans],
        "breadth": [0.86 * _milliseconds(one.end - one.begin) for one in spans],
        "total": [sum(one.counts.values()) for one in spans],
        "text": [", ".join(f"{width(w)}: {n}" for w, n in sorted(one.counts.items())) for one in spans],
        **{name: [count[name] for count in counts] for name in names},
    }

    def draw() -> Any:
        tones = colours(theme)
        plot = _plot(theme, 220, x_axis_type="datetime")
        stacked = plot.vbar_stack(
            names, x="middle", width="breadth", source=ColumnDataSource(columns, name="widths"),
            fill_color=[tones[name.removeprefix("--")] for name in names], line_color=None,
        )  # fmt: skip
        charts.explain(plot, stacked, [("Updates", "@total"), ("By width", "@text")])
        charts.seldom(plot)
        plot.xaxis.axis_label = "UTC"
        plot.y_range.start = 0
        return plot

    return Chart(draw, {"widths": columns})


def delays(spans: Sequence[Delay], theme: str) -> Chart:
    """How late updates came, when: the mean of every span of time, and the worst of it."""
    columns: Columns = {
        "middle": [_milliseconds((one.begin + one.end) / 2) for one in spans],
        "mean": [one.mean for one in spans],
        "most": [one.most for one in spans],
        "count": [one.count for one in spans],
    }

    def draw() -> Any:
        tones = colours(theme)
        plot = _plot(theme, 220, x_axis_type="datetime")
        source = ColumnDataSource(columns, name="delays")
        plot.scatter("middle", "most", source=source, color=tones["warn"], size=5, marker="dash", line_width=2)
        line = plot.line("middle", "mean", source=source, color=tones["accent"], width=2)
        tips = [("Mean", "@mean{0.0} versions"), ("Largest", "@most versions"), ("Updates", "@count")]
        charts.explain(plot, [line], tips, mode="vline")
        charts.seldom(plot)
        plot.xaxis.axis_label = "UTC"
        plot.y_range.start = 0
        return plot

    return Chart(draw, {"delays": columns})


def _bar_columns(bars: Sequence[Bar]) -> Columns:
    return {
        "name": [bar.name for bar in bars],
        "left": [_milliseconds(bar.begin) for bar in bars],
        "right": [_milliseconds(bar.end) for bar in bars],
        "open": [bar.open for bar in bars],
        "width": [width(bar.width) for bar in bars],
        "shade": [shade(bar.width) for bar in bars],
        "base": [bar.version for bar in bars],
        "outcome": [bar.outcome for bar in bars],
        "staleness": ["–" if bar.staleness is None else str(bar.staleness) for bar in bars],
        "lasted": [span(bar.end - bar.begin) for bar in bars],
        "phases": [_phases(bar) for bar in bars],
        "reason": [bar.reason for bar in bars],
        "flags": ["; ".join(("flagged", *bar.flags.values())) if bar.flags else "" for bar in bars],
        "strength": [0.35 if bar.outcome in UNUSED else 1.0 for bar in bars],
    }


def _by_shade(counts: Mapping[float, int]) -> dict[str, int]:
    found = {f"--width-{step}": 0 for step in WIDTH_STEPS}
    for value, count in counts.items():
        found[shade(value)] += count
    return found


def _plot(theme: str, height: int, **given: Any) -> Any:
    return charts.plot(colours(theme), height, **given)


def _height(devices: Sequence[str]) -> int:
    return max(3, len(devices)) * LANE + 62


def _unit(seconds: float) -> tuple[float, str]:
    return (1, "seconds") if seconds < 180 else (60, "minutes") if seconds < 10800 else (3600, "hours")


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds)


def _phases(bar: Bar) -> str:
    if bar.seconds_train is None:
        return ""
    up = f", upload before {bar.seconds_upload:.1f} s" if bar.seconds_upload is not None else ""
    return f"(download {bar.seconds_download:.1f} s, training {bar.seconds_train:.1f} s{up})"
