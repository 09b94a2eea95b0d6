"""Synchronous rounds in which nobody trains: what the way there and back costs, the commit to SQL included.

Fifty boards check in at once, are given work, and send an update at once; the round is over when the last of them has
its receipt, which follows the commit of the new version. Boards and coordinator share the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from .ground import BROKERS, Ground, ground
from .measure import Row, spread
from .swarm import Board, body, model

NAME = "noop_round"
DEVICES = 50
SIZES = {"small": 90_000, "chunked": 1_000_000}
ROUNDS = {"small": 40, "chunked": 12}
BAR = 0.5
"""Seconds for 19 of 20 rounds with small updates."""
RECIPE = f"""
name = "noop"
[plan]
batch = 16
steps = 1
learning_rate = 0.1
coding = "float32"
lease = 300
[aggregator]
kind = "fedavg"
goal = {DEVICES}
timeout = 0
[[policy]]
kind = "cohort"
goal = {DEVICES}
over_selection = 0
[[policy]]
kind = "fixed"
"""


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``noop_round.<size>.<broker>.p50_s`` and ``.p95_s``; ratio = bar / value."""
    rows = []
    for broker in BROKERS:
        for size, count in SIZES.items():
            with ground(broker, DEVICES) as place:
                seconds = asyncio.run(_rounds(place, count, ROUNDS[size]))
            for name, value in (("p50_s", statistics.median(seconds)), ("p95_s", _p95(seconds))):
                bar = BAR if size == "small" and name == "p95_s" else None
                full = f"{NAME}.{size}.{broker}.{name}"
                rows.append(Row(full, value, "s", bar, bar / value if bar else None, None if bar else spread(seconds)))
                progress(f"{full}: {value:.3f} s")
    return rows


async def _rounds(place: Ground, size: int, rounds: int) -> list[float]:
    spec = model(size)
    content, names = body(spec)
    place.api.post("runs", body={"model": spec, "recipe": RECIPE, "dataset": "", "seed": 1})
    settled = asyncio.Semaphore(0)
    boards = [Board(place.door(name), content, names, settled.release) for name in place.secrets]
    await asyncio.gather(*(board.join(eager=False) for board in boards))
    seconds = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        for board in boards:
            board.once()
        for _ in boards:
            await asyncio.wait_for(settled.acquire(), 60)
        seconds.append(time.perf_counter() - began)
    if any(board.refused for board in boards):
        raise AssertionError(f"{sum(board.refused for board in boards)} updates were refused")
    return seconds[2:]  # the first ones compile and connect


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
