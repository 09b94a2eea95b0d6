"""Experiments side by side: what each took to the target, and how that compares with the first, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from attrs import field, frozen

from coordinator.errors import ShoalError
from coordinator.simulator import result
from coordinator.simulator.until import SMOOTH

COSTS: Final = ("seconds", "version", "bytes", "training", "joules")
"""What is counted up to the target: virtual seconds, versions, bytes both ways, seconds of training, joules of training
and transfers."""
SHARE: Final = 0.98
"""The target, where nobody names one: this share of the first experiment's final accuracy."""

_T: Final = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 97.5 % for 1, 2, … degrees of freedom; beyond them 2.13 falls to 1.96 slowly, and 2.1 is taken."""


@frozen
class Cost:
    """What a seed had spent when it reached the target, or at its end if it never did."""

    reached: bool
    spent: dict[str, float]


@frozen
class Spread:
    """Mean and sample deviation over seeds; the deviation of one seed is None."""

    mean: float
    deviation: float | None


@frozen
class Ratio:
    """Geometric mean over seeds of this experiment's cost over the first one's, and its 95 % interval (None for less
    than two seeds)."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@frozen(kw_only=True)
class Entry:
    """One experiment. ``costs`` and ``ratios`` by name of COSTS, ``results`` by seed."""

    label: str
    folder: Path
    results: dict[int, dict[str, Any]] = field(repr=False)
    reached: int
    costs: dict[str, Spread]
    ratios: dict[str, Ratio]
    final: Spread
    waiting: Spread


@frozen
class Comparison:
    target: float
    entries: tuple[Entry, ...]


def compare(folders: Sequence[Path], target: float | None = None) -> Comparison:
    """Read the folders; the first is what the others are compared with. ShoalError bad-request if one holds no results,
    or they were measured on different data."""
    found = [(folder, _results(folder)) for folder in folders]
    labels = _labels(found)
    _check_alike(found)
    if target is None:
        target = SHARE * fmean(final_accuracy(one) for one in found[0][1].values())
    if not 0 < target <= 1:
        raise ShoalError("bad-request", f"target is {target:g}, expected an accuracy above 0 and up to 1")
    reference = {seed: cost(one, target) for seed, one in found[0][1].items()}
    entries = tuple(
        _entry(label, folder, results, target, reference if place else None)
        for place, (label, (folder, results)) in enumerate(zip(labels, found, strict=True))
    )
    return Comparison(target, entries)


def smooth(accuracies: Sequence[float]) -> list[float | None]:
    """Means of three successive evaluations, None for the first two."""
    means = [sum(accuracies[n - SMOOTH + 1 : n + 1]) / SMOOTH for n in range(SMOOTH - 1, len(accuracies))]
    return [*[None] * min(SMOOTH - 1, len(accuracies)), *means]


def cost(found: dict[str, Any], target: float) -> Cost:
    """What was spent until the smoothed accuracy first reached the target."""
    curve = found["curve"]
    means = smooth(curve["accuracy"])
    place = next((n for n, mean in enumerate(means) if mean is not None and mean >= target), None)
    at = len(means) - 1 if place is None else place
    spent = {name: float(curve[name][at]) for name in ("seconds", "version", "training", "joules")}
    spent["bytes"] = float(curve["bytes_up"][at] + curve["bytes_down"][at])
    if place is None:
        spent["seconds"] = found["seconds"]
    return Cost(place is not None, spent)


def final_accuracy(found: dict[str, Any]) -> float:
    """Mean of the last three evaluations (of fewer, if there are no three)."""
    return fmean(found["curve"]["accuracy"][-SMOOTH:])


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """Of (this, reference) pairs; None without a pair of positive costs."""
    logs = [math.log(mine / other) for mine, other in pairs if mine > 0 and other > 0]
    if not logs:
        return None
    middle = fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(middle), None, None, 1)
    t = _T[len(logs) - 2] if len(logs) - 2 < len(_T) else 2.1
    half = t * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(logs))


def waiting_share(found: dict[str, Any]) -> float:
    """Share of the time the devices were there in which they neither trained nor transferred."""
    there = sum(found["seconds"] - device["away"] for device in found["devices"])
    return float(sum(device["waiting"] for device in found["devices"]) / there) if there > 0 else 0.0


def spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _entry(
    label: str, folder: Path, results: dict[int, dict[str, Any]], target: float, reference: dict[int, Cost] | None
) -> Entry:
    costs = {seed: cost(found, target) for seed, found in results.items()}
    ratios = {}
    for name in COSTS if reference else ():
        assert reference is not None
        paired = [(costs[seed].spent[name], reference[seed].spent[name]) for seed in costs if seed in reference]
        if (one := ratio(paired)) is not None:
            ratios[name] = one
    return Entry(
        label=label,
        folder=folder,
        results=results,
        reached=sum(one.reached for one in costs.values()),
        costs={name: spread([one.spent[name] for one in costs.values()]) for name in COSTS},
        ratios=ratios,
        final=spread([final_accuracy(found) for found in results.values()]),
        waiting=spread([waiting_share(found) for found in results.values()]),
    )


def _results(folder: Path) -> dict[int, dict[str, Any]]:
    read = [result.read(path) for path in folder.glob("seed-*.json")]
    if not read:
        raise ShoalError("bad-request", f"{folder} holds no seed-N.json: simulate something into it first")
    return {found["seed"]: found for found in sorted(read, key=lambda found: int(found["seed"]))}


def _labels(found: Sequence[tuple[Path, dict[int, dict[str, Any]]]]) -> list[str]:
    """The recipes' names; with the folders' where two have the same."""
    names = [next(iter(results.values()))["recipe"] for _, results in found]
    return [
        name if names.count(name) == 1 else f"{name} ({folder.name})"
        for name, (folder, _) in zip(names, found, strict=True)
    ]


def _check_alike(found: Sequence[tuple[Path, dict[int, dict[str, Any]]]]) -> None:
    measured = {}
    for folder, results in found:
        one = next(iter(results.values()))
        measured[one["dealt"]["data"], one["dealt"]["held_out"]] = folder
    if len(measured) > 1:
        both = " and ".join(f"{folder} ({data}, {held})" for (data, held), folder in list(measured.items())[:2])
        raise ShoalError("bad-request", f"These were measured on different data: {both}")
