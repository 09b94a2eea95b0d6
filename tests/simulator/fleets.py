"""Small experiments that tests share."""

from __future__ import annotations

from pathlib import Path

from coordinator.simulator.experiment import Experiment, complete, prepare
from coordinator.simulator.rehearsal import Rehearsal, open_rehearsal

ROUGH = """
name = "rough"
[[group]]
name = "slow"
compute = { mflops = 20, jitter = 0.2, change_every = "1s", change_low = 0.3, change_high = 1.0 }
link = { down_kbps = 2000, up_kbps = 800, deviation = 0.5, latency = "80ms", outage = 0.1, outage_length = "1s" }
availability = { on = "3s", away = "1s", crashes = 10000, restart = "500ms" }
[[group]]
name = "fast"
compute = { mflops = 100 }
link = { down_kbps = 20000, up_kbps = 8000, latency = "20ms" }
energy = { training_watts = 6, battery_wh = 0.002, charging_watts = 4.0 }
"""
"""Devices that slow down, come and go, crash and run out of battery."""


def experiment(folder: Path, *, recipe="whale-fl", until="4s", population="", **given) -> Experiment:
    """Of digits; on the rough fleet unless a population is named."""
    path = folder / "rough.toml"
    path.write_text(ROUGH)
    return Experiment(
        recipe=complete(recipe),
        population=population or str(path),
        data="digits",
        until=until,
        **{"devices": 8, "split": "dirichlet:0.5", **given},
    )


def rehearsal(wanted: Experiment, home: Path, *, seed: int = 0, keeps: bool = False) -> Rehearsal:
    return open_rehearsal(prepare(wanted), seed, home, keeps=keeps)


def run(wanted: Experiment, home: Path, *, seed: int = 0) -> dict:
    """The result of an uninterrupted simulation."""
    going = rehearsal(wanted, home, seed=seed)
    try:
        return going.run(lambda world: None, lambda: False).result
    finally:
        going.close()
