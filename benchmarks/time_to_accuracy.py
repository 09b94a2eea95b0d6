"""How soon the composed recipe is accurate, beside FedAvg and the recipes it is made of; simulated, in virtual time.

Two tasks on phones whose speeds spread ninefold (``phones-flash``). ``har_cnn``: the raw signals of HAR; 16 people
train, one on each phone, and three others, drawn anew by every seed, are measured on; a convolutional network of 70,000
parameters. ``fashion``: 6,000 images of Fashion-MNIST on 100 phones, Dirichlet(0.5), measured on 1,500 others.

A recipe's time is when the mean of three evaluations first reaches 0.98 of the final accuracy that synchronous FedAvg
has on the same seed's split; a run that never does counts as long as it went on. ``.vs_fedavg`` and ``.vs_fedbuff`` are
the composed recipe's time over theirs, geometric means over pairs of a seed; ``.final_gap`` is by how many points of
final accuracy it stays behind FedBuff at full width, where at most one is wanted.

Constants were chosen on the seeds 0 and 1, judged are the seeds 10 to 14. ``python -m benchmarks.time_to_accuracy``
prints every recipe; results stay in ``out/time_to_accuracy``, and what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
from attrs import frozen

from coordinator.cli.simulate import seeds_of
from coordinator.simulator import comparison, experiment, result
from coordinator.simulator.comparison import Cost, Ratio
from coordinator.simulator.crew import Crew, Report
from coordinator.simulator.experiment import Experiment, complete

from .measure import Row, Unavailable
from .reproductions.trial import recipe

NAME: Final = "time_to_accuracy"
SEEDS: Final = "10-14"
OUT: Final = Path("out") / NAME
SHARE: Final = 0.98
"""Of FedAvg's final accuracy: the target."""
JUDGED: Final = ("fedavg", "fedbuff", "composed")
"""Those that the rows are made of."""
POINT: Final = 1.0
"""What the composed recipe may lose against FedBuff, in points."""
ROUND: Final = 'kind = "fedavg"; goal = {goal}; timeout = 0'
COHORT: Final = 'kind = "cohort"; goal = {goal}; over_selection = 0'
BUFFER: Final = 'kind = "fedbuff"; goal = 5'
FULL: Final = 'kind = "fixed"'
HALF: Final = 'kind = "fixed"; width = 0.5'
STATIC: Final = 'kind = "heterofl"; widths = { fast = 1.0, middle = 0.5, slow = 0.25 }'
WHALE: Final = 'kind = "whale_fl"; delay = 1; half_window = 1'
NARROW_TO_WIDE: Final = 'kind = "whale_fl"; delay = 0; half_window = 0; beta = 0.5; widths = [1.0, 0.5, 0.25]'
COMMITS: Final = 'kind = "adsp"; period = 12; rate = 2; top = 30; shortest = 1; epoch = 0; periods = 1'
SEARCHED: Final = 'kind = "adsp"; period = 60; rate = 10; top = 30; shortest = 1; warm_up = 1; epoch = 120'

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""What a seed came to, by recipe and seed."""


@frozen
class Task:
    """``experiments`` by recipe, those of JUDGED among them. ``bars``: at most this share of FedAvg's and of FedBuff's
    time."""

    name: str
    experiments: Mapping[str, Experiment]
    bars: tuple[float, float]


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``time_to_accuracy.<task>.vs_fedavg``, ``.vs_fedbuff`` and ``.final_gap``."""
    rows: list[Row] = []
    for task in tasks(OUT):
        rows += judged(task, simulated(task, JUDGED, OUT, seeds_of(SEEDS), os.cpu_count() or 1, progress))
    for row in rows:
        progress(f"{row.name}: {row.value:.3g} {row.unit}, bar {row.reference}")
    return rows


