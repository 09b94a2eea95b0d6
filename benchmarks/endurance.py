"""What an agent holds after ten thousand updates at full speed, against what it held after the first thousand.

A small model on random data, one commit after the other, beside a coordinator on this machine. The memory is the
agent's resident set, the spool its database with log.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy import func, select

from coordinator.app import Coordinator
from coordinator.settings import Settings
from coordinator.store.models import Update

from .links import enrolled, running
from .measure import Row, Unavailable

NAME = "endurance"
FIRST: Final = 1_000
UPDATES: Final = 10_000
PATIENCE: Final = 120.0
"""Seconds without a new update."""
MODEL: Final = (
    '{"name": "small", "input": [16], "classes": 4,'
    ' "layers": [{"dense": {"units": 32}}, "relu", {"dense": {"units": 4}}]}'
)
RECIPE: Final = """
name = "endurance"
[plan]
batch = 16
steps = 1
learning_rate = 0.01
coding = "int8"
commits = 50
[aggregator]
kind = "fedbuff"
goal = 10
max_staleness = 100000
"""


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``endurance.rss`` and ``.spool``: bytes at the end in parts of those at the first mark."""
    return measure(FIRST, UPDATES, progress)


def measure(first: int, updates: int, progress: Callable[[str], None]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="shoal-endurance-") as folder:
        home = Path(folder)
        settings = Settings(home=home / "coordinator", port=0, mqtt_port=0, tls="off", heartbeat=10.0)
        with Coordinator(settings) as coordinator:
            agent = enrolled(coordinator, home)
            coordinator.steward.start_run(
                model=MODEL, recipe=RECIPE, dataset="", target=None, seed=0, by="benchmark"
            )
            with running(agent) as process:
                seen = []
                started = time.monotonic()
                for mark in (first, updates):
                    _reached(coordinator, mark)
                    seen.append((_resident(process.pid), _spool(agent)))
                    rate = mark / (time.monotonic() - started)
                    memory, spool = seen[-1]
                    progress(f"{NAME}: after {mark} updates {memory >> 10} KiB, spool {spool} B, {rate:.0f}/s")
    (memory, spool), (memory_then, spool_then) = seen[1], seen[0]
    return [
        Row(f"{NAME}.rss", memory / memory_then, f"of that after {first}", 1.01, 1.01 * memory_then / memory),
        Row(f"{NAME}.spool", spool / spool_then, f"of that after {first}", 1.01, 1.01 * spool_then / spool),
    ]


def _reached(coordinator: Coordinator, count: int) -> None:
    last, since = -1, time.monotonic()
    while last < count:
        with coordinator.database.read() as session:
            now = session.scalar(select(func.count()).select_from(Update)) or 0
        if now > last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise Unavailable(f"the agent stopped after {last} of {count} updates")
        time.sleep(0.2)


def _resident(pid: int) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10


def _spool(agent: Path) -> int:
    return sum(path.stat().st_size for path in agent.glob("spool.db*"))
