"""What the codings of an update save, and what they cost in accuracy.

``cnn1d`` learns the raw signals of 16 subjects of the HAR data, one per device, at width 1 with FedBuff, through the
coordinator's engine and the agent's own training step, coding and residuals, in virtual time. Every seed draws initial
weights, the devices' paces and their shuffling, and trains once with every coding on the same draws. Accuracy is that
on three more subjects, the mean over the last ten versions. Bytes are those of all messages that carry an update.

A bar on bytes is met where the ratio is at least 1; one on accuracy where the upper end of the loss's 95 % interval
(Student's t over the paired seeds) is at most one point. The settings were chosen on the seeds 0 to 2.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.zoo import ZOO
from coordinator.strategies.base import DeviceView
from coordinator.training.engine import Engine, Setting
from coordinator.training.inputs import CheckedIn, Delivered, Offered
from coordinator.training.live import cost
from coordinator.training.recipe import parse
from device_agent import feedback
from device_agent.runtime import Inference, TrainStep, backends
from protocol.messages import FEATURES, PROTOCOL, CheckIn, Lineage, Timings, Update
from protocol.subnetwork import FULL, Region
from protocol.transfer import Sender, described
from protocol.weights import Array, Weights, add

from .measure import Row, Unavailable

NAME = "update_bytes"
MODEL: Final = ZOO["cnn1d"]
TEST: Final = (5, 17, 25)
"""Subjects."""
SEEDS: Final = range(10, 20)
UPDATES: Final = 360
LAST: Final = 10
"""Versions whose mean accuracy counts."""
BATCH: Final = 32
CODINGS: Final = {"int8": ("int8", 0.26), "topk": ("topk-0.18", 0.10)}
"""Coding and bar of a row, as a share of raw float32."""
POINT: Final = 0.01
RECIPE: Final = """
[plan]
batch = 32
steps = 10
learning_rate = 0.1
coding = "{coding}"
[aggregator]
kind = "fedbuff"
goal = 4
"""
T95: Final = {2: 4.303, 9: 2.262}
"""Student's t, two-sided 95 %, by degrees of freedom."""


@frozen(eq=False)
class Samples:
    x: Array
    y: NDArray[np.int32]


