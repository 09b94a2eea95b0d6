"""Updates over cellular links: an agent beside a coordinator, its MQTT through a link that follows a measured trace.

Uplinks are AT&T LTE and Verizon EVDO while driving (Winstein et al., NSDI 2013), with 12 % of the time without any
link, every second outage breaking the connection. The agent trains next to nothing, so that its updates keep the link
busy, and beats once a second. A beat's delay is that from the agent's clock to the coordinator's row, less the shortest
one; beats that were under way in an outage, or while the trace let nothing through for half a second, are left out.
Fast and slow are the uplink's mean over the second in which a beat left: from 128 kbit/s on, and below.
Bytes are all that the agent's side of the link sent, beats apart, in parts of what the stored updates hold.

The rows ``.modelled`` are those of the outbox alone in virtual time, without outages: what else runs on this machine
delays the beats of the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from attrs import frozen
from sqlalchemy import func, select

from coordinator.app import Coordinator
from coordinator.fleet import tokens
from coordinator.settings import Settings
from coordinator.store.models import Device, Telemetry, Update

from .measure import Row, Unavailable
from .modelled_link import ModelledLink
from .shaped_link import Rates, ShapedLink, outages

NAME = "links"
TRACES: Final = {"att": ("ATT-LTE-driving.up", "ATT-LTE-driving.down"), "evdo": ("Verizon-EVDO-driving.down",) * 2}
"""Up and down."""
SECONDS: Final = 240.0
MODELLED: Final = 900.0
OUTAGE: Final = 0.12
MEAN: Final = 3.0
BEAT: Final = 1.0
PATIENCE: Final = 90.0
SLOW: Final = 128_000 / 8
QUIET: Final = 0.5
"""Seconds in which a trace lets nothing through that count as an outage."""
PACKET: Final = 1500
BARS: Final = {"fast": 0.3, "slow": 1.0}
MODEL: Final = json.dumps(
    {
        "name": "wide",
        "input": [16],
        "classes": 4,
        "layers": [{"dense": {"units": 8192}}, "relu", {"dense": {"units": 4}}],
    }
)
RECIPE: Final = """
name = "links"
[plan]
batch = 16
steps = 4
learning_rate = 0.01
coding = "int8"
lease = 3600
[aggregator]
kind = "fedbuff"
goal = 2
max_staleness = 1000
"""


@frozen
class Seen:
    """``delays``: (bytes/s of the uplink, s) of every beat that counts. ``twice``: keys that the ledger repeats."""

    delays: list[tuple[float, float]]
    stored: int
    lost: int
    twice: int
    overhead: float


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``links.<trace>.fast`` and ``.slow`` (95th percentile of the delay, ratio = bar / value) and the books."""
    path = Path(os.environ.get("SHOAL_DATA", "../shared/data")) / "net_cellular.npz"
    if not path.exists():
        raise Unavailable(f"{path} is missing: SHOAL_DATA must name the folder of the data sets")
    rows: list[Row] = []
    with np.load(path) as file:
        traces = {name: tuple(Rates(PACKET * file[one].astype(float)) for one in ways) for name, ways in TRACES.items()}
    for name, (up, _) in traces.items():
        link = ModelledLink(up)
        link.run(MODELLED)
        beats = [(up.during(at, at + 1.0), took) for at, took in link.beats if not _quiet(up, at, at + took)]
        rows += _late(f"{name}.modelled", beats, progress)
        share = link.stored * link.size / (up.during(0.0, MODELLED) * MODELLED)
        rows.append(Row(f"{NAME}.{name}.modelled.used", share, "of the link"))
        progress(f"{rows[-1].name}: {share:.3f}, bytes {link.sent / (link.stored * link.size):.3f}")
    for name, (up, down) in traces.items():
        found = measure(up, down, SECONDS)
        rows += _late(name, found.delays, progress)
        rows.append(Row(f"{NAME}.{name}.bytes", found.overhead, "of the updates", 1.1, 1.1 / found.overhead))
        rows.append(Row(f"{NAME}.{name}.updates", found.stored, ""))
        rows.append(Row(f"{NAME}.{name}.lost", found.lost, ""))
        rows.append(Row(f"{NAME}.{name}.twice", found.twice, ""))
        progress(f"{NAME}.{name}: {found.stored} updates, {found.lost} lost, {found.twice} twice, {found.overhead:.3f}")
    return rows


def _late(name: str, beats: list[tuple[float, float]], progress: Callable[[str], None]) -> list[Row]:
    rows = []
    for kind, bar in BARS.items():
        delays = [delay for rate, delay in beats if (rate >= SLOW) == (kind == "fast")]
        if delays:
            late = float(np.quantile(delays, 0.95))
            rows.append(Row(f"{NAME}.{name}.{kind}", late, "s", bar, bar / late))
            progress(f"{rows[-1].name}: {late:.3f} s at the 95th percentile of {len(delays)} beats, bar {bar:g}")
    return rows


