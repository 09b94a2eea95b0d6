"""One claim's experiments: simulated side by side, compared, and told as a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from coordinator.cli.simulate import seeds_of
from coordinator.simulator import comparison, experiment
from coordinator.simulator.comparison import Comparison, Entry
from coordinator.simulator.crew import Crew, Report
from coordinator.simulator.experiment import Experiment

SMALL: Final = json.dumps(
    {
        "name": "har-small",
        "input": [561],
        "classes": 6,
        "layers": [{"dense": {"units": 64}}, "relu", {"dense": {"units": 6}}],
    }
)
"""36,358 parameters on the 561 features of HAR."""


@frozen
class Options:
    """What was asked for on the command line."""

    full: bool
    seeds: Sequence[int]
    out: Path
    cores: int


def options(name: str, about: str) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.reproductions.{name}", description=about)
    parser.add_argument("--full", action="store_true", help="at the paper's size")
    parser.add_argument("--seeds", default="10-12", help="e.g. 10-14")
    parser.add_argument("--out", type=Path, default=Path("out") / "reproductions" / name)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    return Options(given.full, seeds_of(given.seeds), given.out, given.cores)


def data(name: str) -> str:
    """A file of the data folder; SystemExit with a sentence if it is not there."""
    path = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / f"{name}.npz"
    if not path.exists():
        raise SystemExit(f"{path} is not there: set SHOAL_DATA to the folder that holds {name}.npz")
    return str(path.resolve())


def run(given: Options, experiments: Mapping[str, Experiment]) -> dict[str, Path]:
    """Simulate all, or what is left of them; the folders by label."""
    folders = {}
    for label, wanted in experiments.items():
        folder = folders[label] = given.out / label
        prepared = experiment.prepare(wanted)
        experiment.write(prepared.experiment, folder)
        if not Crew(prepared.experiment, folder, given.cores).run(given.seeds, _teller(label)):
            raise SystemExit("Interrupted. The same command goes on from here.")
    return folders


def compared(folders: Mapping[str, Path], target: float | None = None) -> dict[str, Entry]:
    """By label; prints a table of them. The first is what the others are compared with."""
    found: Comparison = comparison.compare(list(folders.values()), target)
    entries = dict(zip(folders, found.entries, strict=True))
    print(f"\n| target {found.target:.4f} | reached | seconds | of the first | final accuracy | waiting |")
    print("|---|---|---|---|---|---|")
    for label, entry in entries.items():
        seconds, final = entry.costs["seconds"], entry.final
        print(
            f"| {label} | {entry.reached}/{len(entry.results)} | {_spread(seconds, '.0f')} | {_ratio(entry)} "
            f"| {_spread(final, '.4f')} | {entry.waiting.mean:.2f} |"
        )
    return entries


def widths(entry: Entry, parts: int = 8) -> list[float | None]:
    """Mean width of the updates in equal parts of the time, over all seeds."""
    sums, counts = [0.0] * parts, [0] * parts
    for found in entry.results.values():
        for width, columns in found["widths"]["counts"].items():
            for place, count in enumerate(columns):
                part = place * parts // len(columns)
                sums[part] += float(width) * count
                counts[part] += count
    return [round(total / count, 3) if count else None for total, count in zip(sums, counts, strict=True)]


def training_share(entry: Entry) -> float:
    """Share of the devices' time spent training, over all seeds."""
    shares = [
        sum(device["training"] for device in found["devices"]) / (found["seconds"] * len(found["devices"]))
        for found in entry.results.values()
    ]
    return sum(shares) / len(shares)


def _spread(value: comparison.Spread, form: str) -> str:
    return f"{value.mean:{form}}" + (f" ± {value.deviation:{form}}" if value.deviation is not None else "")


def _ratio(entry: Entry) -> str:
    one = entry.ratios.get("seconds")
    if one is None:
        return "1"
    interval = f" ({one.low:.2f}–{one.high:.2f})" if one.low is not None and one.high is not None else ""
    return f"{one.mean:.2f}{interval}"


def _teller(label: str) -> Callable[[Report], None]:
    def told(said: Report) -> None:
        if said.state != "going":
            print(f"{label}: seed {said.seed} {said.state} {said.text}", file=sys.stderr, flush=True)

    return told


def recipe(name: str, aggregator: str, *policies: str, **plan: Any) -> str:
    """TOML of a recipe; ``aggregator`` and ``policies`` are lines of theirs, separated by semicolons."""
    lines = [f'name = "{name}"', "[plan]", *(f"{key} = {json.dumps(value)}" for key, value in plan.items())]
    lines += ["[aggregator]", *(line.strip() for line in aggregator.split(";"))]
    for policy in policies:
        lines += ["[[policy]]", *(line.strip() for line in policy.split(";"))]
    return "\n".join(lines) + "\n"
