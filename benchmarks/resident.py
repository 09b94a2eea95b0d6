"""``python -m benchmarks.resident MODEL RUNTIME [ARTIFACT]``: trains a little in a process of its own and prints the
most memory it held, in MiB. RUNTIME is one of the agent's, or torch.

Nothing is imported but what this one way of training needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 32
STEPS = 20


def peak(model: str, runtime: str, artifact: bytes = b"") -> float:
    """MiB at the peak (VmHWM) of a process that imports, loads and takes some steps of 32 random samples."""
    # As on a board: without the settings of malloc that timings need.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with tempfile.NamedTemporaryFile(suffix=".artifact") as file:
        file.write(artifact)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.resident", model, runtime, file.name]
        done = subprocess.run(command, env=kept, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _device(artifact: Path, runtime: str) -> Callable[[], object]:
    from device_agent import memory
    from device_agent.runtime import TrainStep

    memory.be_frugal()
    step = TrainStep(artifact.read_bytes(), runtime)
    rng = np.random.default_rng(0)
    step.load({name: 0.05 * rng.standard_normal(shape, np.float32) for name, shape in step.shapes.items()})
    x = rng.standard_normal((BATCH, *step.input_shape), np.float32)
    y, ones = np.zeros(BATCH, np.int32), np.ones(BATCH, np.float32)
    return lambda: step.step(x, y, ones, 0.01)


def _torch(model: str) -> Callable[[], object]:
    import torch

    from benchmarks.eager import eager_step
    from coordinator.compiler.shapes import initial_weights
    from coordinator.compiler.zoo import ZOO

    torch.set_num_threads(1)
    spec, rng = ZOO[model], np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *spec.input), np.float32)
    return eager_step(torch, spec, initial_weights(spec, rng), x, np.zeros(BATCH, np.int32), 0.01)


def _main(model: str, runtime: str, artifact: str) -> None:
    step = _torch(model) if runtime == "torch" else _device(Path(artifact), runtime)
    for _ in range(STEPS):
        step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    _main(*sys.argv[1:])
