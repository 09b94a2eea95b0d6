"""Seeds on the machines of a Ray cluster: a task of one core for each.

``RAY_ADDRESS`` names the cluster; without it Ray is started on this machine. All machines see the folder of the
results, and the file of the data, under the same path. Experiments and reports travel as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define

from coordinator.errors import ShoalError
from coordinator.simulator.crew import SINGLE, Report, Told, clear, finished, work
from coordinator.simulator.experiment import Experiment

PATIENCE = 60.0
"""Seconds that tasks have for their checkpoints."""


@define
class Cluster:
    """Simulates seeds as Ray's tasks; ``cores`` is what Ray may use of this machine where it is started here."""

    experiment: Experiment
    folder: Path
    cores: int

    def run(self, seeds: Sequence[int], told: Told) -> bool:
        """As :meth:`coordinator.simulator.crew.Crew.run`."""
        ray = _ray()
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.cores, "include_dashboard": False}
        environment = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **SINGLE}}
        try:
            ray.init(log_to_driver=False, logging_level="error", runtime_env=environment, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ShoalError("bad-request", f"The Ray cluster cannot be used: {error}") from error
        try:
            return self._run(ray, [seed for seed in seeds if seed not in finished(self.folder, seeds)], told)
        finally:
            ray.shutdown()

    def _run(self, ray: Any, seeds: Sequence[int], told: Told) -> bool:
        from ray.util.queue import Queue

        said = Queue()
        task = ray.remote(num_cpus=1, max_retries=0)(_simulate)
        given = json.dumps(self.experiment.to_json()), str(self.folder.resolve()), said
        running = {task.remote(seed, *given): seed for seed in seeds}
        try:
            while running:
                ended, _ = ray.wait(list(running), timeout=0.5)
                self._listen(said, told)
                for reference in ended:
                    seed = running.pop(reference)
                    self._settle(ray, reference, seed)
            self._listen(said, told)
        except KeyboardInterrupt:
            for reference in running:
                ray.cancel(reference)  # as Ctrl-C would: it makes a checkpoint and ends
            ray.wait(list(running), num_returns=len(running), timeout=PATIENCE)
            for seed in running.values():
                told(Report(seed, "interrupted"))
            return False
        return len(finished(self.folder, seeds)) == len(seeds)

    def _listen(self, said: Any, told: Told) -> None:
        """Take what tasks say."""
        for text in said.get_nowait_batch(said.qsize()):
            report = Report(**json.loads(text))
            told(report)
            if report.state == "failed":
                raise ShoalError("internal", f"Seed {report.seed}: {report.text}")

    def _settle(self, ray: Any, reference: Any, seed: int) -> None:
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            raise ShoalError("internal", f"Seed {seed} ended with no word: {error}") from error
        if finished(self.folder, [seed]):
            clear(self.folder, seed)


def _simulate(seed: int, experiment: str, folder: str, said: Any) -> None:
    """A task: one seed on whichever machine Ray has chosen."""
    work(experiment, seed, folder, said.put)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ShoalError("bad-request", "--engine ray needs Ray: pip install 'shoal[ray]'") from error
    return ray
