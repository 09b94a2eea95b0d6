"""How fast this board trains: steps of a small reference model, whose compiled forms come with the agent.

The model (``reference/``: a convolutional network for 28×28 grey images, batches of 16, at four widths) is the same
on every board, so that the milliseconds compare boards, runtimes and widths before a device has any work.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from . import runtime
from .identity import write_durably
from .runtime import TrainStep

WIDTHS = ("1", "0.5", "0.25", "0.125")
FILE = "speed.json"
_FOLDER = Path(__file__).parent / "reference"
_WARM, _STEPS, _SECONDS = 2, 15, 0.25
Speeds = dict[str, dict[str, float]]
"""Backend to width to milliseconds."""


def reference(backend: str, width: str) -> bytes:
    """The artifact of the reference model that ``backend`` reads."""
    return (_FOLDER / f"{width}.{'json' if backend == runtime.NUMPY else 'tflite'}").read_bytes()


def step_of(backend: str, width: str = "1", threads: int = 1) -> TrainStep:
    """A training step of the reference model with weights to train.

    Raises RuntimeUnavailable or ArtifactError where the runtime does not work.
    """
    step = TrainStep(reference(backend, width), backend, threads)
    rng = np.random.default_rng(0)
    step.load({name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in step.shapes.items()})
    return step


def run(step: TrainStep) -> float:
    """One step on random numbers; its mean loss."""
    rng = np.random.default_rng(1)
    x = rng.random((step.batch, *step.input_shape), np.float32)
    y = rng.integers(0, 10, step.batch).astype(np.int32)
    done = step.step(x, y, np.ones(step.batch, np.float32), 0.01, {})
    return done.loss_sum / step.batch


def measure(backend: str, threads: int = 1) -> dict[str, float]:
    """Median milliseconds of a step at each width."""
    found = {}
    for width in WIDTHS:
        step = step_of(backend, width, threads)
        for _ in range(_WARM):
            run(step)
        times: list[float] = []
        while len(times) < 3 or (len(times) < _STEPS and sum(times) < _SECONDS):
            started = time.perf_counter()
            run(step)
            times.append(time.perf_counter() - started)
        found[width] = round(1000 * float(np.median(times)), 3)
    return found


def measure_all(threads: int = 1) -> Speeds:
    """Every runtime that works; those that do not are left out."""
    found = {}
    for backend in runtime.backends():
        try:
            found[backend] = measure(backend, threads)
        except (runtime.RuntimeUnavailable, runtime.ArtifactError):
            continue
    return found


def remember(home: Path, speeds: Speeds) -> None:
    write_durably(home / FILE, json.dumps(speeds).encode())


def remembered(home: Path) -> Speeds:
    """What was measured in this home, nothing if that cannot be read."""
    try:
        found = json.loads((home / FILE).read_text())
        return {str(b): {str(w): float(ms) for w, ms in by.items()} for b, by in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def ranked(backends: list[str], speeds: Speeds) -> list[str]:
    """``backends``, the fastest at full width first; those never measured keep their order behind them.

    NumPy stays last whatever was measured: it reads programs, not model files, and is for boards without a runtime.
    """

    def place(backend: str) -> tuple[bool, float]:
        return backend == runtime.NUMPY, speeds.get(backend, {}).get("1", float("inf"))

    return sorted(backends, key=place)
