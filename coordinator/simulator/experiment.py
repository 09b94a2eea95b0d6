"""An experiment: a recipe, a population, data and an end, to be simulated with several seeds."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from attrs import asdict, evolve, frozen

from coordinator import __version__
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.simulator import hands, population, until
from coordinator.simulator.board import Board
from coordinator.simulator.conditions import Presence, Speed, Wire, generator
from coordinator.simulator.fleet import Fleet
from coordinator.simulator.hands import Collection, Dealt
from coordinator.simulator.population import Compute, Group, Population
from coordinator.simulator.world import BEGIN, FINENESS
from coordinator.training import recipe as recipes
from coordinator.training.live import cost
from coordinator.training.recipe import Recipe
from coordinator.training.runs import read_spec
from device_agent.dataset import Dataset
from device_agent.runtime import backends
from protocol.messages import FEATURES, PROTOCOL, CheckIn
from protocol.subnetwork import WIDTHS, nested
from protocol.weights import Array


@frozen(kw_only=True)
class Experiment:
    """As it is written into its folder; ``recipe`` is complete TOML, ``population`` a name or the path of a file,
    ``model`` a name of the zoo or JSON (empty: the first one that fits)."""

    recipe: str
    population: str
    data: str
    devices: int
    until: str
    split: str = "iid"
    held_out: str = ""
    control: str = ""
    model: str = ""
    heterogeneity: float = 0.0
    fineness: float = FINENESS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@frozen(eq=False)
class Prepared:
    """Everything an experiment is made of, read and checked."""

    experiment: Experiment
    recipe: Recipe
    population: Population
    spec: ModelSpec
    collection: Collection
    x: Array
    until: until.Until

    def dealt(self, seed: int) -> Dealt:
        given = self.experiment
        return hands.deal(self.collection, given.devices, given.split, given.held_out, seed, given.control)

    def dataset(self, rows: np.ndarray[Any, Any]) -> Dataset:
        return Dataset(self.x[rows], self.collection.y[rows], self.collection.classes)


def prepare(experiment: Experiment) -> Prepared:
    """Read and check it all; ShoalError with what does not fit."""
    crowd = population.load(experiment.population)
    if experiment.heterogeneity:
        crowd = bent(crowd, experiment.heterogeneity)
    collection = hands.read(experiment.data)
    spec = read_spec(experiment.model) if experiment.model else hands.model_for(collection)
    devices = experiment.devices or crowd.devices
    if not 1 <= devices <= 100_000:
        raise ShoalError("bad-request", f"devices is {devices}, expected 1 to 100000")
    prepared = Prepared(
        evolve(experiment, devices=devices),
        recipes.load(experiment.recipe),
        crowd,
        spec,
        collection,
        hands.fitted(collection, spec),
        until.parse(experiment.until),
    )
    prepared.dealt(0)  # what cannot be dealt out is found out now
    return prepared


def complete(recipe: str) -> str:
    """A recipe by its name or as TOML, with every default written out."""
    return recipes.load(recipe).to_toml()


def muster(prepared: Prepared, dealt: Dealt, seed: int, fleet: Fleet) -> dict[str, Board]:
    """All boards of a seed, by id."""
    axes = layout(prepared.spec)
    costs = {width: cost(prepared.spec, nested(axes, width)) for width in WIDTHS}
    found: dict[str, Board] = {}
    counts: dict[str, int] = {}
    for number, group in enumerate(prepared.population.members(len(dealt.hands))):
        own = counts[group.name] = counts.get(group.name, 0) + 1
        id = f"{_stem(group.name)}-{own}"
        dataset = prepared.dataset(dealt.hands[number])
        conditions = (
            Speed(group.compute, costs, BEGIN, generator(seed, "speed", number)),
            Wire(group.links[(own - 1) % len(group.links)], generator(seed, "wire", number)),
            Presence(group.availability, BEGIN, generator(seed, "presence", number)),
        )
        chance = Random(f"{seed} {number}")  # noqa: S311 - jitter, no secrets
        found[id] = Board(id, group, dataset, _offer(dataset), conditions, chance, fleet)
    return found


def bent(crowd: Population, heterogeneity: float) -> Population:
    """The population with its groups' speeds v raised to a power, so that mean v / min v is ``heterogeneity`` (ADSP,
    Hu, Wang, Wu, AAAI 2020). ShoalError if they are all alike, or some are given by FLOPs and some by samples."""
    speeds = [_speed(group.compute) for group in crowd.groups]
    if heterogeneity < 1 or len(set(speeds)) < 2 or 0 in speeds:
        sentence = "heterogeneity needs a number from 1, and groups that differ in ms_per_sample (or all in mflops)"
        raise ShoalError("bad-request", sentence)
    weights = [group.share for group in crowd.groups]

    def degree(power: float) -> float:
        bowed = [speed**power for speed in speeds]
        return sum(w * v for w, v in zip(weights, bowed, strict=True)) / sum(weights) / min(bowed)

    low, high = 0.0, 1.0
    while degree(high) < heterogeneity:
        high *= 2
        if high > 1e3:
            raise ShoalError("bad-request", f"heterogeneity {heterogeneity:g} is out of reach of {crowd.name}'s groups")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if degree(middle) < heterogeneity else (low, middle)
    slowest = min(speeds)
    groups = tuple(
        _faster(group, (speed / slowest) ** (high - 1)) for group, speed in zip(crowd.groups, speeds, strict=True)
    )
    return evolve(crowd, name=f"{crowd.name} H={heterogeneity:g}", groups=groups)


def _speed(compute: Compute) -> float:
    if compute.ms_per_sample is None:
        return compute.mflops
    return 1 / compute.ms_per_sample[max(compute.ms_per_sample)]


def _faster(group: Group, factor: float) -> Group:
    compute = group.compute
    if compute.ms_per_sample is None:
        return evolve(group, compute=evolve(compute, mflops=compute.mflops * factor))
    table = {width: one / factor for width, one in compute.ms_per_sample.items()}
    return evolve(group, compute=evolve(compute, ms_per_sample=table))


def _offer(dataset: Dataset) -> CheckIn:
    return CheckIn(
        id="0",
        protocol=PROTOCOL,
        agent=__version__,
        runtime=backends()[0],  # artifacts are compiled for the one that trains here
        features=FEATURES,
        samples=len(dataset),
        input=dataset.input,
        classes=dataset.classes,
        held=None,
        unsent=(),
    )


def _stem(name: str) -> str:
    letters = "".join(one if one.isalnum() else "-" for one in name.lower())
    return letters.strip("-")[:30] or "device"


def write(experiment: Experiment, folder: Path) -> None:
    """Note in its folder what is simulated there; ShoalError conflict if that is something else."""
    path = folder / "experiment.json"
    text = json.dumps(experiment.to_json(), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _same(path, experiment)
        path.write_text(text)
    except OSError as error:
        raise ShoalError("home-unusable", f"The folder {folder} cannot be written: {error.strerror}") from error


def _same(path: Path, experiment: Experiment) -> None:
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise ShoalError("conflict", f"{path} is not the note of an experiment: name another folder") from error
    mine = experiment.to_json()
    differing = [name for name in mine if there.get(name) != mine[name]]
    if differing:
        sentence = f"{path.parent} holds another experiment (its {differing[0]} differs): name another folder"
        raise ShoalError("conflict", sentence)
