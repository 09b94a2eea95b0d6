"""What happens to a device over the months, as a process: its data breaks, its owner pauses it, it is revoked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from device_agent import cli
from device_agent.runtime import backends
from protocol.messages import Plan
from tests.device_agent.stand_in import DEVICE, StandIn

pytestmark = pytest.mark.skipif(not backends(), reason="no training runtime is installed")

SPEC = ModelSpec("tiny", (8,), 3, (Dense(16), Relu(), Dense(3)))
PLAN = Plan(width=0.5, batch=4, steps=20, learning_rate=0.1, coding="int8")
ROOT = Path(__file__).parents[2]


def write(path: Path, samples: int = 30, bad: bool = False, classes: int = 3) -> None:
    """Whole or not at all, as a careful program would."""
    x = np.random.default_rng(samples).normal(size=(samples, 8)).astype(np.float32)
    x[0, 0] = np.nan if bad else 0
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, x=x, y=np.arange(samples) % classes)
    temporary.rename(path)


class Device:
    """An enrolled device, its settings, its process."""

    def __init__(self, folder: Path) -> None:
        self.home, self.data, self.log = folder / "home", folder / "data", folder / "log"
        self.data.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def settings(self, more: str = "") -> None:
        self.home.mkdir(exist_ok=True)
        table = '[data]\nsource = "npz"\nsettle = 0.0\nevery = 0.2\n'
        (self.home / "agent.toml").write_text(f"{table}path = {json.dumps(str(self.data))}\n{more}")

    def enrol(self, coordinator: StandIn) -> None:
        if not (self.home / "agent.toml").exists():
            self.settings()
        arguments = ["--url", coordinator.url, "--token", coordinator.token, "--home", str(self.home)]
        assert cli.main(["enrol", *arguments]) == 0

    def start(self, coordinator: StandIn, **environ: str) -> None:
        if not (self.home / "identity.json").exists():
            self.enrol(coordinator)
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(self.home)]
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, env=variables)

    def stop(self) -> str:
        """End it politely; what it logged."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0
        log = self.log.read_text()
        assert "Traceback" not in log
        return log

    def status(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["status", "--json", "--home", str(self.home)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def until(self, capsys: pytest.CaptureFixture[str], test: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that passes ``test``."""
        found: dict[str, Any] = {}
        for _ in range(300):
            # Until the agent has a spool there is nothing to ask it.
            if (self.home / "status.json").exists() and test(found := self.status(capsys)):
                return found
            time.sleep(0.05)
        raise AssertionError(found)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    if device.process is not None:
        device.process.kill()
        device.process.wait()


def kinds(coordinator: StandIn) -> list[str]:
    return [event.kind for event in coordinator.events]


def test_data_that_breaks_is_said_everywhere_and_work_goes_on_when_it_is_mended(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator:
        coordinator.patience = 0.5
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.check_ins) == 1)
        write(device.data / "b.npz", bad=True)
        assert coordinator.until(lambda: kinds(coordinator) == ["data-unusable"])
        assert "x[30] holds NaN" in coordinator.events[0].text
        status = device.until(capsys, lambda s: s["state"] == "no-data")
        assert "x[30] holds NaN" in status["reason"]
        assert coordinator.until(lambda: coordinator.beats[-1].state == "no-data")
        assert coordinator.beats[-1].waiting == status["reason"]
        write(device.data / "b.npz", samples=12)
        coordinator.remaining = 1
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        assert kinds(coordinator) == ["data-unusable", "data-usable"]
        assert coordinator.check_ins[-1].samples == 42
        assert device.until(capsys, lambda s: s["state"] == "idle")["data"]["samples"] == 42
        device.stop()


def test_an_agent_starts_without_data_and_waits_for_it(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        device.enrol(coordinator)
        (device.data / "a.npz").rename(tmp_path / "away.npz")
        device.start(coordinator)
        status = device.until(capsys, lambda s: s["connected"] and s["state"] == "no-data")
        assert "the data is empty" in status["reason"]
        assert coordinator.check_ins == []
        (tmp_path / "away.npz").rename(device.data / "a.npz")
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        device.stop()


def test_a_class_map_beyond_the_model_is_said(device: Device, tmp_path: Path) -> None:
    write(device.data / "a.npz", classes=5)
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        device.start(coordinator)
        assert coordinator.until(lambda: kinds(coordinator) == ["training-failed"])
        assert "the model has 3 classes, the data 5" in coordinator.events[0].text
        device.stop()


def test_a_pause_stops_training_at_the_next_batch_and_costs_no_work(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, evolve(PLAN, steps=2000), 1, tmp_path / "ca") as coordinator:
        device.settings("[conditions]\ncpu_share = 0.05\n")
        device.start(coordinator)
        assert coordinator.until(lambda: "progress" in coordinator.received)
        assert cli.main(["pause", "--home", str(device.home)]) == 0
        assert coordinator.until(lambda: bool(coordinator.beats) and coordinator.beats[-1].state == "paused")
        paused_at, before = time.monotonic(), coordinator.beats[-1].training
        status = device.until(capsys, lambda s: s["state"] == "paused" and s["step"] is not None)
        assert "'shoal-agent resume' ends that" in status["reason"]
        beats = len(coordinator.beats)
        assert coordinator.until(lambda: len(coordinator.beats) >= beats + 3)
        first, last = coordinator.beats[-2:]
        assert (first.step, first.training) == (last.step, last.training), "training stands still, and so its clock"
        assert not coordinator.stored
        rested = time.monotonic() - paused_at
        assert cli.main(["resume", "--home", str(device.home)]) == 0
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        ((update, _),) = coordinator.stored.values()
        assert update.steps == 2000
        assert coordinator.until(lambda: coordinator.beats[-1].state == "idle")
        assert coordinator.beats[-1].since >= rested, "the pause did take place"
        assert coordinator.beats[-1].training >= before
        device.stop()


def test_conditions_that_are_not_met_keep_it_from_checking_in(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        device.settings(f"[conditions]\nmemory_free = {1 << 50}\nnice = 5\n")
        device.start(coordinator)
        status = device.until(capsys, lambda s: s["connected"] and s["state"] == "waiting")
        assert "MB of memory are free" in status["reason"]
        assert coordinator.until(lambda: len(coordinator.beats) >= 3)
        assert coordinator.check_ins == []
        assert "MB of memory are free" in str(coordinator.beats[-1].waiting)
        assert device.process is not None
        assert os.getpriority(os.PRIO_PROCESS, device.process.pid) == 5
        device.stop()


def test_a_revoked_device_says_so_and_comes_back_if_that_is_undone(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca", tls=True) as coordinator:
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.check_ins) == 1)
        secret = coordinator._passwords.pop(DEVICE)
        coordinator.restart_broker()
        status = device.until(capsys, lambda s: s["state"] == "revoked")
        assert "enrol it again with a new token" in status["reason"]
        assert not status["connected"]
        coordinator._passwords[DEVICE] = secret
        device.until(capsys, lambda s: s["connected"] and s["state"] == "idle")
        log = device.stop()
    assert "readiness state=revoked" in log
    assert secret not in log


def test_systemd_hears_of_a_start_and_of_every_second_after(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    address = "\0" + str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator,
    ):
        systemd.bind(address)
        systemd.settimeout(30)
        device.settings("[privacy]\nlabel_histogram = true\n")
        asked = {"NOTIFY_SOCKET": "@" + address[1:], "WATCHDOG_USEC": "60000000"}
        device.start(coordinator, **asked, SHOAL_AGENT_LOG_FORMAT="json")
        heard = []
        while heard.count("WATCHDOG=1") < 2:
            heard.append(systemd.recv(1000).decode())
        assert heard[0] == "READY=1"
        assert coordinator.until(lambda: len(coordinator.check_ins) == 1)
        assert coordinator.check_ins[0].labels == (10, 10, 10), "the owner allows it"
        assert device.until(capsys, lambda s: s["reason"] == "nothing to do")["state"] == "idle"
        log = device.stop()
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(1000).decode())
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "started"
    assert "data" in events
