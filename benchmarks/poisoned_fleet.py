"""A fleet in virtual time, some of whose devices poison: engine, compiled training steps and real data, in one process.

Devices are of four speeds; each trains on its own shard of a Dirichlet(0.5) split and checks in again as soon as its
update has left, until the fleet has delivered so many. Who is quarantined stays away.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import statistics
from collections import deque
from collections.abc import Callable
from functools import cache

import numpy as np
from attrs import define, evolve, field, frozen

from coordinator.compiler.compile import compile_model
from coordinator.compiler.cost import flops
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import ModelSpec
from coordinator.demo.data import Samples, deal, split
from coordinator.strategies.base import Cost, DeviceView
from coordinator.training.engine import Engine, Setting
from coordinator.training.evaluation import Dataset, Evaluation
from coordinator.training.inputs import CheckedIn, Deferred, Delivered, Effect, Offered, Quarantined, Settled, Ticked
from coordinator.training.recipe import Recipe
from device_agent.dataset import Dataset as Shard
from device_agent.runtime import TrainStep
from device_agent.trainer import LocalResult, Start, Training
from protocol import tensors
from protocol.coding import encode
from protocol.messages import CheckIn, Lineage, Plan, Timings, Update
from protocol.subnetwork import Region, Subnetwork, nested
from protocol.weights import Weights, finite, norm, scale, zeros_like

GROUPS = ("zero2", "pi3", "pi4", "pi5")
SLOWNESS = {"zero2": 3.6, "pi3": 3.0, "pi4": 1.67, "pi5": 1.0}
Attack = Callable[[Weights, np.random.Generator], Weights]


def _flip(difference: Weights, rng: np.random.Generator) -> Weights:
    return scale(difference, -1.0)


def _hundredfold(difference: Weights, rng: np.random.Generator) -> Weights:
    return scale(difference, 100.0)


def _noise(difference: Weights, rng: np.random.Generator) -> Weights:
    """Gaussian noise of ten times the length of what was trained."""
    drawn = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in difference.items()}
    return scale(drawn, 10.0 * norm(difference) / max(norm(drawn), 1e-30))


def _whisper(difference: Weights, rng: np.random.Generator) -> Weights:
    """Gaussian noise as long as what was trained."""
    return scale(_noise(difference, rng), 0.1)


ATTACKS: dict[str, Attack] = {
    "sign_flip": _flip,
    "hundredfold": _hundredfold,
    "noise": _noise,
    "quiet_noise": _whisper,
}
"""What poisoning devices make of the difference they trained."""
LAST = 20
"""While training goes on over unlike data, one version is some points better or worse than the next."""
LABEL_FLIP, ABSENT = "label_flip", "absent"
"""They train on reversed labels; they are not there at all."""


@frozen(eq=False)
class Scene:
    """What all runs of one seed share: the shards, the test set, the initial weights, and who would poison."""

    spec: ModelSpec
    seed: int
    shards: tuple[Shard, ...]
    evaluation: Evaluation
    weights: Weights
    poisoners: frozenset[str]

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(f"device-{number}" for number in range(len(self.shards)))


def scene(spec: ModelSpec, samples: Samples, devices: int, share: float, seed: int) -> Scene:
    """A split by ``seed``; a ``share`` of the devices, drawn at random, are the poisoners."""
    rng = np.random.default_rng(seed)
    test, _, rest = split(samples, rng)
    shards = tuple(Shard(part.x, part.y, part.classes) for part in deal(rest, devices, rng))
    drawn = rng.choice(devices, round(share * devices), replace=False)
    evaluation = Evaluation(spec, Dataset(test.x, test.y))
    poisoners = frozenset(f"device-{number}" for number in drawn)
    return Scene(spec, seed, shards, evaluation, initial_weights(spec, rng), poisoners)


@frozen(eq=False)
class Outcome:
    """A run's end: accuracy on the test set, the mean of the last :data:`LAST` versions; why devices were quarantined,
    and what flagged them, by device."""

    accuracy: float
    quarantined: dict[str, str]
    flagged: dict[str, str]
    refused: int


@define(eq=False)
class Run:
    """One training of a scene by a recipe; ``attack`` names what the poisoners do, "" for nothing."""

    scene: Scene
    recipe: Recipe
    attack: str = ""
    _checked_in: int = 0
    _quarantined: dict[str, str] = field(factory=dict)
    _flagged: dict[str, str] = field(factory=dict)
    _refused: int = 0
    _newest: deque[Weights] = field(factory=lambda: deque(maxlen=LAST))

    def play(self, updates: int) -> Outcome:
        """Until the fleet has delivered so many updates, or nobody is left."""
        engine = self._engine()
        rng = np.random.default_rng([self.scene.seed, 1])
        due: list[tuple[float, str, Delivered | None]] = [(rng.uniform(), name, None) for name in self.scene.devices]
        due = [one for one in due if not (self.attack == ABSENT and one[1] in self.scene.poisoners)]
        heapq.heapify(due)
        while updates and due:
            now, name, update = heapq.heappop(due)
            if engine.deadline is not None and engine.deadline <= now:
                self._note(engine.handle(Ticked(), now))
            if update is not None:
                self._note(engine.handle(update, now))
                updates -= 1
            if not self._newest or self._newest[-1] is not engine.core.weights:
                self._newest.append(engine.core.weights)
            if name in self._quarantined:
                continue
            answer = engine.handle(self._check_in(name), now)[-1]
            if isinstance(answer, Deferred):
                heapq.heappush(due, (now + (answer.seconds or 1.0), name, None))
            elif isinstance(answer, Offered):
                update = self._trained(engine, answer, rng)
                heapq.heappush(due, (now + self._seconds(answer.plan, name, rng), name, update))
        return Outcome(self._accuracy(), self._quarantined, self._flagged, self._refused)

    def _note(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Quarantined):
                self._quarantined[effect.device] = effect.reason
            elif isinstance(effect, Settled):
                self._refused += effect.outcome == "refused"
                if flag := effect.scores.get("label_flip", {}).get("flag"):
                    self._flagged.setdefault(effect.device, str(flag))

    def _engine(self) -> Engine:
        axes = layout(self.scene.spec)

        def cost(part: Subnetwork) -> Cost:
            return Cost(Region(axes, part).parameters, flops(self.scene.spec, part))

        setting = Setting("poisoned", self.recipe, axes, cost, self.scene.seed, None)
        return Engine(setting, {name: value.copy() for name, value in self.scene.weights.items()})

    def _accuracy(self) -> float:
        measure = self.scene.evaluation.measure
        return statistics.mean(measure(weights)[0] if finite(weights) else 0.0 for weights in self._newest)

    def _number(self, name: str) -> int:
        return int(name.rpartition("-")[2])

    def _check_in(self, name: str) -> CheckedIn:
        shard = self.scene.shards[self._number(name)]
        self._checked_in += 1
        said = CheckIn(
            id=f"{name}.{self._checked_in}", protocol=1, agent="0.1.0", runtime="bench", features=("train", "int8"),
            samples=len(shard), input=shard.input, classes=shard.classes, held=None, unsent=(),
        )  # fmt: skip
        return CheckedIn(DeviceView(name, GROUPS[self._number(name) % len(GROUPS)], len(shard)), said)

    def _seconds(self, plan: Plan, name: str, rng: np.random.Generator) -> float:
        return SLOWNESS[GROUPS[self._number(name) % len(GROUPS)]] * plan.width * plan.steps * rng.uniform(0.8, 1.25)

    def _trained(self, engine: Engine, offer: Offered, rng: np.random.Generator) -> Delivered:
        """What a device sends: trained at once on the model as it is now, delivered later."""
        shard, plan = self.scene.shards[self._number(offer.device)], offer.plan
        poisons = offer.device in self.scene.poisoners
        if poisons and self.attack == LABEL_FLIP:
            shard = evolve(shard, y=(shard.classes - 1 - shard.y).astype(np.int32))
        weights = engine.region(plan).cut(engine.core.weights)
        result = _train(self.scene.spec, plan, weights, shard, f"{self.scene.seed}/{offer.assignment}")
        if poisons and self.attack in ATTACKS:
            result = evolve(result, difference=ATTACKS[self.attack](result.difference, rng))
        return _delivered(offer, result)


class _Desk:
    """One commit is made, and nothing comes between."""

    allowed, fresh, stopped = 1, None, False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def progressed(self, step: int, loss: float | None) -> None:
        pass

    def committed(self, result: LocalResult, checkpoint: object) -> None:
        self.result = result


def _train(spec: ModelSpec, plan: Plan, weights: Weights, shard: Shard, seed: str) -> LocalResult:
    step, desk = _step(spec, plan.width, plan.batch), _Desk(plan)
    step.load(weights)
    start = Start(assignment=seed, version=0, base=weights)
    Training(
        step, start, shard, desk, checkpoint_every=math.inf, pace=1.0, clock=lambda: 0.0, sleep=lambda seconds: None
    ).run()
    return desk.result


@cache
def _step(spec: ModelSpec, width: float, batch: int) -> TrainStep:
    return TrainStep(compile_model(spec, nested(layout(spec), width), batch).content)


def _delivered(offer: Offered, result: LocalResult) -> Delivered:
    plan = offer.plan
    body = tensors.encode(encode(result.difference, plan.coding, zeros_like(result.difference))[0])
    update = Update(
        assignment=offer.assignment, commit=1, run="poisoned", lineage=Lineage(version=offer.version, shape_epoch=0),
        samples=result.samples, steps=result.steps, loss=result.loss, accuracy=result.accuracy,
        squared_gradient=result.squared_gradient, squared_gradient_peak=result.squared_gradient_peak,
        timings=Timings(download=0.0, train=1.0, upload=None), bytes_down=0, coding=plan.coding, size=len(body),
        sha256=hashlib.sha256(body).hexdigest(), chunk=0,
    )  # fmt: skip
    return Delivered(offer.device, update, body)

