"""A device whose spool cannot be used: full, read-only. It says so, and goes on when it can."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from device_agent import cli
from device_agent.runtime import backends
from tests.device_agent.device import PLAN, SPEC, Device, kinds, write
from tests.device_agent.stand_in import StandIn

pytestmark = pytest.mark.skipif(not backends(), reason="no training runtime is installed")


def test_a_disk_that_fills_up_is_said_and_work_goes_on_when_there_is_room(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system refuses what goes beyond a limit, as on a full disk."""
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator:
        coordinator.patience = 0.5
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.check_ins) > 0)
        assert device.process is not None
        unlimited = resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        coordinator.remaining = 2
        assert coordinator.until(lambda: kinds(coordinator) == ["spool-unusable"])
        assert "cannot be used" in coordinator.events[0].text
        assert coordinator.until(lambda: coordinator.beats[-1].state == "no-spool")
        assert coordinator.beats[-1].waiting == coordinator.events[0].text
        status = device.until(capsys, lambda s: s["state"] == "no-spool" and s["connected"])
        assert status["reason"] == coordinator.events[0].text
        resource.prlimit(device.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert coordinator.until(lambda: len(coordinator.stored) == 2)
        assert kinds(coordinator) == ["spool-unusable", "spool-usable"]
        device.until(capsys, lambda s: s["state"] == "idle")
        device.stop()


def test_without_a_spool_it_ends_when_it_is_told_to(device: Device, tmp_path: Path) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, evolve(PLAN, steps=10), 0, tmp_path / "ca") as coordinator:
        device.enrol(coordinator)
        (device.home / "spool.db").mkdir()
        device.start(coordinator)
        assert coordinator.until(lambda: kinds(coordinator) == ["spool-unusable"])
        device.stop()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written there, not even by root."""
    for command in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        done = subprocess.run(["mount", *map(str, command)], capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", str(folder)], capture_output=True)
            pytest.skip(f"this machine lets nobody mount here: {done.stderr.strip() or os.strerror(1)}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_home_that_has_become_read_only_is_said_and_work_goes_on_when_it_is_mended(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(device.data / "a.npz")
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator:
        device.start(coordinator)
        assert coordinator.until(lambda: len(coordinator.check_ins) == 1)
        device.stop()
        coordinator.remaining = 1
        with read_only(device.home):
            device.start(coordinator)
            assert coordinator.until(lambda: kinds(coordinator) == ["spool-unusable"])
            assert "Read-only file system" in coordinator.events[0].text
            status = device.until(capsys, lambda s: s["state"] == "no-spool")
            assert status["reason"] == f"the spool in {device.home} cannot be written: Read-only file system"
            assert status["connected"] is None, "where nothing can be written, its status cannot be either"
            assert cli.main(["status", "--home", str(device.home)]) == 0
            assert "  state: no-spool: the spool in " in capsys.readouterr().out
            assert len(coordinator.check_ins) == 1
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        assert kinds(coordinator) == ["spool-unusable", "spool-usable"]
        device.until(capsys, lambda s: s["state"] == "idle" and s["connected"])
        device.stop()
