"""What the host computes: artifacts of the zoo, samples, and the weights after three steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import initial_weights
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import TrainStep

MODELS = ("mlp", "cnn", "cnn1d", "lstm")
STEPS, BATCH, RATE = 3, 8, 0.1
MOVED = 0.01
"""A golden that stands still proves nothing."""


def write(folder: Path) -> None:
    """``<model>.tflite``, ``.json`` (the NumPy runtime's program) and ``.npz`` of every model."""
    for model in MODELS:
        spec, rng = ZOO[model], np.random.default_rng(0)
        artifact = compile_model(spec, batch=BATCH)
        (folder / f"{model}.tflite").write_bytes(artifact.content)
        (folder / f"{model}.json").write_bytes(artifact.program)
        weights = initial_weights(spec, rng)
        x = rng.standard_normal((STEPS, BATCH, *spec.input)).astype(np.float32)
        y = rng.integers(0, spec.classes, (STEPS, BATCH)).astype(np.int32)
        present = np.ones((STEPS, BATCH), np.float32)
        present[-1, -3:] = 0  # a padded last batch
        step = TrainStep(artifact.content)
        step.load(weights)
        for row in range(STEPS):
            step.step(x[row], y[row], present[row], RATE)
        after = step.weights()
        moved = max(float(np.abs(after[name] - weights[name]).max()) for name in after)
        if moved < MOVED:
            raise RuntimeError(f"the golden of {model} moved by {moved:.4f} only, expected {MOVED}")
        named = {f"w/{name}": value for name, value in weights.items()}
        named |= {f"after/{name}": value for name, value in after.items()}
        np.savez(folder / f"{model}.npz", x=x, y=y, sample_weight=present, rate=np.float32(RATE), **named)
