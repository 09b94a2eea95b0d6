"""Why an assignment has the width it has, in sentences made of what its policies looked at."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from markupsafe import Markup

NAMES = {
    "whale_fl": "WHALE-FL",
    "heterofl": "HeteroFL",
    "fedasmu": "FedASMU",
    "adsp": "ADSP",
    "fixed": "Fixed width",
}


def sentences(explanation: Mapping[str, Any], brief: bool = False) -> tuple[Markup, ...]:
    """One sentence for each policy, its numbers in bold; ``brief`` leaves out what the numbers come from."""
    return tuple(_sentence(policy, inputs, brief) for policy, inputs in explanation.items())


def _sentence(policy: str, inputs: Any, brief: bool) -> Markup:
    name = NAMES.get(policy, policy)
    if not isinstance(inputs, Mapping):
        return Markup("{}: {}").format(name, _bold(inputs))
    if policy == "whale_fl" and "width" in inputs:
        return Markup("{}: {}").format(name, _whale_fl(inputs, brief))
    known = {"heterofl": _heterofl, "fixed": _fixed}.get(policy)
    if known is not None and "width" in inputs:
        return Markup("{}: {}").format(name, known(inputs))
    return Markup("{}: {}").format(name, _listed(inputs))


def _heterofl(inputs: Mapping[str, Any]) -> Markup:
    group = inputs.get("group")
    of_group = Markup("devices of group {} train").format(_bold(group)) if group else "devices without a group train"
    return Markup("{} width {}.").format(of_group, _bold_width(inputs["width"]))


def _fixed(inputs: Mapping[str, Any]) -> Markup:
    return Markup("every device trains width {}.").format(_bold_width(inputs["width"]))


def _whale_fl(inputs: Mapping[str, Any], brief: bool) -> Markup:
    chosen = _bold_width(inputs["width"])
    if inputs.get("warm_up"):
        return Markup("still learning about this device ({}), so it trains width {}.").format(inputs["warm_up"], chosen)
    if inputs.get("utility") is None or inputs.get("share") is None:
        return _listed(inputs)
    parts = [
        Markup("utility {} is {} of the fleet's scale").format(
            _bold(inputs["utility"]), Markup("<b>{:.0f} %</b>").format(100 * inputs["share"])
        )
    ]
    given = [
        words.format(_bold(inputs[name]))
        for name, words in (
            ("samples", Markup("{} samples")),
            ("fisher", Markup("gradient information {}")),
            ("seconds", Markup("{} s of training")),
            ("reference", Markup("{} s wanted")),
        )
        if inputs.get(name) is not None
    ]
    if given and not brief:
        parts.append(Markup("(from {})").format(Markup(", ").join(given)))
    return Markup("{}, hence width {}.").format(Markup(" ").join(parts), chosen)


def _listed(inputs: Mapping[str, Any]) -> Markup:
    pairs = [
        Markup("{} {}").format(name.replace("_", " "), _bold_width(value) if name == "width" else _bold(value))
        for name, value in inputs.items()
        if value is not None
    ]
    return Markup("{}.").format(Markup(", ").join(pairs)) if pairs else Markup("no inputs recorded.")


def _bold(value: Any) -> Markup:
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = str(value)
    return Markup("<b>{}</b>").format(text)


def _bold_width(value: Any) -> Markup:
    try:
        ratio = Fraction(value).limit_denominator(1024)
    except (TypeError, ValueError):
        return _bold(value)
    return _bold(str(ratio) if ratio.numerator == 1 else value)