def measure(up: Rates, down: Rates, seconds: float) -> Seen:
    """Let an agent work for so long, and then deliver what it has."""
    with tempfile.TemporaryDirectory(prefix="shoal-links-") as folder:
        home = Path(folder)
        settings = Settings(home=home / "coordinator", port=0, mqtt_port=0, tls="off", heartbeat=BEAT)
        with Coordinator(settings) as coordinator:
            agent = enrolled(coordinator, home)
            broker = json.loads((agent / "identity.json").read_text())["broker_port"]
            plan = outages(OUTAGE, MEAN, seconds, seed=1)
            with ShapedLink(broker, up, down, outages=plan) as link:
                _reroute(agent, link.port)
                coordinator.steward.start_run(
                    model=MODEL, recipe=RECIPE, dataset="", target=None, seed=0, by="benchmark"
                )
                started = time.time() - link.now
                with running(agent):
                    time.sleep(max(0.0, seconds - link.now))
                    sent = link.sent[0]
                    beats, size, stored = _books(coordinator)
                    delays = _delays(coordinator, link, up, started)
                    lost = _lost(coordinator, agent)
                return Seen(delays, stored, lost, _twice(coordinator), (sent - beats) / size)


def enrolled(coordinator: Coordinator, home: Path) -> Path:
    """The home of a new agent with some random data."""
    rng, data, agent = np.random.default_rng(0), home / "data.npz", home / "agent"
    np.savez(data, x=rng.normal(size=(64, 16)).astype(np.float32), y=rng.integers(0, 4, 64), classes=np.int32(4))
    token = coordinator.steward.write(lambda db: tokens.create(db, time.time(), by="benchmark", fingerprint=None))
    options = ("--url", coordinator.url, "--token", token, "--data", str(data), "--home", str(agent))
    done = subprocess.run([sys.executable, "-m", "device_agent.cli", "enrol", *options], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"the agent could not enrol: {done.stderr.strip()}")
    return agent


def _reroute(agent: Path, port: int) -> None:
    path = agent / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"broker_port": port}))


@contextmanager
def running(agent: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(agent / "agent.log", "wb") as log:
        command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(agent)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _delays(coordinator: Coordinator, link: ShapedLink, up: Rates, started: float) -> list[tuple[float, float]]:
    with coordinator.database.read() as session:
        beats = [(row.at - started, row.at - row.uptime) for row in session.scalars(select(Telemetry))]
    base = min((lag for _, lag in beats), default=0.0)
    counted = []
    for arrived, lag in beats:
        delay = lag - base
        left = arrived - delay
        if not link.out(left, arrived) and not _quiet(up, left, arrived):
            counted.append((up.during(left, left + 1.0), delay))
    return counted


def _quiet(up: Rates, start: float, end: float) -> bool:
    """Whether the trace itself let nothing through for a while."""
    starts = np.arange(start - QUIET, end + 1e-9, 0.1)
    return any(up.during(max(0.0, at), max(0.0, at) + QUIET) == 0 for at in starts)


def _books(coordinator: Coordinator) -> tuple[int, int, int]:
    """Bytes that all beats took, with their packets; bytes of the updates in the ledger, and their number."""
    with coordinator.database.read() as session:
        device = session.scalars(select(Device)).one()
        beat = len(json.dumps(device.telemetry)) + len(f"shoal/v1/d/{device.id}/telemetry") + 5
        count = session.scalar(select(func.count()).select_from(Telemetry)) or 0
        size, stored = session.execute(select(func.sum(Update.bytes_up), func.count()).select_from(Update)).one()
    return beat * count, size or 0, stored


def _lost(coordinator: Coordinator, agent: Path) -> int:
    """Updates that the agent has committed by now and that are still not in the ledger after a while."""
    log, end = (agent / "agent.log").read_text(), time.monotonic() + PATIENCE
    made = set(re.findall(r" committed assignment=(\S+) commit=(\d+) ", log))
    while True:
        with coordinator.database.read() as session:
            there = {(one.assignment_id, str(one.commit)) for one in session.scalars(select(Update))}
        if made <= there or time.monotonic() > end:
            return len(made - there)
        time.sleep(0.5)


def _twice(coordinator: Coordinator) -> int:
    with coordinator.database.read() as session:
        keys = [(one.assignment_id, one.commit) for one in session.scalars(select(Update))]
    return len(keys) - len(set(keys))
