"""The demo's devices: real agents as processes of their own, in four speed tiers.

All run on this machine's processor. What makes one slower than another is stated openly: pacing. Every agent measures
its own training steps and sleeps so that each takes ``pace`` times as long. The paces have the ratios of 7-zip's
ratings of the boards (Zero 2 W 3,030, 3B+ 3,670, 4B 6,550, 5 about 10,900 MIPS).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import define, frozen

from coordinator.errors import ShoalError


@frozen
class Tier:
    """A kind of board: ``group`` is its name in recipes, ``label`` on the screen."""

    group: str
    label: str
    pace: float


FASTEST = 250.0
TIERS = (
    Tier("zero2", "Pi Zero 2", FASTEST * 3.6),
    Tier("pi3", "Pi 3", FASTEST * 3.0),
    Tier("pi4", "Pi 4", FASTEST * 1.67),
    Tier("pi5", "Pi 5", FASTEST),
)


@define
class Agent:
    """One agent process."""

    name: str
    tier: Tier
    home: Path
    process: subprocess.Popen[bytes] | None = None

    def enrol(self, url: str, token: str, data: Path) -> subprocess.Popen[bytes]:
        options = ["--url", url, "--token", token, "--data", str(data), "--name", self.name, "--home", str(self.home)]
        return self._start("enrol", *options)

    def run(self) -> None:
        """Start training; the agent's log goes to ``agent.log`` in its home."""
        self.process = self._start("run", "--home", str(self.home))

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def log(self) -> Path:
        return self.home / "agent.log"

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "device_agent.cli", *arguments]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment())

    def _environment(self) -> Mapping[str, str]:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        own = {"SHOAL_AGENT_PACE": str(self.tier.pace), "SHOAL_AGENT_HOME": str(self.home)}
        return {**os.environ, **single, **own}


def muster(home: Path, devices: int) -> list[Agent]:
    """Agents for the tiers in turn, e.g. pi-zero2-1, pi3-1, pi4-1, pi5-1, pi-zero2-2, …"""
    agents = []
    for number in range(devices):
        tier = TIERS[number % len(TIERS)]
        name = f"{tier.label.lower().replace(' ', '-')}-{number // len(TIERS) + 1}"
        agents.append(Agent(name, tier, home / "agents" / name))
    return agents


def enrol(
    agents: list[Agent], url: str, tokens: Mapping[str, str], data: list[Path], said: Callable[[str], None]
) -> None:
    """Enrol all agents; ``tokens`` by group. ShoalError if one is refused."""
    begun = time.monotonic()
    enrolments = [
        (agent, agent.enrol(url, tokens[agent.tier.group], path)) for agent, path in zip(agents, data, strict=True)
    ]
    for number, (agent, process) in enumerate(enrolments, 1):
        if process.wait() != 0:
            for _, other in enrolments:
                other.kill()
            last = agent.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word from it"]
            raise ShoalError("internal", f"Agent {agent.name} could not enrol: {last[0]}")
        if time.monotonic() - begun > 1:
            said(f"{number} of {len(agents)} devices enrolled")
