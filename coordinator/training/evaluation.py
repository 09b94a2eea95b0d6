"""Measuring versions on the coordinator's own test set, off the steward's thread."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from device_agent.runtime import Inference, TrainStep
from protocol.subnetwork import FULL, Region, Subnetwork, counted
from protocol.weights import Array, Weights

log = logging.getLogger(__name__)

BATCH = 256
_PROBE = 32

WORST = 1e30
"""The loss of a model whose logits are not finite."""


@frozen(eq=False)
class Dataset:
    """Samples ``x`` [n, *shape] float32 and labels ``y`` [n] int32; ``control``: a second set, for decisions."""

    x: Array
    y: NDArray[np.int32]
    control: Dataset | None = None


def read_arrays(path: Path, prefix: str = "") -> tuple[Array, NDArray[Any]]:
    """The arrays x and y of an npz file, x as float32 and bytes as 0 … 1; ShoalError ``bad-dataset``."""
    try:
        with _opened(path) as file:
            x, y = np.asarray(file[f"{prefix}x"]), np.asarray(file[f"{prefix}y"])
    except Exception as error:  # a damaged archive ends in a dozen kinds of them
        what = f"{path} is not an npz file with arrays {prefix}x and {prefix}y: {error}"
        raise ShoalError("bad-dataset", what) from error
    if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise ShoalError("bad-dataset", f"{path}: {prefix}x must hold finite numbers, its type is {x.dtype}")
    return (x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)), y


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    if not path.is_file():  # opening a pipe would wait for somebody to write into it
        raise FileNotFoundError("there is no such file")
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    return loaded


def read_dataset(path: Path, spec: ModelSpec) -> Dataset:
    """A test set from an npz file with arrays x and y that fit the model; ShoalError ``bad-dataset`` otherwise.

    Arrays control_x and control_y beside them are the control set: searches and stop rules look at it, so that the
    test set only reports.
    """
    test = _fitting(path, spec, "")
    with _opened(path) as file:
        controlled = bool({"control_x", "control_y"} & set(file.files))
    return evolve(test, control=_fitting(path, spec, "control_")) if controlled else test


def _fitting(path: Path, spec: ModelSpec, prefix: str) -> Dataset:
    x, y = read_arrays(path, prefix)
    if x.shape[1:] != spec.input or y.shape != x.shape[:1] or not len(y):
        found = f"{prefix}x {x.shape} and {prefix}y {y.shape}"
        raise ShoalError("bad-dataset", f"{path} holds {found}, the model takes {spec.input}")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= spec.classes:
        raise ShoalError("bad-dataset", f"{path}: {prefix}labels must be whole numbers from 0 to {spec.classes - 1}")
    return Dataset(x, y.astype(np.int32))


def statistics_of(spec: ModelSpec, subnetwork: Subnetwork, weights: Weights, x: Array) -> Weights:
    """Mean and variance of every batch norm of the subnetwork over ``x`` [n, *input], n ≥ 1; empty if there is none."""
    artifact = compile_model(spec, subnetwork, _PROBE, "train")
    if not any(name.startswith("statistic/") for name in artifact.manifest.outputs):
        return {}
    cut = Region(layout(spec), subnetwork).cut(weights)
    return batch_statistics(spec, TrainStep(artifact.content), cut, x)


def batch_statistics(spec: ModelSpec, probe: TrainStep, weights: Weights, x: Array) -> Weights:
    """Mean and variance of every static batch norm over ``x`` [n, *input], n ≥ 1; empty if there is none.

    HeteroFL (Diao et al., ICLR 2021) sends none and queries the data once when a model is evaluated. ``probe`` is a
    ``train`` artifact of the width of ``weights``; its labels play no part, and at learning rate 0 nothing moves. Each
    batch is normalised by itself, as while training; the law of total variance joins them.
    """
    batch = probe.batch
    y = np.zeros((batch,) if spec.labelled else (batch, spec.classes), np.int32 if spec.labelled else np.float32)
    rng = np.random.default_rng(0)  # a norm behind dropout sees what it saw in training
    shares: list[float] = []
    found: list[Weights] = []
    for start in range(0, len(x), batch):
        rows = x[start : start + batch]
        shares.append(len(rows) / len(x))
        there = (np.arange(batch) < len(rows)).astype(np.float32)
        padded = np.concatenate([rows, np.zeros((batch - len(rows), *x.shape[1:]), np.float32)])
        options = {name: rng.random(shape, np.float32) for name, shape in probe.options.items()}
        probe.load(weights)
        found.append(probe.step(padded, y, there, 0.0, options).found)
    joined: Weights = {}
    for norm in (name.removesuffix(".mean") for name in found[0] if name.endswith(".mean")):
        means, variances = (np.stack([one[f"{norm}.{kind}"] for one in found]) for kind in ("mean", "variance"))
        mean = np.average(means, 0, shares)
        joined[f"{norm}.mean"] = mean.astype(np.float32)
        joined[f"{norm}.variance"] = np.average(variances + (means - mean) ** 2, 0, shares).astype(np.float32)
    return joined


class Evaluation:
    """One model's test set and its compiled network; compiled anew for a model that was cut down."""

    def __init__(self, spec: ModelSpec, dataset: Dataset) -> None:
        self._spec = spec
        self._dataset = dataset
        self._compile(FULL)

    def _compile(self, part: Subnetwork) -> None:
        self._inference = Inference(compile_model(self._spec, part, BATCH, "infer").content)
        normed = bool(self._inference.statistics)
        self._probe = TrainStep(compile_model(self._spec, part, BATCH, "train").content) if normed else None

    def measure(self, weights: Weights, statistics: Weights | None = None) -> tuple[float, float]:
        """Accuracy and mean cross-entropy of the model's weights, or of a subnetwork's; ``WORST`` where it is not
        finite. ``statistics`` are what :meth:`statistics` gave for them, if that was asked already."""
        return self.measured(weights, self._dataset, statistics)

    def statistics(self, weights: Weights) -> Weights:
        """Of batch norms, over the test set, as these weights are measured with; empty if there are none."""
        self._fit(weights)
        return self._statistics(weights, self._dataset)

    @property
    def has_control(self) -> bool:
        return self._dataset.control is not None

    def control(self, weights: Weights) -> tuple[float, float]:
        """The same on the control set."""
        if self._dataset.control is None:
            raise ShoalError("bad-dataset", "The test set's file holds no control set")
        return self.measured(weights, self._dataset.control)

    def measured(
        self, weights: Weights, dataset: Dataset, statistics: Weights | None = None
    ) -> tuple[float, float]:
        """The same on other samples."""
        with np.errstate(invalid="ignore", over="ignore"):
            accuracy, loss = self._measure(weights, dataset, statistics)
        return accuracy, loss if math.isfinite(loss) else WORST

    def _fit(self, weights: Weights) -> None:
        """Have the network that these weights are of."""
        shapes = {name: value.shape for name, value in weights.items()}
        if shapes != self._inference.shapes:
            self._compile(counted(layout(self._spec), shapes))

    def _statistics(self, weights: Weights, dataset: Dataset) -> Weights:
        return batch_statistics(self._spec, self._probe, weights, dataset.x) if self._probe else {}

    def _measure(self, weights: Weights, dataset: Dataset, statistics: Weights | None) -> tuple[float, float]:
        self._fit(weights)
        found = self._statistics(weights, dataset) if statistics is None else statistics
        self._inference.load(weights, found)
        correct, loss = 0, 0.0
        for start in range(0, len(dataset.y), BATCH):
            y = dataset.y[start : start + BATCH]
            logits = self._inference(dataset.x[start : start + BATCH])[0].astype(np.float64)
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(shifted).sum(axis=1))
            loss += float((log_sum - shifted[np.arange(len(y)), y]).sum())
            correct += int((logits.argmax(axis=1) == y).sum())
        return correct / len(dataset.y), loss / len(dataset.y)


