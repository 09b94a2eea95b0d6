"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import (
    agent_footprint,
    aggregation,
    endurance,
    enrolment,
    history,
    idle_fleet,
    links,
    noop_round,
    poisoning,
    report,
    simulator_speed,
    time_to_accuracy,
    training_step,
    update_bytes,
    update_stream,
    web,
)
from .measure import Row, Unavailable

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Benchmark(Protocol):
    """A module of this package."""

    NAME: str

    def run(self, progress: Callable[[str], None]) -> list[Row]: ...


BENCHMARKS: dict[str, Benchmark] = {
    training_step.NAME: training_step,
    aggregation.NAME: aggregation,
    agent_footprint.NAME: agent_footprint,
    noop_round.NAME: noop_round,
    update_stream.NAME: update_stream,
    idle_fleet.NAME: idle_fleet,
    enrolment.NAME: enrolment,
    history.NAME: history,
    simulator_speed.NAME: simulator_speed,
    time_to_accuracy.NAME: time_to_accuracy,
    poisoning.NAME: poisoning,
    update_bytes.NAME: update_bytes,
    links.NAME: links,
    endurance.NAME: endurance,
    web.NAME: web,
}


def main() -> int:
    """Exit code 0, or 2 with a sentence where something a benchmark needs is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure and write docs/benchmarks.md.")
    parser.add_argument("--only", choices=BENCHMARKS, metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    options = parser.parse_args()
    names = [options.only] if options.only else list(BENCHMARKS)
    results: dict[str, list[Row]] = {}
    for name in names:
        try:
            results[name] = BENCHMARKS[name].run(_progress)
        except Unavailable as missing:
            print(f"{name}: {missing}", file=sys.stderr)
            return 2
    PAGE.parent.mkdir(exist_ok=True)
    measured = report.conditions(PAGE.parent)
    _progress(", ".join(f"{name} {value}" for name, value in measured.items()))
    report.merge(PAGE, results, measured, BENCHMARKS)
    if options.json:
        rows = [row.to_json() for rows in results.values() for row in rows]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
