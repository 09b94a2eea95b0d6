"""Measuring versions on the coordinator's own test set, off the steward's thread."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from coordinator.compiler.compile import compile_model
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from device_agent.runtime import Inference
from protocol.subnetwork import FULL
from protocol.weights import Array, Weights

log = logging.getLogger(__name__)

BATCH = 256

WORST = 1e30
"""The loss of a model whose logits are not finite."""


@frozen(eq=False)
class Dataset:
    """Samples ``x`` [n, *shape] float32 and labels ``y`` [n] int32."""

    x: Array
    y: NDArray[np.int32]


def read_dataset(path: Path, spec: ModelSpec) -> Dataset:
    """A test set from an npz file with arrays x and y that fit the model; ShoalError ``bad-dataset`` otherwise."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = np.asarray(file["x"]), np.asarray(file["y"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ShoalError("bad-dataset", f"{path} is not an npz file with arrays x and y: {error}") from error
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    if x.shape[1:] != spec.input or y.shape != x.shape[:1] or not len(y):
        raise ShoalError("bad-dataset", f"{path} holds x {x.shape} and y {y.shape}, the model takes {spec.input}")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= spec.classes:
        raise ShoalError("bad-dataset", f"{path}: labels must be whole numbers from 0 to {spec.classes - 1}")
    if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise ShoalError("bad-dataset", f"{path}: x must hold finite numbers, its type is {x.dtype}")
    return Dataset(x.astype(np.float32), y.astype(np.int32))


class Evaluation:
    """One model's test set and its compiled network."""

    def __init__(self, spec: ModelSpec, dataset: Dataset) -> None:
        self._dataset = dataset
        self._inference = Inference(compile_model(spec, FULL, BATCH, "infer").content)

    def measure(self, weights: Weights) -> tuple[float, float]:
        """Accuracy and mean cross-entropy of full-size weights; ``WORST`` where it is not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            accuracy, loss = self._measure(weights)
        return accuracy, loss if math.isfinite(loss) else WORST

    def _measure(self, weights: Weights) -> tuple[float, float]:
        self._inference.load(weights)
        correct, loss = 0, 0.0
        for start in range(0, len(self._dataset.y), BATCH):
            y = self._dataset.y[start : start + BATCH]
            logits = self._inference(self._dataset.x[start : start + BATCH])[0].astype(np.float64)
            shifted = logits - logits.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(shifted).sum(axis=1))
            loss += float((log_sum - shifted[np.arange(len(y)), y]).sum())
            correct += int((logits.argmax(axis=1) == y).sum())
        return correct / len(self._dataset.y), loss / len(self._dataset.y)


Done = Callable[[str, int, float, float], None]
"""Takes run, version, accuracy and loss."""


class Evaluator(threading.Thread):
    """Measures the newest version of every run; versions that were overtaken while it was busy are skipped."""

    def __init__(self, done: Done) -> None:
        super().__init__(name="evaluator", daemon=True)
        self._done = done
        self._newest: dict[str, tuple[Evaluation, int, Weights]] = {}
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def submit(self, run: str, evaluation: Evaluation, version: int, weights: Weights) -> None:
        """Ask for a version; ``weights`` must not change any more."""
        with self._lock:
            waiting = run in self._newest
            self._newest[run] = (evaluation, version, weights)
        if not waiting:
            self._wanted.put(run)

    def stop(self) -> None:
        self._wanted.put(None)
        self.join()

    def run(self) -> None:
        while (run := self._wanted.get()) is not None:
            with self._lock:
                evaluation, version, weights = self._newest.pop(run)
            try:
                accuracy, loss = evaluation.measure(weights)
            except Exception:  # the next version is another chance
                log.exception("evaluation-failed run=%s version=%s", run, version)
            else:
                self._done(run, version, accuracy, loss)
