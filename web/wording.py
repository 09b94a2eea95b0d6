"""How numbers, times and widths are written. ``None`` is written as a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final
from urllib.parse import urlencode

from flask import Blueprint, request
from markupsafe import Markup, escape

from web.explanation import sentences

NONE: Final = "–"
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
WIDTH_STEPS: Final = (1, 2, 4, 8, 16)


def install(blueprint: Blueprint) -> None:
    for filter in (moment, lasting, size, share, number, width, shade, span, rate, clock, signed):
        blueprint.app_template_filter()(filter)
    blueprint.app_template_filter("why")(sentences)
    blueprint.app_template_global()(sparkline)
    blueprint.app_template_global()(here)
    blueprint.app_template_global()(mentions)
    blueprint.app_template_global()(assignments_in)
    blueprint.app_template_global()(sort_link)


def span(seconds: float | None) -> str:
    """A length of time in its largest unit, rounded down: "12 s", "3 min", "5 h", "9 d"."""
    if seconds is None:
        return NONE
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86400)} d"


def clock(at: float | None) -> str:
    """A moment in full, UTC."""
    return NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def moment(at: float | None, now: float) -> Markup:
    """How long ago, as an element whose words the page keeps true."""
    if at is None:
        return escape(NONE)
    ago = now - at
    text = f"in {span(-ago)}" if ago < -1 else f"{span(max(0.0, ago))} ago"
    return _time(at, "ago", text)


def lasting(at: float | None, now: float) -> Markup:
    """For how long already: "12 s"."""
    return escape(NONE) if at is None else _time(at, "for", span(max(0.0, now - at)))


def size(count: float | None) -> str:
    """Bytes with three digits: "90.0 kB"."""
    if count is None:
        return NONE
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def share(value: float | None, digits: int = 1) -> str:
    """A part of one in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A whole number with separated thousands, or another with so many significant digits."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return (
        f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        if abs(value) >= 1e-3
        else f"{value:.2e}"
    )


def signed(value: float | None, unit: str) -> str:
    return NONE if value is None else f"{value:.1f} {unit}"


def rate(value: float) -> str:
    """Something per minute."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def width(value: float | None) -> str:
    """A subnetwork's width: 1, 1/2, 1/4 ..., other widths in per cent."""
    if value is None:
        return NONE
    ratio = Fraction(value).limit_denominator(1024)
    return str(ratio) if ratio.numerator == 1 and ratio == Fraction(value) else f"{100 * value:.0f} %"


def shade(value: float) -> str:
    """The step of the width colours for a width: the nearest of 1, 1/2, 1/4, 1/8, 1/16 on a logarithmic scale."""
    step = min(WIDTH_STEPS, key=lambda step: abs(math.log2(max(value, 1e-6) * step)))
    return f"--width-{step}"


def sparkline(values: Sequence[float | None], low: float | None = None) -> Markup:
    """A small line chart, 100 wide and 30 high; it starts at ``low`` or at the least value."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup('<svg class="spark" viewBox="0 0 100 30" aria-hidden="true"></svg>')
    bottom = min(known) if low is None else low
    height = (max(known) - bottom) or 1.0
    across = 100 / (len(values) - 1)
    points = [
        f"{index * across:.1f},{28 - 26 * (value - bottom) / height:.1f}"
        for index, value in enumerate(values)
        if value is not None
    ]
    line = "M" + "L".join(points)
    first = points[0].split(",")[0]
    return Markup(
        '<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="area" d="{0}V30H{1}Z"></path><path d="{0}"></path></svg>'
    ).format(line, first)


def mentions(text: str, links: Mapping[str, str]) -> Markup:
    """A sentence in which every name that has an address leads there; names it does not mention follow after it."""
    parts: list[str | Markup] = [text]
    for name, address in links.items():
        link = Markup('<a href="{}">{}</a>').format(address, name)
        whole = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-]|\.\d)")
        for index, part in enumerate(parts):
            if not isinstance(part, Markup) and (found := whole.search(part)):
                parts[index : index + 1] = [part[: found.start()], link, part[found.end() :]]
                break
        else:
            parts += [" · ", link]
    return Markup("").join(parts)


def assignments_in(text: str, run: str) -> list[str]:
    """The ids of the run's assignments that a sentence mentions: those of ``digits-1`` are ``digits-1.1`` and so on."""
    return list(dict.fromkeys(re.findall(rf"(?<![\w-]){re.escape(run)}\.\d+(?![\w-])", text)))


def here(**changes: Any) -> str:
    """This page's address with some parameters changed; None removes one."""
    args: dict[str, Any] = {**request.args.to_dict(flat=False), **changes}
    kept = {name: value for name, value in args.items() if value not in (None, "", [""])}
    return request.path + (f"?{urlencode(kept, doseq=True)}" if kept else "")


def sort_link(
    column: str, order: Any, largest_first: bool = False, names: tuple[str, str] = ("sort", "page")
) -> Mapping[str, str]:
    """Where a column's header leads, and its ``aria-sort``: a second click turns the order round. ``names`` are the
    parameters that say the order and the page."""
    active = order.sort == column
    descending = not order.descending if active else largest_first
    state = ("descending" if order.descending else "ascending") if active else ""
    return {"href": here(**{names[0]: f"-{column}" if descending else column, names[1]: None}), "aria": state}


def _time(at: float, kind: str, text: str) -> Markup:
    stamp = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" title="{} UTC" data-ago="{}">{}</time>').format(
        stamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), stamp.strftime("%Y-%m-%d %H:%M:%S"), kind, text
    )