@frozen(eq=False)
class Outcome:
    """``share``: bytes of all messages in parts of raw float32."""

    accuracy: float
    share: float


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``update_bytes.<coding>`` (ratio = bar / share) and ``.loss``: points of accuracy lost against float32."""
    return measure(SEEDS, UPDATES, progress)


def measure(seeds: range, updates: int, progress: Callable[[str], None]) -> list[Row]:
    devices, test = _data()
    rows: list[Row] = []
    found: dict[str, list[Outcome]] = {name: [] for name in ("float32", *CODINGS)}
    for seed in seeds:
        for name, outcomes in found.items():
            coding = CODINGS[name][0] if name in CODINGS else name
            outcomes.append(one := _Federation(devices, test, coding, seed).run(updates))
            progress(f"{NAME}: seed {seed}, {coding}: accuracy {one.accuracy:.4f}, {one.share:.4f} of raw float32")
    for name, (_, bar) in CODINGS.items():
        share = statistics.mean(one.share for one in found[name])
        rows.append(Row(f"{NAME}.{name}", share, "of float32", bar, bar / share))
        lost = [whole.accuracy - one.accuracy for whole, one in zip(found["float32"], found[name], strict=True)]
        half = T95[len(lost) - 1] * statistics.stdev(lost) / len(lost) ** 0.5
        upper = 100 * (statistics.mean(lost) + half)
        rows.append(Row(f"{NAME}.{name}.loss", 100 * statistics.mean(lost), "points"))
        rows.append(Row(f"{NAME}.{name}.loss_upper", upper, "points", 100 * POINT, 100 * POINT / upper))
    reached = statistics.mean(one.accuracy for one in found["float32"])
    rows.append(Row(f"{NAME}.accuracy", reached, ""))
    for row in rows:
        progress(f"{row.name}: {row.value:.4g} {row.unit}" + (f", bar {row.reference:g}" if row.reference else ""))
    return rows


def _data() -> tuple[list[Samples], Samples]:
    path = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / "har.npz"
    if not path.exists():
        raise Unavailable(f"{path} is missing: SHOAL_DATA must name the folder of the data sets")
    with np.load(path) as file:
        x, y, subject = file["x"].astype(np.float32), file["y"].astype(np.int32), file["subject"]
    devices = [Samples(x[subject == one], y[subject == one]) for one in np.unique(subject) if one not in TEST]
    test = np.isin(subject, TEST)
    return devices, Samples(x[test], y[test])


@define(eq=False)
class _Federation:
    """One run of one coding and seed."""

    devices: list[Samples]
    test: Samples
    coding: str
    seed: int
    _residuals: dict[int, bytes | None] = field(factory=dict)
    _bytes: int = 0
    _step: TrainStep = field(init=False)
    _infer: Inference = field(init=False)

    def run(self, updates: int) -> Outcome:
        backend = backends()[0]
        self._step = TrainStep(compile_model(MODEL, batch=BATCH, target=backend).for_backend(backend), backend)
        infer = compile_model(MODEL, batch=256, signature="infer", target=backend)
        self._infer = Inference(infer.for_backend(backend), backend)
        chance = np.random.default_rng(self.seed)
        engine = self._engine()
        paces = chance.uniform(1, 4, len(self.devices))
        due = [(float(chance.uniform()), number) for number in range(len(self.devices))]
        heapq.heapify(due)
        waiting: dict[int, Delivered] = {}
        accuracies, version, absorbed = [], 0, 0
        while absorbed < updates:
            now, number = heapq.heappop(due)
            if number in waiting:
                engine.handle(waiting.pop(number), now)
                absorbed += 1
                if engine.core.version > version:
                    version = engine.core.version
                    if updates - absorbed < LAST * 4:
                        accuracies.append(self._accuracy(engine.core.weights))
            waiting[number] = self._work(engine, number, absorbed, now)
            heapq.heappush(due, (now + paces[number] * chance.uniform(0.8, 1.2), number))
        raw = 4 * sum(value.size for value in engine.core.weights.values())
        return Outcome(statistics.mean(accuracies), self._bytes / (raw * (updates + len(waiting))))

    def _engine(self) -> Engine:
        recipe = parse(RECIPE.format(coding=self.coding))
        weights = initial_weights(MODEL, np.random.default_rng(self.seed))
        return Engine(Setting("har", recipe, layout(MODEL), lambda part: cost(MODEL, part), self.seed, None), weights)

    def _work(self, engine: Engine, number: int, absorbed: int, now: float) -> Delivered:
        """Check in, train what is offered, and the update that will arrive."""
        samples = self.devices[number]
        asked = CheckIn(
            id=f"d{number}.{absorbed}", protocol=PROTOCOL, agent="0.1.0", runtime="litert", features=FEATURES,
            samples=len(samples.y), input=MODEL.input, classes=MODEL.classes, held=None, unsent=(),
        )  # fmt: skip
        offer = engine.handle(CheckedIn(DeviceView(f"d{number}", "", len(samples.y)), asked), now)[-1]
        assert isinstance(offer, Offered)
        return self._trained(engine, number, offer)

    def _trained(self, engine: Engine, number: int, offer: Offered) -> Delivered:
        base, samples, plan = engine.core.weights, self.devices[number], offer.plan
        order = np.random.default_rng((self.seed, number, offer.version)).permutation(len(samples.y))
        self._step.load(base)
        ones, loss, correct = np.ones(plan.batch, np.float32), 0.0, 0.0
        for step in range(plan.steps):
            rows = np.take(order, range(step * plan.batch, (step + 1) * plan.batch), mode="wrap")
            done = self._step.step(samples.x[rows], samples.y[rows], ones, plan.learning_rate)
            loss, correct = loss + done.loss_sum, correct + done.correct
        difference = add({name: value.copy() for name, value in self._step.weights().items()}, base, -1.0)
        region = Region(layout(MODEL), FULL)
        body, self._residuals[number] = feedback.encode(difference, plan.coding, region, self._residuals.get(number))
        update = self._update(offer, loss, correct, sorted(base), body)
        self._bytes += _on_the_wire(update, body)
        return Delivered(offer.device, update, body)

    @staticmethod
    def _update(offer: Offered, loss: float, correct: float, names: list[str], body: bytes) -> Update:
        plan = offer.plan
        samples = plan.steps * plan.batch
        update = Update(
            assignment=offer.assignment, commit=1, run="har", samples=samples, steps=plan.steps, loss=loss / samples,
            lineage=Lineage(version=offer.version, shape_epoch=0), accuracy=correct / samples,
            squared_gradient=dict.fromkeys(names, 0.123456789), squared_gradient_peak=dict.fromkeys(names, 0.123456789),
            timings=Timings(download=1.0, train=20.0, upload=1.0), bytes_down=1_000_000, coding=plan.coding,
            size=len(body), sha256=hashlib.sha256(body).hexdigest(), chunk=0,
        )  # fmt: skip
        return described(update, body, None)

    def _accuracy(self, weights: Weights) -> float:
        self._infer.load(weights)
        right = 0
        for start in range(0, len(self.test.y), self._infer.batch):
            x, y = (part[start : start + self._infer.batch] for part in (self.test.x, self.test.y))
            padded = np.concatenate([x, np.zeros((self._infer.batch - len(x), *x.shape[1:]), np.float32)])
            right += int((self._infer(padded)[0][: len(y)].argmax(1) == y).sum())
        return right / len(self.test.y)


def _on_the_wire(update: Update, body: bytes) -> int:
    """Bytes of the announcement and of all chunks, as published."""
    sender = Sender(update, body)
    total = len(sender.announce())
    if update.chunk:
        sender.missing([(0, (update.size - 1) // update.chunk)])
        while not sender.idle:
            for index, data in sender.frames(8):
                total += len(data)
                sender.arrived(index)
    return total


