"""How every chart of Shoal looks, on pages and in reports: few lines, no box, no logo, tooltips that explain.

``tones`` are colours by name: card, line, mute, accent, good, info, warn, bad, width-1 … width-16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bokeh.models import HoverTool, WheelZoomTool
from bokeh.plotting import figure

TIMES: Final = 4
"""Labels that a time axis aims at."""


def plot(tones: Mapping[str, str], height: int, **given: Any) -> Any:
    """An empty figure in our look."""
    made = figure(
        height=height, sizing_mode="stretch_width", tools="xpan", toolbar_location=None,
        output_backend="canvas", lod_threshold=None, **given,
    )  # fmt: skip
    made.toolbar.logo = None
    # The wheel alone scrolls the page.
    zoom = WheelZoomTool(dimensions="width", modifiers={"ctrl": True})
    made.add_tools(zoom)
    made.toolbar.active_scroll = zoom
    made.background_fill_color = made.border_fill_color = tones["card"]
    made.outline_line_color = None
    made.min_border_right = 16
    made.grid.grid_line_color = tones["line"]
    made.xgrid.visible = False
    for axis in made.axis:
        _dress(axis, tones)
    return made


def seldom(made: Any) -> None:
    """Few enough times on the axis that they stand apart on a telephone: "12:34:56" takes 50 of its 300 pixels."""
    ticker = made.xaxis[0].ticker
    for part in (ticker, *ticker.tickers):
        part.desired_num_ticks = TIMES


def explain(made: Any, renderers: list[Any], tips: Sequence[tuple[str, str]], mode: Any = "mouse") -> None:
    """A tooltip in our look. Bokeh escapes what it puts in for the columns; names before an @ are ours."""
    cells = "".join(f'<span style="color:var(--mute)">{name}</span><span>{value}</span>' for name, value in tips)
    grid = f'<div style="display:grid;grid-template-columns:auto auto;gap:1px 10px;max-width:420px">{cells}</div>'
    made.add_tools(HoverTool(renderers=renderers, tooltips=grid, mode=mode, show_arrow=False))


def _dress(axis: Any, tones: Mapping[str, str]) -> None:
    axis.axis_line_color = axis.major_tick_line_color = tones["line"]
    axis.minor_tick_line_color = None
    axis.major_label_text_color = axis.axis_label_text_color = tones["mute"]
    axis.major_label_text_font = axis.axis_label_text_font = "system-ui, sans-serif"
    axis.major_label_text_font_size = axis.axis_label_text_font_size = "11px"
    axis.axis_label_text_font_style = "normal"
