"""A coordinator and its agents as processes of their own: started, killed and asked like those in the field."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field

from coordinator.cli.client import Client, connect
from coordinator.demo.fleet import Agent, Tier
from coordinator.settings import sqlite_url
from coordinator.store.database import Database

PATIENCE = 60.0
CLASSES, INPUT = 4, 16
SHOAL = (sys.executable, "-c", "from coordinator.cli import main; main()")
MODEL = json.dumps(
    {
        "name": "clouds",
        "input": [INPUT],
        "classes": CLASSES,
        "layers": [{"dense": {"units": 8192}}, "relu", {"dense": {"units": CLASSES}}],
    }
)
"""Wide enough that a full update travels in chunks and a narrow one in one message."""
RECIPE = """
name = "quick"
[plan]
batch = 16
steps = 8
learning_rate = 0.05
coding = "int8"
lease = 300
[aggregator]
kind = "fedbuff"
goal = 3
max_staleness = 1000
[[policy]]
kind = "heterofl"
widths = { small = 0.125, middle = 0.5 }
"""
TIERS = (Tier("small", "small", 20.0), Tier("middle", "middle", 20.0), Tier("large", "large", 20.0))


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait for what must come true, and return it."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {patience:g} s still not: {what}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    """A port that stays free while its owner is restarted: outside the range of outgoing connections."""
    while True:
        port = random.randint(15_000, 31_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def clouds(path: Path, samples: int, seed: int) -> Path:
    """Four Gaussian clouds in 16 dimensions, as training data or test set."""
    centres = np.random.default_rng(0).normal(0, 1, (CLASSES, INPUT))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, samples).astype(np.int32)
    x = (centres[y] + rng.normal(0, 0.8, (samples, INPUT))).astype(np.float32)
    np.savez(path, x=x, y=y, classes=np.int32(CLASSES))
    return path


@define
class Server:
    """``shoal serve`` in a home of its own; it comes back on the same ports."""

    home: Path
    options: tuple[str, ...] = ()
    port: int = field(factory=free_port)
    mqtt_port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    """Of its database, unless that is the file in its home."""

    def start(self) -> None:
        """Return when it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        process = self.process = self.launch()
        until(lambda: self._here(process), f"the coordinator answers ({self.log.read_text()[-2000:]})")

    @staticmethod
    def attempt(*options: str) -> subprocess.CompletedProcess[str]:
        """Start one that must not come up, and see what it says."""
        command = [*SHOAL, "serve", *options]
        return subprocess.run(command, env=single_threaded(), capture_output=True, text=True, timeout=30)

    def launch(self) -> subprocess.Popen[bytes]:
        ports = ("--port", str(self.port), "--mqtt-port", str(self.mqtt_port))
        kept = ("--database", self.url) if self.url else ()
        command = [*SHOAL, "serve", "--home", str(self.home), *ports, "--heartbeat", "0.3", *kept, *self.options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=single_threaded())

    @property
    def log(self) -> Path:
        return self.home / "coordinator.log"

    def kill(self) -> None:
        """As a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                assert self.process.wait(20) == 0
            finally:
                self.kill()

    @property
    def api(self) -> Client:
        return connect(self.home, None)

    def database(self) -> Database:
        """Beside the coordinator, for reading."""
        return Database(self.url or sqlite_url(self.home / "shoal.db"))

    def token(self, group: str, uses: int = 1) -> str:
        return str(self.api.post("tokens", body={"group": group, "uses": uses, "ttl": 600.0})["token"])

    def start_run(self, recipe: str = RECIPE, model: str = MODEL, measured: bool = True) -> str:
        """Without ``measured`` the coordinator has no data of its own."""
        test = str(clouds(self.home / "test.npz", 400, seed=1)) if measured else ""
        body = {"model": model, "recipe": recipe, "dataset": test, "seed": 3}
        return str(self.api.post("runs", body=body)["row"]["id"])

    def version(self, run: str) -> int:
        return int(self.api.get("runs", run)["row"]["version"])

    def advances(self, run: str, by: int = 1) -> None:
        """The run goes on: wait for new versions."""
        wanted = self.version(run) + by
        until(lambda: self.version(run) >= wanted, f"{run} reaches version {wanted}")

    def _here(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.log.read_text()[-2000:]
        try:
            return bool(json.loads((self.home / "coordinator.json").read_text())["pid"] == process.pid)
        except (OSError, ValueError):
            return False


def mosquitto(server: Server) -> int | None:
    """The process id of its broker, None while there is none."""
    assert server.process is not None
    found = subprocess.run(["pgrep", "-P", str(server.process.pid), "mosquitto"], capture_output=True, text=True)
    return int(found.stdout.split()[0]) if found.stdout else None


def single_threaded() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@define
class Fleet:
    """A coordinator with agents, one of each tier. Nothing of it outlives ``closing``."""

    server: Server
    closing: ExitStack
    agents: list[Agent] = field(factory=list)

    def join(self, tiers: tuple[Tier, ...] = TIERS) -> list[Agent]:
        """Enrol one agent of every tier, all at once; they are not started."""
        new = [Agent(f"{tier.label}-board", tier, self.server.home / "agents" / tier.label) for tier in tiers]
        joining = []
        for number, agent in enumerate(new, 10 + len(self.agents)):
            data = clouds(self.server.home / f"{agent.name}.npz", 300, seed=number)
            self.closing.callback(agent.kill)
            process = agent.enrol(self.server.api.url, self.server.token(agent.tier.group), data)
            self.closing.callback(process.kill)
            joining.append((agent, process))
        for agent, process in joining:
            assert process.wait(60) == 0, agent.log.read_text()
        self.agents += new
        return new


def told(agent: Agent, what: str) -> list[str]:
    """The assignments that an agent's log names in lines of one kind, e.g. ``settled``, in order."""
    return [assignment for assignment, _ in named(agent, what)]


def named(agent: Agent, what: str) -> list[tuple[str, int]]:
    """The same with the commits these lines name, 0 where they name none."""
    lines = agent.log.read_text(errors="replace").splitlines()
    found = [line.partition(f" {what} assignment=")[2].split() for line in lines]
    return [(words[0], _commit(words)) for words in found if words]


def _commit(words: list[str]) -> int:
    numbers = [word.removeprefix("commit=") for word in words if word.startswith("commit=")]
    return int(numbers[0]) if numbers and numbers[0].isdecimal() else 0
