"""Updates of 90,000 bytes as fast as they can be stored: check-in, assignment, delivery, aggregation and commit.

Fifty boards work without rest, and every second one of them loses its connection without a word. What has a receipt
must be in the ledger once, and no version may have merged anything twice. Boards and coordinator share the machine:
what the coordinator and its broker need of a core per update stands in ``core_ms``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

from sqlalchemy import func, select

from coordinator.store.models import ModelVersion, Update

from .ground import BROKERS, Ground, ground
from .measure import Row
from .swarm import Board, body, model

NAME = "update_stream"
DEVICES = 50
SIZE = 90_000
SECONDS = 20.0
WARM_UP = 3.0
BAR = 300.0
RECIPE = f"""
name = "stream"
[plan]
batch = 16
steps = 1
learning_rate = 0.1
coding = "float32"
lease = 300
[aggregator]
kind = "fedbuff"
goal = {DEVICES}
max_staleness = 1000000
[[policy]]
kind = "fixed"
"""


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``update_stream.<broker>.per_s``, ``.core_ms``, ``.lost`` and ``.twice``; ratio = value / bar."""
    rows = []
    for broker in BROKERS:
        with ground(broker, DEVICES) as place:
            rate, core, receipts = asyncio.run(_stream(place))
            lost, twice = _books(place, receipts)
        bar = BAR if broker == "mosquitto" else None
        rows += [
            Row(f"{NAME}.{broker}.per_s", rate, "1/s", bar, rate / bar if bar else None),
            Row(f"{NAME}.{broker}.core_ms", core, "ms"),
            Row(f"{NAME}.{broker}.lost", lost, "updates"),
            Row(f"{NAME}.{broker}.twice", twice, "updates"),
        ]
        progress(f"{broker}: {rate:.0f}/s, {core:.2f} ms of a core each, {lost} lost, {twice} twice")
    return rows


async def _stream(place: Ground) -> tuple[float, float, list[str]]:
    """Stored updates per second, milliseconds of a core for each, and all receipts."""
    spec = model(SIZE)
    content, names = body(spec)
    place.api.post("runs", body={"model": spec, "recipe": RECIPE, "dataset": "", "seed": 1})
    boards = [Board(place.door(name), content, names) for name in place.secrets]
    await asyncio.gather(*(board.join(eager=True) for board in boards))
    await asyncio.sleep(WARM_UP)
    stored, used, began = _stored(boards), place.seconds(), time.perf_counter()
    chance = Random(0)
    while time.perf_counter() - began < SECONDS:
        await asyncio.sleep(1.0)
        board = chance.choice(boards)
        board.break_off()
        await board.reconnect()
    stored, used, took = _stored(boards) - stored, place.seconds() - used, time.perf_counter() - began
    for board in boards:
        board.rest()
    await asyncio.sleep(3.0)  # what is on its way arrives
    return stored / took, 1000 * used / max(1, stored), [one for board in boards for one in board.stored]


def _stored(boards: list[Board]) -> int:
    return sum(len(board.stored) for board in boards)


def _books(place: Ground, receipts: list[str]) -> tuple[int, int]:
    """Receipts without an entry, and updates that count twice."""
    database = place.database()
    with database.read() as session:
        entries = list(session.scalars(select(Update.assignment_id)))
        applied = session.scalar(select(func.count()).where(Update.outcome == "applied")) or 0
        merged = session.scalar(select(func.sum(ModelVersion.updates))) or 0
    database.close()
    twice = len(entries) - len(set(entries)) + len(receipts) - len(set(receipts)) + abs(int(merged) - applied)
    return len(set(receipts) - set(entries)), twice
