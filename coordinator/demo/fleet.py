"""The demo's devices: real agents as processes of their own, in four speed tiers.

All run on this machine's processor. What makes one slower than another is stated openly: pacing. Every agent measures
its own training steps and sleeps so that each takes ``pace`` times as long. The paces have the ratios of 7-zip's
ratings of the boards (Zero 2 W 3,030, 3B+ 3,670, 4B 6,550, 5 about 10,900 MIPS). A model whose steps cost more than
those of the digits is paced less, with the same ratios, so that nobody waits for minutes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import define, evolve, frozen

from coordinator.compiler.cost import flops
from coordinator.compiler.spec import ModelSpec
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError


@frozen
class Tier:
    """A kind of board: ``group`` is its name in recipes, ``label`` on the screen, ``pace`` that for the digits."""

    group: str
    label: str
    pace: float


FASTEST = 250.0
"""Pace of the fastest tier on the digits, whose steps take a fraction of a millisecond."""
TIERS = (
    Tier("zero2", "Pi Zero 2", FASTEST * 3.6),
    Tier("pi3", "Pi 3", FASTEST * 3.0),
    Tier("pi4", "Pi 4", FASTEST * 1.67),
    Tier("pi5", "Pi 5", FASTEST),
)
_PR_SET_PDEATHSIG = 1


def pace(spec: ModelSpec, devices: int) -> float:
    """What the fastest tier's steps are stretched by: less for costlier models, never more than FASTEST.

    Never less than the number of devices either: together they leave this machine half of one processor then, and what
    one of them measures as its own time is not another one's.
    """
    return min(FASTEST, max(FASTEST * flops(ZOO["digits"]) / max(1, flops(spec)), float(devices)))


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
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                preexec_fn=_last_will(),
            )

    def _environment(self) -> Mapping[str, str]:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        own = {"SHOAL_AGENT_PACE": str(self.tier.pace), "SHOAL_AGENT_HOME": str(self.home)}
        return {**os.environ, **single, **own}


def _last_will() -> Callable[[], None] | None:
    """What a child does first so that it dies with this process however that ends, where the system can do it."""
    if sys.platform != "linux":
        return None
    try:
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: little may be done after it
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return die_with_parent


def muster(home: Path, devices: int, fastest: float) -> list[Agent]:
    """Agents for the tiers in turn, e.g. pi-zero2-1, pi3-1, pi4-1, pi5-1, pi-zero2-2, …; ``fastest`` is the pace of
    the fastest tier."""
    agents = []
    for number in range(devices):
        tier = TIERS[number % len(TIERS)]
        paced = evolve(tier, pace=tier.pace * fastest / FASTEST)
        name = f"{tier.label.lower().replace(' ', '-')}-{number // len(TIERS) + 1}"
        agents.append(Agent(name, paced, home / "agents" / name))
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
