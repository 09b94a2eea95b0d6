"""A comparison as one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Final

from bokeh.embed import components
from bokeh.resources import INLINE

from coordinator.simulator import figures
from coordinator.simulator.comparison import COSTS, Comparison, Entry, Ratio, Spread

TITLES: Final = {
    "seconds": "virtual time",
    "version": "versions",
    "bytes": "bytes",
    "training": "device time",
    "joules": "energy",
}
MOST: Final = 8
"""Experiments that get figures of their own."""

_STYLE: Final = """
:root { --mute: #5a6573; --line: #e2e7ec }
* { box-sizing: border-box }
body { margin: 0; background: #f5f7f8; color: #1b2430; font: 14px/1.45 system-ui, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 20px 18px 40px; display: grid; gap: 14px }
h1 { font-size: 20px; margin: 0 } h2 { font-size: 14px; margin: 0 0 8px } p { margin: 0; color: var(--mute) }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; min-width: 0 }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 14px }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; font-weight: 600 }
thead th { color: var(--mute); font-weight: 600; font-size: 12px; border-bottom-width: 2px }
tbody tr:last-child td { border-bottom: 0 }
small { color: var(--mute) }
"""


def html(comparison: Comparison) -> str:
    """The whole file."""
    plots: dict[str, Any] = {axis: figures.accuracy(comparison, axis) for axis in figures.AXES}
    plots |= {"work": figures.work(comparison), "staleness": figures.staleness(comparison)}
    plots["fairness"] = figures.fairness(comparison)
    for number, entry in enumerate(comparison.entries[:MOST]):
        plots[f"widths{number}"] = figures.widths(entry)
        plots[f"timeline{number}"] = figures.timeline(entry)
    script, divs = components(plots)
    curves = [_card(f"Accuracy by {axis}", divs[axis]) for axis in figures.AXES]
    shares = [
        _card("What devices spent their time on", divs["work"]),
        _card("Updates at most so stale", divs["staleness"]),
        _card("Accuracy on every device's own samples, worst first", divs["fairness"]),
    ]
    each = []
    for number, entry in enumerate(comparison.entries[:MOST]):
        name = f"{escape(entry.label)}, seed {min(entry.results)}"
        each.append(_card(f"Widths over time: {name}", divs[f"widths{number}"]))
        each.append(_card(f"Work: {name}", divs[f"timeline{number}"]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Simulations compared</title><style>{_STYLE}</style>{INLINE.render()}</head>
<body><main><h1>Simulations compared</h1><p>{_about(comparison)}</p>
<section class="scroll"><h2>To accuracy {comparison.target:.4g}</h2>{_costs(comparison)}</section>
<section class="scroll"><h2>Against {escape(comparison.entries[0].label)}</h2>{_ratios(comparison)}</section>
<div class="two">{"".join(curves)}</div><div class="three">{"".join(shares)}</div><div class="two">{"".join(each)}</div>
<section class="scroll"><h2>What was simulated</h2>{_given(comparison)}</section>
</main>{script}</body></html>
"""


def shown(name: str, spread: Spread) -> str:
    """A cost as people read it, with its deviation over the seeds."""
    factor, unit = _unit(name, spread.mean)
    mean = spread.mean / factor
    digits = max(0, 2 - math.floor(math.log10(mean))) if mean > 0 else 0
    text = f"{mean:.{digits}f}"
    if spread.deviation is not None:
        text += f" ± {spread.deviation / factor:.{digits}f}"
    return f"{text} {unit}".strip()


def shown_ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.mean:.3g}"
    return f"{ratio.mean:.3g} ({ratio.low:.3g} … {ratio.high:.3g})"


def points(spread: Spread) -> str:
    """An accuracy in percent."""
    text = f"{100 * spread.mean:.2f}"
    return text + (f" ± {100 * spread.deviation:.2f}" if spread.deviation is not None else "") + " %"


def _unit(name: str, value: float) -> tuple[float, str]:
    scales = {
        "seconds": ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")),
        "training": ((3600, "h"), (60, "min"), (1, "s")),
        "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
        "joules": ((3.6e6, "kWh"), (3600, "Wh"), (1, "J")),
    }.get(name, ((1, ""),))
    return next((scale for scale in scales if value >= scale[0]), scales[-1])


def _about(comparison: Comparison) -> str:
    one = next(iter(comparison.entries[0].results.values()))
    dealt = one["dealt"]
    return escape(
        f"{one['model']} ({one['parameters']:,} parameters) on {dealt['data']}, {dealt['test_samples']} samples held "
        f"out ({dealt['held_out']}). Accuracy is the mean of three successive evaluations; ± is the deviation over "
        "seeds; a seed that misses the target counts with all it spent. Energy is that of training and transfers."
    )


def _costs(comparison: Comparison) -> str:
    heads = ["experiment", "seeds", "reached", *(TITLES[name] for name in COSTS), "final accuracy", "waiting"]
    rows = [
        [
            entry.label,
            str(len(entry.results)),
            f"{entry.reached} of {len(entry.results)}",
            *(shown(name, entry.costs[name]) for name in COSTS),
            points(entry.final),
            points(entry.waiting),
        ]
        for entry in comparison.entries
    ]
    return _table(heads, rows)


def _ratios(comparison: Comparison) -> str:
    if len(comparison.entries) < 2:
        return "<p>There is nothing beside it.</p>"
    heads = ["experiment", "pairs", *(TITLES[name] for name in COSTS)]
    rows = [_ratio_row(entry) for entry in comparison.entries[1:]]
    note = "<p>Geometric mean of the ratios of equal seeds, and its 95 % interval; below 1 is less.</p>"
    return _table(heads, rows) + note


def _ratio_row(entry: Entry) -> list[str]:
    pairs = max((ratio.seeds for ratio in entry.ratios.values()), default=0)
    return [entry.label, str(pairs), *(shown_ratio(entry.ratios.get(name)) for name in COSTS)]


def _given(comparison: Comparison) -> str:
    heads = ["experiment", "population", "devices", "split", "samples per device", "until", "seeds", "updates"]
    rows = []
    for entry in comparison.entries:
        one = next(iter(entry.results.values()))
        dealt = one["dealt"]
        sizes = f"{dealt['smallest']} / {dealt['median']} / {dealt['largest']}"
        updates = sum(sum(found["updates"].values()) for found in entry.results.values())
        seeds = ", ".join(map(str, entry.results))
        rows.append(
            [entry.label, one["population"], str(dealt["devices"]), dealt["split"], sizes, one["until"], seeds,
             f"{updates:,}"]
        )  # fmt: skip
    return _table(heads, rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _card(title: str, div: str) -> str:
    return f"<section><h2>{title}</h2>{div}</section>"
