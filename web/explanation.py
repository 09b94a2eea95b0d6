"""Why an assignment has the width it has, in sentences made of what its policies looked at."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from markupsafe import Markup

NAMES = {
    "whale_fl": "WHALE-FL",
    "heterofl": "HeteroFL",
    "heterofl_dynamic": "HeteroFL",
    "fedrolex": "FedRolex",
    "fresh_model": "Fresh model",
    "held": "Held",
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
    if policy == "fresh_model" and {"refresh", "slot", "slots"} <= inputs.keys():
        return Markup("{}: {}").format(name, _fresh_model(inputs, brief))
    known = {"heterofl": _heterofl, "heterofl_dynamic": _drawn, "fedrolex": _fedrolex, "fixed": _fixed}.get(policy)
    if known is not None and "width" in inputs:
        return Markup("{}: {}").format(name, known(inputs))
    return Markup("{}: {}").format(name, _listed(inputs))


def _heterofl(inputs: Mapping[str, Any]) -> Markup:
    return Markup("{}.").format(_of_group(inputs))


def _of_group(inputs: Mapping[str, Any]) -> Markup:
    group = inputs.get("group")
    of_group = Markup("devices of group {} train").format(_bold(group)) if group else "devices without a group train"
    return Markup("{} width {}").format(of_group, _bold_width(inputs["width"]))


def _drawn(inputs: Mapping[str, Any]) -> Markup:
    chance = inputs.get("probability")
    odds = Markup(", at a chance of {}").format(_percent(chance)) if chance is not None else ""
    return Markup("width {} was drawn{}.").format(_bold_width(inputs["width"]), odds)


def _fedrolex(inputs: Mapping[str, Any]) -> Markup:
    rolled = Markup("of a window that has rolled on by {} channels").format(_bold(inputs.get("roll", 0)))
    per = {"version": " and moves with every version", "absorbed": " and moves with every update"}
    return Markup("{} {}{}.").format(_of_group(inputs), rolled, per.get(inputs.get("per", ""), ""))


def _fresh_model(inputs: Mapping[str, Any], brief: bool) -> Markup:
    sentence = Markup("it asks for the fresh model after step {}").format(_bold(inputs["refresh"]))
    if brief:
        return Markup("{}.").format(sentence)
    place = Markup("slot {} of {}").format(_bold(inputs["slot"]), _bold(inputs["slots"]))
    return Markup("{} ({}{}).").format(sentence, place, _slot_reason(inputs))


def _slot_reason(inputs: Mapping[str, Any]) -> Markup:
    match inputs.get("by"):
        case "fixed":
            return Markup(", as for every device")
        case "meta model":
            return Markup(", proposed for its first training at a chance of {}").format(_percent(inputs.get("chance")))
        case "table":
            words = Markup(", {} than before, for its table expects most of that: {}")
            if inputs.get("action") == "the same":
                words = Markup(", {} as before, for its table expects most of that: {}")
            return words.format(inputs.get("action"), _bold(inputs.get("value")))
        case "chance":
            than = "as" if inputs.get("action") == "the same" else "than"
            return Markup(", {} {} before, to try it").format(inputs.get("action"), than)
    return Markup("")


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
    limit = inputs.get("longest")
    within = Markup(", the widest that takes no longer than {} s").format(_bold(limit)) if limit is not None else ""
    return Markup("{}, hence width {}{}.").format(Markup(" ").join(parts), chosen, within)


def _listed(inputs: Mapping[str, Any]) -> Markup:
    pairs = [
        Markup("{} {}").format(name.replace("_", " "), _bold_width(value) if name == "width" else _bold(value))
        for name, value in inputs.items()
        if value is not None
    ]
    return Markup("{}.").format(Markup(", ").join(pairs)) if pairs else Markup("no inputs recorded.")


def _percent(share: Any) -> Markup:
    return Markup("<b>{:.0f} %</b>").format(100 * share) if isinstance(share, int | float) else _bold(share)


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