def main() -> None:
    """Simulate, or what is left of it, and print a table of each task."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy")
    parser.add_argument("--seeds", default=SEEDS, help="e.g. 10-12")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--task", default="", help="one task alone")
    parser.add_argument("--recipes", default="", help="some recipes beside fedavg and fedbuff, e.g. composed,adsp")
    given = parser.parse_args()
    seeds = seeds_of(given.seeds)
    for task in tasks(given.out):
        if given.task in ("", task.name):
            others = given.recipes.split(",") if given.recipes else task.experiments
            names = tuple(dict.fromkeys(("fedavg", "fedbuff", *others)))
            print(table(task, simulated(task, names, given.out, seeds, given.cores, print)), flush=True)


# -- what is simulated -------------------------------------------------------------------------------------------------


def tasks(out: Path) -> tuple[Task, Task]:
    """Both tasks; ``out`` is where samples are put that were picked from a larger file."""
    return har(), fashion(out)


def har() -> Task:
    shared: dict[str, Any] = {"data": str(_file("har")), "devices": 16, "split": "subject", "held_out": "subjects:3"}
    shared |= {"control": "0.05", "population": "phones-flash", "model": _network("conv1d", [128, 9], 5, 6)}
    plan: dict[str, Any] = {"batch": 32, "steps": 11, "learning_rate": 0.2, "lease": 3600}
    return Task("har_cnn", _experiments(shared, plan, goal=16, until=("25m", "6m")), (0.2, 0.8))


def fashion(out: Path) -> Task:
    shared: dict[str, Any] = {"data": str(_picked(out, 6000, 1500)), "devices": 100, "split": "dirichlet:0.5"}
    shared |= {"control": "0.05", "population": "phones-flash", "model": _network("conv2d", [28, 28, 1], 3, 10)}
    plan: dict[str, Any] = {"batch": 16, "steps": 8, "learning_rate": 0.2, "lease": 3600}
    return Task("fashion", _experiments(shared, plan, goal=10, until=("40m", "2m")), (0.35, 0.8))


def _experiments(
    shared: dict[str, Any], plan: dict[str, Any], goal: int, until: tuple[str, str]
) -> dict[str, Experiment]:
    """``until``: the end of recipes in rounds, and of the others."""
    rounds, together = ROUND.format(goal=goal), COHORT.format(goal=goal)
    made = {
        "fedavg": (rounds, together, FULL),
        "fedbuff": (BUFFER, FULL),
        "composed": ('kind = "fedasmu"', NARROW_TO_WIDE, COMMITS),
        "composed-full-width": ('kind = "fedasmu"', FULL, COMMITS),
        "fedasmu": ('kind = "fedasmu"', 'kind = "fresh_model"', FULL),
        "whale-fl": (rounds, together, WHALE),
        "adsp": ('kind = "adsp_sum"', SEARCHED, FULL),
        "heterofl": (rounds, together, STATIC),
        "fedbuff-half": (BUFFER, HALF),
        "fedavg-half": (rounds, together, HALF),
    }
    return {
        name: Experiment(
            recipe=complete(recipe(name, *parts, **plan)),
            until=until[0] if parts[0] == rounds else until[1],
            fineness=0.05,
            **shared,
        )
        for name, parts in made.items()
    }


def _network(convolution: str, shape: Sequence[int], kernel: int, classes: int) -> str:
    """Half the channels of the zoo's networks for the same samples."""
    size = [2] * (len(shape) - 1)
    kernels: Any = kernel if len(shape) == 2 else [kernel] * 2
    layers: list[Any] = []
    for filters in (16, 32):
        layers += [{convolution: {"filters": filters, "kernel": kernels}}, "relu", {"max_pool": {"size": size}}]
    layers += ["flatten", {"dense": {"units": 64}}, "relu", {"dense": {"units": classes}}]
    return json.dumps({"name": f"half-{convolution}", "input": list(shape), "classes": classes, "layers": layers})


def _file(name: str) -> Path:
    path = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / f"{name}.npz"
    if not path.exists():
        raise Unavailable(f"{path} is missing: SHOAL_DATA must name the folder of the data sets")
    return path.resolve()


