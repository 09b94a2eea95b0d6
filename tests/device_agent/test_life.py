"""What happens to a device over the months, as a process: its data breaks, its owner pauses it, it is revoked."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from attrs import evolve

from device_agent import cli
from device_agent.runtime import backends
from tests.device_agent.device import PLAN, SPEC, Device, kinds, write
from tests.device_agent.stand_in import DEVICE, StandIn

pytestmark = pytest.mark.skipif(not backends(), reason="no training runtime is installed")


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


def test_a_class_map_beyond_the_model_is_said_until_it_is_mended(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz", classes=5)
    with StandIn(SPEC, PLAN, 2, tmp_path / "ca") as coordinator:
        device.start(coordinator)
        assert coordinator.until(lambda: kinds(coordinator) == ["training-failed"])
        assert "the model has 3 classes, the data 5" in coordinator.events[0].text
        reason = "training-failed: the model has 3 classes, the data 5"
        device.until(capsys, lambda s: s["state"] == "idle" and s["reason"] == reason)
        assert coordinator.until(lambda: coordinator.beats[-1].waiting == reason)
        write(device.data / "a.npz")
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        device.until(capsys, lambda s: s["reason"] != reason)
        device.stop()


def test_an_artifact_that_comes_corrupt_is_said_and_fetched_again(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        name = coordinator.artifact.sha256
        sound = coordinator.blobs[name]
        coordinator.blobs[name] = sound[:-1] + bytes([sound[-1] ^ 1])
        device.start(coordinator)
        assert coordinator.until(lambda: kinds(coordinator) == ["download-failed"])
        assert "its bytes are not those of its hash" in coordinator.events[0].text
        device.until(capsys, lambda s: "its bytes are not those of its hash" in (s["reason"] or ""))
        assert coordinator.until(lambda: "not those of its hash" in (coordinator.beats[-1].waiting or ""))
        coordinator.blobs[name] = sound
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        device.stop()


def test_a_clock_two_days_off_is_said_and_keeps_nobody_from_work(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the device it is the same whose clock is wrong."""
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca", tls=True) as coordinator:
        coordinator.ahead = 2 * 86400.0
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        status = device.until(capsys, lambda s: s["clock"] is not None)
        assert status["clock"] == "the clock is 48.0 hours behind the coordinator's"
        assert cli.main(["status", "--home", str(device.home)]) == 0
        assert f"  clock: {status['clock']}" in capsys.readouterr().out
        assert coordinator.until(lambda: kinds(coordinator) == ["clock-wrong"])
        assert status["clock"] in coordinator.events[0].text
        coordinator.ahead = 0.0
        coordinator.restart_broker()  # whoever connects again asks again
        device.until(capsys, lambda s: s["clock"] is None)
        assert "event kind=clock-right text='the clock is right again'" in device.stop()


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


@pytest.mark.parametrize(("settings", "told"), [("", [(), ()]), ("label_histogram = true", [None, (10, 10, 10)])])
def test_labels_are_told_where_the_plan_asks_and_the_owner_allows_it(
    device: Device, tmp_path: Path, settings: str, told: list[tuple[int, ...] | None]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, evolve(PLAN, labels=True), 1, tmp_path / "ca") as coordinator:
        device.settings(f"[privacy]\n{settings}\n")
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.check_ins) == 2)
        assert [check_in.labels for check_in in coordinator.check_ins] == told
        device.stop()


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
        asked = {"NOTIFY_SOCKET": "@" + address[1:], "WATCHDOG_USEC": "60000000"}
        device.settings()
        device.start(coordinator, **asked, SHOAL_AGENT_LOG_FORMAT="json")
        heard = []
        while heard.count("WATCHDOG=1") < 2:
            heard.append(systemd.recv(1000).decode())
        assert heard[0] == "READY=1"
        assert coordinator.until(lambda: len(coordinator.check_ins) == 1)
        assert device.until(capsys, lambda s: s["reason"] == "nothing to do")["state"] == "idle"
        log = device.stop()
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(1000).decode())
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "started"
    assert "data" in events
