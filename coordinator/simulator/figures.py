"""The figures of a report: curves with their spread over seeds, work, widths, staleness, waiting, fairness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, FactorRange, NumeralTickFormatter
from bokeh.models.annotations import Legend, LegendItem
from bokeh.models.annotations.geometry import Span
from numpy.typing import NDArray

from coordinator import charts
from coordinator.simulator.comparison import Comparison, Entry, smooth

TONES: Final = {
    "card": "#ffffff", "line": "#e2e7ec", "mute": "#5a6573", "ink": "#1b2430", "accent": "#0b7a75",
}  # fmt: skip
PALETTE: Final = ("#2668a8", "#c2570c", "#0b7a75", "#8a3ffc", "#b3261e", "#6b7280", "#a08000", "#d0338a")
"""One colour per experiment, told apart by most eyes; from the ninth on they repeat."""
SHADES: Final = ("#b9d9e8", "#8cc1dd", "#5aa2cb", "#2f78a8", "#12507b")
"""From the narrowest width to the widest."""
STATES: Final = {"training": "#0b7a75", "transfer": "#2668a8", "waiting": "#e3b341", "away": "#c9d1d9"}
LEGEND_ROW: Final = 18
"""Pixels."""
GRID: Final = 240
"""Points of a mean curve."""
AXES: Final = {
    "time": "{} since the beginning",
    "version": "version",
    "bytes": "MB down and up, all devices",
    "device time": "{} of training, all devices",
}

Floats = NDArray[np.float64]


def accuracy(comparison: Comparison, axis: str) -> Any:
    """Smoothed accuracy over one of AXES: the mean of the seeds, and from the worst to the best of them."""
    plot = charts.plot(TONES, 300)
    items = []
    for number, entry in enumerate(comparison.entries):
        colour = PALETTE[number % len(PALETTE)]
        across, rows = _resampled(entry, axis)
        if not len(across):
            continue
        across = across / _unit(comparison, axis)[0]
        columns = {
            "x": across,
            "mean": rows.mean(0),
            "low": rows.min(0),
            "high": rows.max(0),
            "name": [entry.label] * len(across),
        }
        source = ColumnDataSource(columns)
        if len(rows) > 1:
            plot.varea("x", "low", "high", source=source, color=colour, alpha=0.15)
        line = plot.line("x", "mean", source=source, color=colour, width=2)
        charts.explain(plot, [line], [("", "@name"), ("Accuracy", "@mean{0.0 %}"), (axis.capitalize(), "@x{0.[00]}")])
        items.append(LegendItem(label=entry.label, renderers=[line]))
    plot.add_layout(Span(location=comparison.target, dimension="width", line_color=TONES["mute"], line_dash="dashed"))
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.xaxis.axis_label = AXES[axis].format(_unit(comparison, axis)[1])
    _legend(plot, items)
    return plot


def work(comparison: Comparison) -> Any:
    """What the devices spent their time on."""
    labels = [entry.label for entry in comparison.entries]
    columns: dict[str, list[Any]] = {"label": labels}
    for state in STATES:
        columns[state] = [_mean_share(entry, state) for entry in comparison.entries]
    plot = charts.plot(TONES, 70 + 34 * len(labels), y_range=FactorRange(factors=labels[::-1]))
    bars = plot.hbar_stack(
        list(STATES), y="label", height=0.62, source=ColumnDataSource(columns), color=list(STATES.values())
    )
    tips = [("", "@label"), *((state.capitalize(), f"@{state}{{0.0 %}}") for state in STATES)]
    charts.explain(plot, bars, tips)
    plot.x_range.start, plot.x_range.end = 0, 1
    plot.xaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.ygrid.visible = False
    _legend(plot, [LegendItem(label=state, renderers=[bar]) for state, bar in zip(STATES, bars, strict=True)], 4)
    return plot


def widths(entry: Entry) -> Any:
    """Share of each width among the updates of one seed, over time."""
    found = _first(entry)
    spans, counts = found["widths"]["seconds"], found["widths"]["counts"]
    names = list(counts)
    total = np.maximum(np.sum([counts[name] for name in names], axis=0), 1) if names else np.ones(1)
    columns: dict[str, Any] = {f"w{n}": np.array(counts[name]) / total for n, name in enumerate(names)}
    number = len(total)
    factor, unit = _span(number * spans)
    columns["x"] = (np.arange(number) + 0.5) * spans / factor
    plot = charts.plot(TONES, _height(_lanes(entry)))
    shades = SHADES[-len(names) :] if len(names) <= len(SHADES) else [SHADES[-1]] * len(names)
    stacked = plot.vbar_stack(
        [f"w{n}" for n in range(len(names))], x="x", width=0.9 * spans / factor, source=ColumnDataSource(columns),
        color=list(shades),
    )  # fmt: skip
    charts.explain(plot, stacked, [(f"Width {name}", f"@w{n}{{0 %}}") for n, name in enumerate(names)])
    plot.xaxis.axis_label = AXES["time"].format(unit)
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.y_range.start, plot.y_range.end = 0, 1
    items = [LegendItem(label=f"{float(n):g}", renderers=[one]) for n, one in zip(names, stacked, strict=True)]
    _legend(plot, items, 8)
    return plot


def staleness(comparison: Comparison) -> Any:
    """Share of the updates that are at most so stale, by experiment."""
    plot = charts.plot(TONES, 260)
    items = []
    most = 1
    for number, entry in enumerate(comparison.entries):
        counts: dict[int, int] = {}
        for found in entry.results.values():
            for value, many in found["staleness"].items():
                counts[int(value)] = counts.get(int(value), 0) + many
        values = sorted(counts)
        if not values:
            continue
        shares = np.cumsum([counts[value] for value in values]) / sum(counts.values())
        # A step that rises from zero, so that "all are fresh" is a line as well.
        source = ColumnDataSource({"x": [0, *values, values[-1] + 1], "y": [0.0, *shares, 1.0]})
        most = max(most, values[-1] + 1)
        line = plot.step("x", "y", source=source, mode="after", color=PALETTE[number % len(PALETTE)], line_width=2)
        items.append(LegendItem(label=entry.label, renderers=[line]))
    plot.xaxis.axis_label = "versions the model had advanced"
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    plot.x_range.start, plot.x_range.end = 0, most
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.y_range.start, plot.y_range.end = 0, 1.03
    _legend(plot, items)
    return plot


def fairness(comparison: Comparison) -> Any:
    """The final model on every device's own samples: devices from the worst served to the best."""
    plot = charts.plot(TONES, 260)
    items = []
    for number, entry in enumerate(comparison.entries):
        own = [
            sorted(device["accuracy"] for device in found["devices"] if device["accuracy"] is not None)
            for found in entry.results.values()
        ]
        across = np.linspace(0, 1, 101)
        rows = [np.interp(across, np.linspace(0, 1, len(one)), one) for one in own if one]
        if not rows:
            continue
        source = ColumnDataSource({"x": across, "y": np.mean(rows, axis=0)})
        line = plot.line("x", "y", source=source, color=PALETTE[number % len(PALETTE)], width=2)
        items.append(LegendItem(label=entry.label, renderers=[line]))
    plot.xaxis.axis_label = "share of the devices"
    plot.xaxis.formatter = plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    _legend(plot, items)
    return plot


