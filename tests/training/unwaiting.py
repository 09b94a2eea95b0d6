"""Devices that train without waiting, in virtual time: every step is an event, messages take a while.

The problem is least squares in sixteen features, and every device knows a part of them only. However long it trains, a
commit brings the model no closer to what it knows than the aggregator lets it: who commits more often learns faster.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import numpy as np
from attrs import define, evolve, field

from coordinator.strategies.base import Cost
from coordinator.training.computations import COMPUTATIONS
from coordinator.training.engine import Engine, Setting
from coordinator.training.inputs import Amended, Answered, Asked, Deferred, Offered, Refreshed, Requested, Ticked
from coordinator.training.recipe import Recipe
from protocol.messages import Ask, Lineage, Merge, Timings
from protocol.subnetwork import Axis, Region

from .scene import check_in, delivered

FEATURES, SAMPLES = 16, 32
LAYOUT = {"w": (Axis(FEATURES, "features"),)}
FEATURES_OF_AGENT = ("train", "int8", "commits", "refresh", "optimiser")
BEGIN = 1_700_000_000.0
PACE = 2.0
"""Seconds until a device comes back that was told no time."""


def cost(part) -> Cost:
    kept = Region(LAYOUT, part).parameters
    return Cost(kept, 6 * kept)


@define
class Device:
    """``step`` seconds per step; ``busy`` seconds were spent training. ``base`` is what the next update is against;
    ``lives`` counts how often it was switched on."""

    name: str
    step: float
    X: np.ndarray
    y: np.ndarray
    offer: Offered | None = None
    weights: np.ndarray | None = None
    base: np.ndarray | None = None
    version: int = 0
    commit: int = 0
    steps: int = 0
    asked: int = 0
    seconds: float = 0.0
    merges: tuple = ()
    fresh: list = field(factory=list)
    busy: float = 0.0
    commits: list = field(factory=list)
    lives: int = 1

    def begin(self, offer: Offered, weights) -> None:
        self.offer, self.weights, self.base = offer, weights.astype(np.float64), weights.astype(np.float64)
        self.version, self.commit, self.steps, self.asked, self.seconds = offer.version, 0, 0, 0, 0.0
        self.merges, self.fresh = (), []

    def train(self) -> float:
        """One step, with what has come since the last one; the loss before it."""
        for version, merge, keep, fresh in self.fresh:
            if version > max([self.version, *(m.version for m in self.merges)]):
                ahead, before = self.weights - self.base, self.loss()
                self.weights = (1 - merge) * self.weights + merge * fresh + keep * ahead
                self.base = (1 - merge) * self.base + merge * fresh
                losses = {"loss_before": before, "loss_after": self.loss()}
                self.merges += (Merge(step=self.asked, version=version, merge=merge, keep=keep, **losses),)
        self.fresh = []
        X = self.X[:, : len(self.weights)]
        error = X @ self.weights - self.y
        self.weights = self.weights - self.offer.plan.learning_rate * X.T @ error / SAMPLES
        self.steps, self.asked = self.steps + 1, self.asked + 1
        self.seconds, self.busy = self.seconds + self.step, self.busy + self.step
        return float(error @ error / SAMPLES)

    def loss(self) -> float:
        error = self.X[:, : len(self.weights)] @ self.weights - self.y
        return float(error @ error / SAMPLES)

    def due(self) -> bool:
        plan = self.offer.plan
        return self.steps >= plan.steps or (plan.seconds is not None and self.seconds >= plan.seconds)

    def deliver(self, loss: float):
        """What it has learned since the last commit; training goes on from where it is."""
        self.commit += 1
        last = self.commit >= self.offer.plan.commits
        update = delivered(
            self.offer,
            {"w": (self.weights - self.base).astype(np.float32)},
            commit=self.commit,
            last=last,
            steps=self.steps,
            samples=self.steps * self.offer.plan.batch,
            loss=loss,
            lineage=Lineage(version=self.version, shape_epoch=0, merges=self.merges),
            timings=Timings(download=0.1, train=self.seconds, upload=0.1),
        )
        self.version = max([self.version, *(m.version for m in self.merges)])
        self.base, self.merges, self.steps, self.seconds = self.weights.copy(), (), 0, 0.0
        return update, last


class World:
    """The engine, devices with ``steps`` seconds per step, and a control set where ``control`` says so."""

    def __init__(
        self,
        recipe: Recipe,
        steps: dict[str, float],
        *,
        control: bool = True,
        latency: float = 0.1,
        features=FEATURES_OF_AGENT,
    ) -> None:
        rng = np.random.default_rng(5)
        self.now, self.latency, self.features = BEGIN, latency, features
        truth = rng.normal(size=FEATURES)
        self.devices, self.effects, self._events, self._ids = {}, [], [], count()
        for number, (name, step) in enumerate(steps.items()):
            known = np.arange(FEATURES) % len(steps) == number
            X = np.linalg.qr(rng.normal(size=(SAMPLES, FEATURES)))[0] * SAMPLES**0.5 * known
            self.devices[name] = Device(name, step, X, X @ truth)
        setting = Setting("toy", recipe, LAYOUT, cost, 0, None, control=control)
        self.engine = Engine(setting, {"w": np.zeros(FEATURES, np.float32)})

    def loss(self) -> float:
        """Of the global model, over everybody's samples."""
        w = self.engine.core.weights["w"]
        return float(np.mean([np.mean((d.X @ w - d.y) ** 2) for d in self.devices.values()]))

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._ids), what))

    def join(self, name: str, after: float = 0.0) -> None:
        device = self.devices[name]
        self.do(device, self.now + after, lambda: self._check_in(device))

    def do(self, device: Device, when: float, what: Callable[[], None]) -> None:
        """Something that the device does, or hears, unless it is switched off before."""
        life = device.lives
        self.at(when, lambda: what() if device.lives == life else None)

    def leave(self, name: str) -> None:
        """The device is switched off for good: what it had is lost, what it has sent arrives."""
        self.devices[name].lives += 1

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = end

    def give(self, given) -> None:
        """An input for the engine; what follows from it reaches devices and measurers a little later."""
        for effect in self.engine.handle(given, self.now):
            self.effects.append((self.now, effect))
            self._follow(effect)
        if self.engine.deadline is not None:
            self.at(max(self.engine.deadline, self.now) + 0.01, self._tick)

    def _tick(self) -> None:
        if self.engine.deadline is not None and self.engine.deadline <= self.now:
            self.give(Ticked())

    def _check_in(self, device: Device) -> None:
        number = len(self.effects)
        self.give(check_in(device.name, samples=SAMPLES, number=number, features=self.features))

    def _follow(self, effect) -> None:
        later = self.now + self.latency
        match effect:
            case Offered():
                device = self.devices[effect.device]
                device.begin(effect, self.engine.region(effect.plan).cut(self.engine.core.weights)["w"])
                self.do(device, later + device.step, lambda: self._step(device))
            case Deferred():
                device = self.devices[effect.device]
                self.do(device, self.now + (effect.seconds or PACE), lambda: self._check_in(device))
            case Amended():
                self.do(self.devices[effect.device], later, lambda: self._amend(effect))
            case Refreshed():
                fresh = self.engine.region(effect.plan).cut(self.engine.core.weights)["w"].astype(np.float64)
                self.do(self.devices[effect.device], later, lambda: self._refresh(effect, fresh))
            case Requested():
                result = self._answer(effect)
                self.at(later, lambda: self.give(Answered(effect.number, result)))

    def _amend(self, effect: Amended) -> None:
        device = self.devices[effect.device]
        if device.offer.assignment == effect.assignment:
            device.offer = evolve(device.offer, plan=effect.plan)

    def _refresh(self, effect: Refreshed, fresh) -> None:
        device = self.devices[effect.device]
        if device.offer.assignment == effect.assignment:
            device.fresh.append((effect.version, effect.merge, effect.keep, fresh))

    def _answer(self, asked: Requested) -> dict[str, float]:
        if asked.computation == "evaluate":
            return {"version": self.engine.core.version, "accuracy": 0.0, "loss": self.loss()}
        try:
            return COMPUTATIONS[asked.computation](asked.arguments)
        except ValueError:
            return {"failed": 1.0}

    def _step(self, device: Device) -> None:
        loss = device.train()
        plan = device.offer.plan
        if plan.refresh == device.asked:
            newest = max([device.version, *(merge.version for merge in device.merges)])
            ask = Ask(assignment=device.offer.assignment, commit=device.commit + 1, step=device.asked, version=newest)
            self.at(self.now + self.latency, lambda: self.give(Asked(device.name, ask)))
        if device.due():
            device.commits.append(self.now)
            update, last = device.deliver(loss)
            self.at(self.now + self.latency, lambda: self.give(update))
            if last:
                self.do(device, self.now + 2 * self.latency, lambda: self._check_in(device))
                return
        self.do(device, self.now + device.step, lambda: self._step(device))
