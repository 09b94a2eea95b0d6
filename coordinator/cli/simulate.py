"""``shoal simulate``: a recipe on a made-up fleet, in virtual time."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from coordinator.cli.run import text_of
from coordinator.errors import ShoalError


@click.command(
    epilog="Example:  shoal simulate whale-fl --population pi-mixed --data digits --until 'accuracy>=0.9 or 1h' --out w"
)
@click.argument("recipe", metavar="RECIPE")
@click.option("--population", required=True, help="A population that comes with Shoal, or a TOML file.")
@click.option("--data", required=True, help="Samples in an npz file (x, y, perhaps subject), or digits.")
@click.option("--devices", type=click.IntRange(0, 100_000), default=0, help="How many (default: the population's own).")
@click.option("--until", required=True, help="When it ends, e.g. 'accuracy>=0.88 or 6h'.")
@click.option("--seeds", default="0", show_default=True, help="E.g. 0-2 or 0,3,7.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
@click.option("--split", default="iid", show_default=True, help="subject, iid, dirichlet:A, shards:N or quantity:S.")
@click.option("--held-out", default="", help="Share or subjects to measure on (default: 0.2, or the file's test set).")
@click.option("--control", default="", help="Share or subjects to decide by (default: 0.1, or the file's control set).")
@click.option("--model", default="", help="A model of the zoo or a JSON file (default: the first that fits).")
@click.option("--heterogeneity", type=click.FloatRange(0), default=0.0, help="Bend speeds: mean / slowest (ADSP's H).")
@click.option(
    "--every", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Measure versions that are this share of the time gone by apart; 0: all.",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(["processes", "inline", "ray"]), default="processes", show_default=True,
    help="A process for each seed, one after the other in this one, or tasks of a Ray cluster (RAY_ADDRESS).",
)  # fmt: skip
@click.option("--cores", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
def simulate(**options: Any) -> None:
    """Simulate RECIPE: the coordinator's engine and the device's session in virtual time, training for real.

    RECIPE is a recipe's name or a TOML file. What is there of an earlier call with the same options is kept: done seeds
    are not repeated, interrupted ones go on. The folder holds seed-N.json for `shoal compare`, and a database that
    `shoal serve --home` and `shoal history --home` can show.

    Exit codes: 0 done, 1 refused or interrupted, 2 wrong usage.
    """
    from coordinator.simulator import experiment as experiments

    given = experiments.Experiment(
        recipe=experiments.complete(text_of(options["recipe"])),
        population=_placed(options["population"]),
        data=_placed(options["data"]),
        devices=options["devices"],
        until=options["until"],
        split=options["split"],
        held_out=options["held_out"],
        control=options["control"],
        model=text_of(options["model"]) if options["model"] else "",
        heterogeneity=options["heterogeneity"],
        fineness=options["every"],
    )
    seeds, folder = seeds_of(options["seeds"]), options["out"]
    prepared = experiments.prepare(given)
    experiments.write(prepared.experiment, folder)
    if not _run(prepared.experiment, folder, seeds, options["engine"], options["cores"]):
        click.echo("Interrupted. The same command goes on from here.", err=True)
        sys.exit(1)
    _conclude(folder, seeds)


def seeds_of(text: str) -> list[int]:
    """``0-2`` or ``0,3,7``; ShoalError bad-request."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None or int(match[2] or match[1]) - int(match[1]) not in range(1000):
            raise ShoalError("bad-request", f"seeds is {text!r}, expected e.g. 0-2 or 0,3,7")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(found))


def _placed(name: str) -> str:
    """What names a file names it from everywhere."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _run(experiment: Any, folder: Path, seeds: list[int], engine: str, cores: int) -> bool:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from coordinator.simulator.cluster import Cluster
    from coordinator.simulator.crew import Crew, Report, finished

    done = finished(folder, seeds)
    if done:
        click.echo(f"Already there: seed {', '.join(map(str, done))}", err=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {seed: bar.add_task(f"seed {seed}", total=1.0, state="") for seed in seeds if seed not in done}

        def told(said: Report) -> None:
            bar.update(tasks[said.seed], completed=said.share, state=_line(said))

        if engine == "ray":
            return Cluster(experiment, folder, cores).run(seeds, told)
        crew = Crew(experiment, folder, cores)
        return crew.run(seeds, told) if engine == "processes" else crew.run_here(seeds, told)


def _line(said: Any) -> str:
    if said.state != "going":
        return str(said.state)
    accuracy = "–" if said.accuracy is None else f"{said.accuracy:.3f}"
    return f"{said.seconds / 3600:.2f} h  v{said.version}  {said.updates} updates  accuracy {accuracy}"


def _conclude(folder: Path, seeds: list[int]) -> None:
    from coordinator.cli.output import table
    from coordinator.simulator import result

    rows = []
    for seed in seeds:
        found = result.read(folder / f"seed-{seed}.json")
        updates = sum(found["updates"].values())
        rows.append(
            (seed, found["ended"], found["accuracy"], found["versions"], updates, found["updates_per_second"])
        )
    table(("seed", "ended", "accuracy", "versions", "updates", "simulated per s"), rows)