def timeline(entry: Entry) -> Any:
    """The first assignments of some devices of one seed: when each was offered and when its update came."""
    bars, lanes = _first(entry)["timeline"], _lanes(entry)
    most = sorted({bar[3] for bar in bars})
    shade = dict(zip(most, SHADES[-len(most) :], strict=False))
    # As long as it takes until a device has done some twenty things; all of it would be a wall.
    end = sorted(bar[2] for bar in bars)[min(len(bars) - 1, 20 * max(1, len(lanes)))] if bars else 1.0
    shown = [bar for bar in bars if bar[1] <= end]
    columns = {
        "lane": [bar[0] for bar in shown],
        "left": [bar[1] for bar in shown],
        "right": [bar[2] for bar in shown],
        "colour": [shade.get(bar[3], SHADES[-1]) for bar in shown],
        "alpha": [1.0 if bar[4] in ("applied", "stored") else 0.35 for bar in shown],
        "width": [f"{bar[3]:g}" for bar in shown],
        "outcome": [bar[4] for bar in shown],
    }
    plot = charts.plot(TONES, _height(lanes), y_range=FactorRange(factors=lanes[::-1]))
    drawn = plot.hbar(
        "lane", left="left", right="right", height=0.72, fill_color="colour", fill_alpha="alpha",
        line_color=TONES["card"], line_width=0.6, source=ColumnDataSource(columns),
    )  # fmt: skip
    charts.explain(plot, [drawn], [("Device", "@lane"), ("Width", "@width"), ("Outcome", "@outcome")])
    plot.xaxis.axis_label = "seconds since the beginning"
    plot.x_range.start, plot.x_range.end = 0, end
    plot.ygrid.visible = False
    return plot