def _picked(out: Path, train: int, test: int) -> Path:
    """A file with so many images of Fashion-MNIST, always the same ones."""
    path = out / f"fashion-{train}-{test}.npz"
    if not path.exists():
        with np.load(_file("fashion_mnist")) as file:
            arrays = {}
            for part, count in (("train", train), ("test", test)):
                rows = np.random.default_rng(0).permutation(len(file[f"y_{part}"]))[:count]
                arrays |= {f"{axis}_{part}": file[f"{axis}_{part}"][rows] for axis in ("x", "y")}
        out.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return path.resolve()


def simulated(
    task: Task, names: Sequence[str], out: Path, seeds: Sequence[int], cores: int, progress: Callable[[str], None]
) -> dict[str, dict[int, dict[str, Any]]]:
    """What each of these recipes comes to with every seed; what is there already is not repeated."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names:

        def told(said: Report, name: str = name) -> None:
            if said.state != "going":
                progress(f"{task.name} {name}: seed {said.seed} {said.state} {said.text}")

        folder = out / task.name / name
        prepared = experiment.prepare(task.experiments[name])
        experiment.write(prepared.experiment, folder)
        if not Crew(prepared.experiment, folder, cores).run(seeds, told):
            raise Unavailable("Interrupted. The same command goes on from here.")
        found[name] = {seed: result.read(folder / f"seed-{seed}.json") for seed in seeds}
    return found


# -- what comes of it --------------------------------------------------------------------------------------------------


def costs(found: Results) -> dict[str, dict[int, Cost]]:
    """What each recipe spent until the target of the seed, or in all."""
    targets = {seed: SHARE * comparison.final_accuracy(one) for seed, one in found["fedavg"].items()}
    return {
        name: {seed: comparison.cost(one, targets[seed]) for seed, one in mine.items()} for name, mine in found.items()
    }


def times(spent: Mapping[str, Mapping[int, Cost]], name: str, reference: str) -> Ratio:
    """Virtual seconds of a recipe over those of another, paired by seed."""
    pairs = [(one.spent["seconds"], spent[reference][seed].spent["seconds"]) for seed, one in spent[name].items()]
    ratio = comparison.ratio(pairs)
    assert ratio is not None
    return ratio


def judged(task: Task, found: Results) -> list[Row]:
    spent = costs(found)
    rows = []
    for reference, bar in zip(("fedavg", "fedbuff"), task.bars, strict=True):
        share = times(spent, "composed", reference).mean
        rows.append(Row(f"{NAME}.{task.name}.vs_{reference}", share, "of its time", bar, bar / share))
    final = {name: fmean(map(comparison.final_accuracy, found[name].values())) for name in ("composed", "fedbuff")}
    gap = 100 * (final["fedbuff"] - final["composed"])
    return [*rows, Row(f"{NAME}.{task.name}.final_gap", gap, "points", POINT)]


def table(task: Task, found: Results) -> str:
    """Markdown, one line for every recipe."""
    spent = costs(found)
    lines = [
        f"\n| {task.name} | reached | seconds | of FedAvg's | of FedBuff's | final accuracy | waiting |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, mine in found.items():
        seconds = comparison.spread([one.spent["seconds"] for one in spent[name].values()])
        final = comparison.spread([comparison.final_accuracy(one) for one in mine.values()])
        lines.append(
            f"| {name} | {sum(one.reached for one in spent[name].values())}/{len(mine)} | {_told(seconds, '.0f')} "
            f"| {_share(spent, name, 'fedavg')} | {_share(spent, name, 'fedbuff')} "
            f"| {_told(final, '.4f')} | {fmean(map(comparison.waiting_share, mine.values())):.2f} |"
        )
    return "\n".join(lines)


def _told(value: comparison.Spread, form: str) -> str:
    return f"{value.mean:{form}}" + (f" ± {value.deviation:{form}}" if value.deviation is not None else "")


def _share(spent: Mapping[str, Mapping[int, Cost]], name: str, reference: str) -> str:
    if name == reference:
        return "1"
    one = times(spent, name, reference)
    return f"{one.mean:.2f}" + (f" ({one.low:.2f}–{one.high:.2f})" if one.low is not None else "")


if __name__ == "__main__":
    main()
