"""Runs inside a Debian of another architecture: three steps of every model against the host's weights.

    python3 check.py FOLDER RUNTIME…

FOLDER holds what :mod:`tests.arm.goldens` wrote. Prints one JSON line per model and runtime; exit code 1 if one is off.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from device_agent.runtime import TrainStep, backends

TOLERANCE = 1e-5
"""Of the greatest weight: float32 sums in another order, over three steps."""


def check(folder: Path, model: str, runtime: str) -> dict[str, object]:
    """Greatest difference of any weight after the steps, as a share of the greatest weight of its tensor."""
    content = (folder / f"{model}.{'json' if runtime == 'numpy' else 'tflite'}").read_bytes()
    with np.load(folder / f"{model}.npz") as golden:
        step = TrainStep(content, runtime)
        step.load({name[2:]: golden[name] for name in golden.files if name.startswith("w/")})
        started = time.perf_counter()
        for x, y, weight in zip(golden["x"], golden["y"], golden["sample_weight"]):  # noqa: B905 - as long by design
            step.step(x, y, weight, float(golden["rate"]))
        seconds = time.perf_counter() - started
        after = step.weights()
        errors = {name: np.abs(after[name] - golden[f"after/{name}"]).max() for name in after}
        worst = max(float(error / np.abs(golden[f"after/{name}"]).max()) for name, error in errors.items())
    return {"model": model, "runtime": runtime, "error": worst, "seconds": round(seconds, 2), "ok": worst <= TOLERANCE}


def main() -> int:
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    machine = f"{platform.machine()} {'.'.join(platform.python_version_tuple()[:2])}"
    missing = [name for name in wanted if name not in backends()]
    if missing:
        print(json.dumps({"machine": machine, "missing": missing, "ok": False}))
        return 1
    failed = 0
    for model in sorted(path.stem for path in folder.glob("*.npz")):
        for runtime in wanted:
            row = check(folder, model, runtime)
            failed += not row["ok"]
            print(json.dumps({"machine": machine, **row}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