def _lanes(entry: Entry) -> list[str]:
    """The devices of a timeline."""
    return sorted({bar[0] for bar in _first(entry)["timeline"]})


def _height(lanes: Sequence[str]) -> int:
    """Pixels of a timeline, and of what stands beside it."""
    return max(220, 62 + 15 * len(lanes))


def _resampled(entry: Entry, axis: str) -> tuple[Floats, Floats]:
    """A common grid up to where the first seed ends, and each seed's accuracy on it [seeds, points]."""
    curves = []
    for found in entry.results.values():
        means = smooth(found["curve"]["accuracy"])
        across = _across(found["curve"], axis)[2:]
        known = np.array([mean for mean in means if mean is not None], np.float64)
        if len(known):
            curves.append((across, known))
    if not curves:
        return np.zeros(0), np.zeros((0, 0))
    begin, end = max(across[0] for across, _ in curves), min(across[-1] for across, _ in curves)
    grid = np.linspace(begin, max(begin, end), GRID)
    return grid, np.array([np.interp(grid, across, means) for across, means in curves])


def _across(curve: dict[str, Any], axis: str) -> Floats:
    if axis == "version":
        return np.array(curve["version"], np.float64)
    if axis == "bytes":
        return (np.array(curve["bytes_up"], np.float64) + np.array(curve["bytes_down"], np.float64)) / 1e6
    return np.array(curve[_seconds_of(axis)], np.float64)


def _seconds_of(axis: str) -> str:
    return "seconds" if axis == "time" else "training"


def _unit(comparison: Comparison, axis: str) -> tuple[float, str]:
    """What an axis of seconds is shown in; others stay as they are."""
    if axis in ("version", "bytes"):
        return 1, ""
    curves = [found["curve"][_seconds_of(axis)] for entry in comparison.entries for found in entry.results.values()]
    return _span(max((curve[-1] for curve in curves if curve), default=0.0))


def _span(seconds: float) -> tuple[float, str]:
    return (1, "seconds") if seconds < 180 else (60, "minutes") if seconds < 10_800 else (3600, "hours")


def _mean_share(entry: Entry, state: str) -> float:
    """Of all device time. Devices that train while an update leaves spend it twice: shares are of the sum."""
    shares = []
    for found in entry.results.values():
        sums = {one: sum(device[one] for device in found["devices"]) for one in STATES}
        shares.append(sums[state] / (sum(sums.values()) or 1.0))
    return float(np.mean(shares))


def _first(entry: Entry) -> dict[str, Any]:
    return entry.results[min(entry.results)]


def _legend(plot: Any, items: Sequence[LegendItem], columns: int = 3) -> None:
    """Above the figure, where it hides nothing; the figure grows by every further row."""
    legend = Legend(
        items=list(items), orientation="horizontal", border_line_color=None, background_fill_color=None,
        label_text_font="system-ui, sans-serif", label_text_font_size="11px", label_text_color=TONES["mute"],
        margin=2, spacing=4, glyph_width=16, glyph_height=14, label_height=14,
    )  # fmt: skip
    legend.ncols = columns
    plot.height += LEGEND_ROW * ((len(items) - 1) // columns)
    plot.add_layout(legend, "above")
