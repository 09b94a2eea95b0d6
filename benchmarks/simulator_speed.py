"""How fast the simulator is.

``.har_mlp``: simulated device-updates per second on two processes, one seed each: the MLP for 561 features (178,000
parameters) at full width, one local epoch (11 batches of 32), FedBuff, 20 devices of phones-flash, samples of made-up
numbers where SHOAL_DATA (default ../shared/data) has no har_features.npz. ``.processor`` is the processor time of one
of them, which neighbours on the machine do not change much; two cores and 50 per second leave 40 ms. ``.check_ins``:
5,000 devices check in every ten minutes of one virtual day while the run is paused, so that nothing is trained:
minutes, and ``.rss`` in MiB. The references are the bars: 50 per second, ten minutes, 2,048 MiB.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.simulator.experiment import Experiment, complete, prepare
from coordinator.simulator.rehearsal import open_rehearsal
from coordinator.simulator.world import BEGIN
from coordinator.training.inputs import Operated

from .measure import Row

NAME: Final = "simulator_speed"
UPDATES: Final = 600
BAR: Final = 50.0
DEVICES: Final = 5000
MINUTES: Final = 10.0
MIB: Final = 2048.0
RECIPE: Final = """
name = "har-mlp"
[plan]
batch = 32
steps = 11
learning_rate = 0.05
[aggregator]
kind = "fedbuff"
goal = 5
"""
RESTFUL: Final = """
name = "restful"
[[group]]
name = "board"
link = { down_kbps = 20000, up_kbps = 10000, latency = "20ms" }
availability = { check_in = "10m" }
"""


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``simulator_speed.har_mlp``, ``.har_mlp.processor``, ``.check_ins`` and ``.check_ins.rss``."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        place = Path(folder)
        speed, each = _two(place, _data(place))
        progress(f"{speed:.0f} simulated updates per second on two processes, {each:.1f} ms of processor time each")
        minutes, mib = _apart(_day, place)
        progress(f"{DEVICES} devices, one day of check-ins: {minutes:.1f} min, {mib:.0f} MiB")
    return [
        Row(f"{NAME}.har_mlp", speed, "1/s", BAR, speed / BAR),
        Row(f"{NAME}.har_mlp.processor", each, "ms", 2e3 / BAR, 2e3 / BAR / each),
        Row(f"{NAME}.check_ins", minutes, "min", MINUTES, MINUTES / minutes),
        Row(f"{NAME}.check_ins.rss", mib, "MiB", MIB, MIB / mib),
    ]


def _data(folder: Path) -> str:
    there = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / "har_features.npz"
    if there.exists():
        return str(there)
    rng = np.random.default_rng(0)
    made = folder / "made_up.npz"
    y = rng.integers(0, 6, 6728)
    np.savez(made, x=rng.standard_normal((6728, 561), np.float32) + y[:, None].astype(np.float32) / 10, y=y)
    return str(made)


def _two(folder: Path, data: str) -> tuple[float, float]:
    """Updates per second of two seeds side by side (the sum of what each does, starting up left out), and milliseconds
    of processor time that each takes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.starmap(_updates, [(folder, data, seed) for seed in (0, 1)], chunksize=1)
    return sum(rate for rate, _ in found), sum(each for _, each in found) / len(found)


def _updates(folder: Path, data: str, seed: int) -> tuple[float, float]:
    wanted = Experiment(
        recipe=complete(RECIPE), population="phones-flash", data=data, devices=20, until=f"{UPDATES} updates"
    )
    going = open_rehearsal(prepare(wanted), seed, folder / f"speed-{seed}")
    started, worked = time.perf_counter(), time.process_time()
    outcome = going.run(lambda world: None, lambda: False)
    took, work = time.perf_counter() - started, time.process_time() - worked
    going.close()
    assert outcome.result is not None
    return going.world.bench.updates / took, 1e3 * work / going.world.bench.updates


def _apart(measure: Callable[[Path], tuple[float, float]], folder: Path) -> tuple[float, float]:
    """In a process of its own, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: tuple[float, float] = pool.apply(measure, (folder,))
        return found


def _day(folder: Path) -> tuple[float, float]:
    population, samples = folder / "restful.toml", folder / "restful.npz"
    population.write_text(RESTFUL)
    rng = np.random.default_rng(0)
    np.savez(samples, x=rng.random((4 * DEVICES, 64), np.float32), y=rng.integers(0, 10, 4 * DEVICES))
    given: dict[str, Any] = {"population": str(population), "data": str(samples), "devices": DEVICES}
    wanted = Experiment(recipe=complete(RECIPE), until="1d", model="digits", **given)
    started = time.perf_counter()
    going = open_rehearsal(prepare(wanted), 0, folder / "day", keeps=False)
    going.world.desk.tell(Operated("pause", "the benchmark"), BEGIN)
    while going.world.step():
        pass
    minutes = (time.perf_counter() - started) / 60
    going.close()
    return minutes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