Found = tuple[float, float]
"""Accuracy and loss."""
Done = Callable[[str, int, Found, Found | None], None]
"""Takes run, version, and what was found on the test set and on the control set."""
Answer = Callable[[str, int, dict[str, float]], None]
"""Takes run, number of the question, and what was found; ``failed`` is 1 if nothing was."""


class Evaluator(threading.Thread):
    """Measures the newest version of every run, and answers questions.

    Versions that were overtaken while it was busy are skipped; questions are not, and go first.
    """

    def __init__(self, done: Done, answer: Answer) -> None:
        super().__init__(name="evaluator", daemon=True)
        self._done = done
        self._answer = answer
        self._newest: dict[str, tuple[Evaluation, int, Weights]] = {}
        self._questions: queue.SimpleQueue[tuple[str, int, Callable[[], dict[str, float]]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def submit(self, run: str, evaluation: Evaluation, version: int, weights: Weights) -> None:
        """Ask for a version; ``weights`` must not change any more."""
        with self._lock:
            waiting = run in self._newest
            self._newest[run] = (evaluation, version, weights)
        if not waiting:
            self._wanted.put(True)

    def compute(self, run: str, number: int, work: Callable[[], dict[str, float]]) -> None:
        """Have a question of a run answered."""
        self._questions.put((run, number, work))
        self._wanted.put(True)

    def stop(self) -> None:
        self._wanted.put(False)
        self.join()

    def run(self) -> None:
        while self._wanted.get():  # as many tokens as things to do
            try:
                question = self._questions.get_nowait()
            except queue.Empty:
                self._measure()
            else:
                self._find(*question)

    def _measure(self) -> None:
        with self._lock:
            run = next(iter(self._newest))
            evaluation, version, weights = self._newest.pop(run)
        try:
            found = evaluation.measure(weights)
            control = evaluation.control(weights) if evaluation.has_control else None
        except Exception:  # the next version is another chance
            log.exception("evaluation-failed run=%s version=%s", run, version)
        else:
            self._done(run, version, found, control)

    def _find(self, run: str, number: int, work: Callable[[], dict[str, float]]) -> None:
        try:
            found = work()
        except Exception:  # who asked has to go on without
            log.exception("computation-failed run=%s question=%s", run, number)
            found = {"failed": 1.0}
        self._answer(run, number, found)
