"""A coordinator of its own to measure: a process with its broker, and devices that have joined already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import field, frozen
from sqlalchemy import insert

from coordinator.broker.driver import Door
from coordinator.broker.listening import free_port
from coordinator.broker.mosquitto import installed
from coordinator.broker.security import verifier
from coordinator.cli.client import Client, connect
from coordinator.settings import sqlite_url
from coordinator.store.credentials import secret_hash
from coordinator.store.database import Database
from coordinator.store.models import Credential, Device

from .measure import Unavailable

BROKERS = ("mosquitto", "embedded")
PATIENCE = 60.0
_SERVE = (sys.executable, "-c", "from coordinator.cli import main; main()", "serve")
_TICK = os.sysconf("SC_CLK_TCK")


@frozen
class Ground:
    """A running coordinator; ``secrets`` by device."""

    home: Path
    mqtt_port: int
    secrets: dict[str, str]
    process: subprocess.Popen[bytes] = field(repr=False)

    def door(self, device: str) -> Door:
        return Door("127.0.0.1", self.mqtt_port, device, self.secrets[device])

    @property
    def api(self) -> Client:
        return connect(self.home, None)

    @property
    def processes(self) -> dict[str, int]:
        """Process ids of the coordinator and of its broker, if that is one of its own."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True)
        pids = [int(pid) for pid in found.stdout.split()]
        return {"coordinator": self.process.pid} | ({"broker": pids[0]} if pids else {})

    def seconds(self) -> float:
        """Processor time that coordinator and broker have used so far."""
        return sum(_seconds(pid) for pid in self.processes.values())

    def database(self) -> Database:
        """Beside the coordinator, for reading."""
        return Database(sqlite_url(self.home / "shoal.db"), read_only=True)


@contextmanager
def ground(broker: str, devices: int, *, heartbeat: float = 10.0) -> Iterator[Ground]:
    """A coordinator with a broker and so many devices; Unavailable where the broker is not installed."""
    if broker == "mosquitto" and not installed():
        raise Unavailable("Mosquitto is not installed: apt-get install mosquitto")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        home = Path(folder)
        secrets = _people(home, devices)
        port, mqtt_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        options = ["--home", str(home), "--port", str(port), "--mqtt-port", str(mqtt_port), "--broker", broker]
        with open(home / "log", "wb") as log:
            command = [*_SERVE, *options, "--heartbeat", str(heartbeat), "--log-level", "warning"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _await(home, process)
            yield Ground(home, mqtt_port, secrets, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _people(home: Path, devices: int) -> dict[str, str]:
    secrets = {f"board-{number:04d}": f"secret-of-board-{number:04d}-0123456789" for number in range(devices)}
    database, now = Database(sqlite_url(home / "shoal.db")), time.time()
    database.upgrade()
    known = {"group": "", "capability": {}, "enrolled_at": now, "status": "new", "status_at": now}
    with database.write() as session:
        if secrets:
            session.execute(insert(Device), [{"id": name, "name": name, **known} for name in secrets])
            hashes = [
                {"device_id": name, "secret_hash": secret_hash(secret), "verifier": verifier(secret), "created_at": now}
                for name, secret in secrets.items()
            ]
            session.execute(insert(Credential), hashes)
    database.close()
    return secrets


def _await(home: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads((home / "coordinator.json").read_text())["pid"] == process.pid:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the coordinator did not start: {(home / 'log').read_text()[-2000:]}")


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
