"""A device as a process of its own: enrolled, started, asked how it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from device_agent import cli
from protocol.messages import Plan
from tests.device_agent.stand_in import StandIn

SPEC = ModelSpec("tiny", (8,), 3, (Dense(16), Relu(), Dense(3)))
PLAN = Plan(width=0.5, batch=4, steps=20, learning_rate=0.1, coding="int8")
ROOT = Path(__file__).parents[2]


def write(path: Path, samples: int = 30, bad: bool = False, classes: int = 3) -> None:
    """Whole or not at all, as a careful program would."""
    x = np.random.default_rng(samples).normal(size=(samples, 8)).astype(np.float32)
    x[0, 0] = np.nan if bad else 0
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, x=x, y=np.arange(samples) % classes)
    temporary.rename(path)


class Device:
    """An enrolled device, its settings, its process."""

    def __init__(self, folder: Path) -> None:
        self.home, self.data, self.log = folder / "home", folder / "data", folder / "log"
        self.data.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def settings(self, more: str = "") -> None:
        self.home.mkdir(exist_ok=True)
        table = '[data]\nsource = "npz"\nsettle = 0.0\nevery = 0.2\n'
        (self.home / "agent.toml").write_text(f"{table}path = {json.dumps(str(self.data))}\n{more}")

    def enrol(self, coordinator: StandIn) -> None:
        if not (self.home / "agent.toml").exists():
            self.settings()
        arguments = ["--url", coordinator.url, "--token", coordinator.token, "--home", str(self.home)]
        assert cli.main(["enrol", *arguments]) == 0

    def start(self, coordinator: StandIn, **environ: str) -> None:
        if not (self.home / "identity.json").exists():
            self.enrol(coordinator)
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(self.home)]
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, env=variables)

    def stop(self) -> str:
        """End it politely; what it logged."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0
        log = self.log.read_text()
        assert "Traceback" not in log
        return log

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def status(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["status", "--json", "--home", str(self.home)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def until(self, capsys: pytest.CaptureFixture[str], test: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that passes ``test``."""
        found: dict[str, Any] = {}
        for _ in range(300):
            # Until the agent has a spool there is nothing to ask it.
            if (self.home / "status.json").exists() and test(found := self.status(capsys)):
                return found
            time.sleep(0.05)
        raise AssertionError(found)


def kinds(coordinator: StandIn) -> list[str]:
    return [event.kind for event in coordinator.events]
