"""What admission is worth where a fifth of the devices poison: 20 devices, a Dirichlet(0.5) split, five seeds.

``.clean`` is the accuracy of ``fedbuff`` where nobody poisons, the reference of all others; as all accuracies it is the
mean of a run's last versions. ``.<attack>.unguarded`` is the same recipe under attack, ``.<attack>.<aggregator>`` one
with a robust aggregator, ``.<attack>.guarded`` the recipe ``fedbuff-guarded``; ``.<attack>.gap`` and ``.gap_worst`` are
the points that it stays behind the clean run of the same seed, in the mean and at worst, beside the 2 that are allowed.
``.quarantined`` and ``.flagged`` count poisoners, in percent, ``.quarantined_honest`` and ``.flagged_honest`` the
others. ``.absent`` is the clean run without the poisoners: what there is to gain. ``.nobody`` is the guarded recipe
where nobody poisons. Digits come with scikit-learn; Fashion-MNIST is read from the folder ``SHOAL_DATA``.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attrs import evolve

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from coordinator.compiler.zoo import ZOO
from coordinator.demo.data import Samples, handwritten_digits
from coordinator.strategies import AGGREGATORS
from coordinator.training.recipe import Recipe, load

from .measure import Row
from .poisoned_fleet import Outcome, Run, Scene, scene

NAME = "poisoning"
ATTACKS = ("sign_flip", "hundredfold", "noise", "quiet_noise", "label_flip")
ROBUST = dict.fromkeys(("sign_flip", "hundredfold", "noise"), ("median", "trimmed_mean", "multi_krum"))
SEEDS = range(10, 15)
"""The gates' limits were chosen on seeds 0 to 4."""
DEVICES = 20
SHARE = 0.2
UPDATES = 1000
"""Of the whole fleet. With 400 training is not over, and one run is as far from the next as a poisoner may do harm."""
BAR = 2.0
"""Points of accuracy that poisoners may cost."""
GOAL = 10
"""Updates of a robust aggregator's step: of four, too few are honest too often."""
FASHION = 8000


def run(progress: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = []
    for data, spec, samples in _data():
        scenes = [scene(spec, samples, DEVICES, SHARE, seed) for seed in SEEDS]
        for row in measured(f"{NAME}.{data}", scenes, UPDATES, progress):
            rows.append(row)
            beside = "" if row.reference is None else f", beside {row.reference:.4g}"
            progress(f"{row.name}: {row.value:.4g} {row.unit}{beside}")
    return rows


def measured(name: str, scenes: list[Scene], updates: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """All rows of some scenes: the seeds of one data set."""
    plain, guarded = load("fedbuff"), load("fedbuff-guarded")
    clean = _play(scenes, plain, "", updates)
    reference = _mean(clean)
    yield Row(f"{name}.clean", reference, "%")
    yield _accuracy(f"{name}.absent", _play(scenes, plain, "absent", updates), reference)
    yield from _guarded(f"{name}.nobody", scenes, clean, _play(scenes, guarded, "", updates), poisoned=False)
    for attack in ATTACKS:
        yield _accuracy(f"{name}.{attack}.unguarded", _play(scenes, plain, attack, updates), reference)
        for kind in ROBUST.get(attack, ()):
            recipe = evolve(plain, aggregator=AGGREGATORS[kind](goal=GOAL))
            yield _accuracy(f"{name}.{attack}.{kind}", _play(scenes, recipe, attack, updates), reference)
        outcomes = _play(scenes, guarded, attack, updates)
        yield from _guarded(f"{name}.{attack}", scenes, clean, outcomes, poisoned=True)
        for device, why in outcomes[0].quarantined.items():
            progress(f"  {device}: {why}")


def _guarded(
    name: str, scenes: list[Scene], clean: list[Outcome], outcomes: list[Outcome], *, poisoned: bool
) -> Iterator[Row]:
    gaps = [100 * (a.accuracy - b.accuracy) for a, b in zip(clean, outcomes, strict=True)]
    yield _accuracy(f"{name}.guarded", outcomes, _mean(clean))
    yield Row(f"{name}.gap", statistics.mean(gaps), "points", BAR)
    yield Row(f"{name}.gap_worst", max(gaps), "points", BAR)
    for what in ("quarantined", "flagged"):
        named = [set(getattr(outcome, what)) for outcome in outcomes]
        bad = [one.poisoners if poisoned else frozenset() for one in scenes]
        if poisoned:
            found = sum(len(devices & those) for devices, those in zip(named, bad, strict=True))
            yield Row(f"{name}.{what}", 100 * found / sum(map(len, bad)), "%")
        wrong = sum(len(devices - those) for devices, those in zip(named, bad, strict=True))
        honest = sum(len(one.shards) - len(those) for one, those in zip(scenes, bad, strict=True))
        yield Row(f"{name}.{what}_honest", 100 * wrong / honest, "%")


def _play(scenes: list[Scene], recipe: Recipe, attack: str, updates: int) -> list[Outcome]:
    with np.errstate(over="ignore", invalid="ignore"):  # a poisoned model may be anything
        return [Run(one, recipe, attack).play(updates) for one in scenes]


def _mean(outcomes: list[Outcome]) -> float:
    return 100 * statistics.mean(outcome.accuracy for outcome in outcomes)


def _accuracy(name: str, outcomes: list[Outcome], reference: float) -> Row:
    return Row(name, _mean(outcomes), "%", reference, _mean(outcomes) / reference)


def _data() -> Iterator[tuple[str, ModelSpec, Samples]]:
    yield "digits", ZOO["digits"], handwritten_digits()
    path = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / "fashion_mnist.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x_train"][:FASHION], file["y_train"][:FASHION]
        spec = ModelSpec("fashion", (784,), 10, (Dense(64), Relu(), Dense(10)))
        yield "fashion", spec, Samples(x.reshape(len(x), -1).astype(np.float32) / 255, y.astype(np.int32), 10)
