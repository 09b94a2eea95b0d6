"""A thousand devices join over HTTP while Mosquitto runs, and revoked ones are thrown out.

A device has joined when its account works at the broker; the seconds run from the first request until the last device
can connect.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from coordinator.broker.driver import Door
from protocol.messages import Capability, EnrolmentRequest
from protocol.wire import encode

from .ground import Ground, ground
from .measure import Row
from .wire import Wire

NAME = "enrolment"
DEVICES = 1000
AT_ONCE = 8
REVOKED = 30
BARS = {"thousand_s": 30.0, "revoked_s": 1.0}
_CAPABILITY = Capability(machine="aarch64", system="Linux", python="3.11.2", runtimes=(), memory=1 << 29, cores=4)


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``enrolment.thousand_s`` and ``.revoked_s`` (the slowest of thirty sessions to end), ratio = bar / value;
    and ``.thousand_core_s``, what coordinator and broker use of a core for the thousand."""
    with ground("mosquitto", 0) as place:
        token = str(place.api.post("tokens", body={"uses": DEVICES, "ttl": 3600.0})["token"])
        began, used = time.perf_counter(), place.seconds()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            joined = list(pool.map(lambda first: _join(place, token, first), range(AT_ONCE)))
        doors = [door for some in joined for door in some]
        asyncio.run(_connect(doors[-AT_ONCE:]))
        core = place.seconds() - used
        values = {"thousand_s": time.perf_counter() - began, "revoked_s": max(asyncio.run(_revoke(place, doors)))}
    progress(", ".join(f"{name} {value:.3f} s" for name, value in values.items()) + f", {core:.1f} s of a core")
    rows = [Row(f"{NAME}.{name}", value, "s", BARS[name], BARS[name] / value) for name, value in values.items()]
    return [*rows, Row(f"{NAME}.thousand_core_s", core, "s")]


def _join(place: Ground, token: str, first: int) -> list[Door]:
    """Every eighth device, over one connection."""
    address = urlsplit(place.api.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    doors = []
    for number in range(first, DEVICES, AT_ONCE):
        secret = f"secret-of-device-{number:04d}-0123456789"
        request = EnrolmentRequest(token=token, secret=secret, name=f"dev-{number:04d}", capability=_CAPABILITY)
        connection.request("POST", "/api/v1/enrol", encode(request), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        reply = json.loads(answer.read())
        if answer.status != 200:
            raise AssertionError(f"device {number} was refused: {reply}")
        doors.append(Door("127.0.0.1", reply["broker_port"], reply["device"], secret))
    return doors


async def _connect(doors: list[Door]) -> None:
    for door in doors:
        await Wire(lambda *_: None).open(door.host, door.port, door.user, door.password, door.user)


async def _revoke(place: Ground, doors: list[Door]) -> list[float]:
    """Seconds from the request to revoke a device until its session has ended."""
    loop, seconds = asyncio.get_running_loop(), []
    for door in doors[:REVOKED]:
        ended = asyncio.Event()
        wire = Wire(lambda *_: None, on_lost=ended.set)
        await wire.open(door.host, door.port, door.user, door.password, door.user)
        began = time.perf_counter()
        asked = loop.run_in_executor(None, place.api.post, "devices", door.user, "revoke")
        await asyncio.wait_for(ended.wait(), 30)
        seconds.append(time.perf_counter() - began)
        await asked
    return seconds
