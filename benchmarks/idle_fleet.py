"""A large fleet without work: what heartbeats and check-ins cost, and how soon silence is noticed.

Every device is connected, sends a heartbeat every ten seconds and checks in as often as it is told to. Of a core, what
coordinator and broker use together; the devices live in this process and are not counted.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from random import Random

from attrs import define, field
from sqlalchemy import select

from coordinator.broker.driver import Door
from coordinator.store.models import StatusChange
from protocol import topics
from protocol.messages import FEATURES, PROTOCOL, CheckIn, Retry, Telemetry
from protocol.wire import decode, encode

from .ground import Ground, ground
from .measure import Row
from .wire import Wire

NAME = "idle_fleet"
DEVICES = 5000
HEARTBEAT = 10.0
SECONDS = 60.0
SILENT = 50
BARS = {"core_share": 0.3, "silent_noticed_s": 25.0}
_JOINING = 64  # at the same time


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``idle_fleet.core_share`` and ``.silent_noticed_s`` (the latest of fifty); ratio = bar / value."""
    with ground("mosquitto", DEVICES, heartbeat=HEARTBEAT) as place:
        share, noticed = asyncio.run(_live(place, progress))
    values = {"core_share": (share, "cores"), "silent_noticed_s": (max(noticed), "s")}
    rows = [
        Row(f"{NAME}.{name}", value, unit, BARS[name], BARS[name] / value) for name, (value, unit) in values.items()
    ]
    progress(f"{share:.3f} of a core, silence noticed after {statistics.median(noticed):.1f} to {max(noticed):.1f} s")
    return rows


async def _live(place: Ground, progress: Callable[[str], None]) -> tuple[float, list[float]]:
    devices = [_Device(place.door(name), Random(name)) for name in place.secrets]
    room, began = asyncio.Semaphore(_JOINING), time.perf_counter()

    async def join(device: _Device) -> None:
        async with room:
            await device.join()

    await asyncio.gather(*map(join, devices))
    progress(f"{len(devices)} devices connected after {time.perf_counter() - began:.1f} s")
    await asyncio.sleep(2 * HEARTBEAT)
    used, began = place.seconds(), time.perf_counter()
    await asyncio.sleep(SECONDS)
    share = (place.seconds() - used) / (time.perf_counter() - began)
    silent = {device.door.user: device.silence() for device in devices[:SILENT]}
    await asyncio.sleep(BARS["silent_noticed_s"] + 10)
    database = place.database()
    with database.read() as session:
        rows = session.execute(
            select(StatusChange.device_id, StatusChange.at).where(
                StatusChange.new == "late", StatusChange.device_id.in_(silent), StatusChange.at > min(silent.values())
            )
        ).all()
    database.close()
    if len(rows) != SILENT:
        raise AssertionError(f"{len(rows)} of {SILENT} silent devices were noticed")
    return share, [row.at - silent[row.device_id] for row in rows]


@define(eq=False)
class _Device:
    door: Door
    chance: Random
    _wire: Wire = field(init=False)
    _number: int = 0
    _last: float = 0.0
    _speaking: bool = True

    async def join(self) -> None:
        self._wire = Wire(self._heard)
        await self._wire.open(self.door.host, self.door.port, self.door.user, self.door.password, f"{self.door.user}.1")
        leaves = [leaf for leaf, channel in topics.CHANNELS.items() if channel.direction == "down"]
        await self._wire.subscribe(*(topics.device_topic(self.door.user, leaf) for leaf in leaves))
        loop = asyncio.get_running_loop()
        loop.call_later(self.chance.uniform(0, HEARTBEAT), self._beat)
        loop.call_later(self.chance.uniform(0, HEARTBEAT), self._check_in)

    def silence(self) -> float:
        """Say no more; when the last word was, in seconds since 1970."""
        self._speaking = False
        return self._last

    def _beat(self) -> None:
        if not self._speaking:
            return
        self._say("telemetry", encode(_telemetry()))
        asyncio.get_running_loop().call_later(HEARTBEAT, self._beat)

    def _check_in(self) -> None:
        if not self._speaking:
            return
        self._number += 1
        offer = CheckIn(
            id=f"boot.{self._number}", protocol=PROTOCOL, agent="bench", runtime="none", features=FEATURES,
            samples=100, input=(64,), classes=10, held=None, unsent=(),
        )  # fmt: skip
        self._say("check-in", encode(offer))

    def _say(self, leaf: str, payload: bytes) -> None:
        self._last = time.time()
        self._wire.publish(topics.device_topic(self.door.user, leaf), payload, topics.CHANNELS[leaf].qos)

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/retry"):
            asyncio.get_running_loop().call_later(decode(Retry, payload).seconds, self._check_in)


def _telemetry() -> Telemetry:
    return Telemetry(
        boot="boot", uptime=60.0, state="idle", assignment=None, step=None, load=0.2, temperature=51.0,
        memory=512 << 20, memory_free=300 << 20, disk_free=8 << 30, spool=0, training=0.0, since=0.0,
    )  # fmt: skip
