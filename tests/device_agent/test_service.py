"""The unit, and what systemd is told."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from device_agent import service
from device_agent.data.source import Source
from device_agent.errors import HomeError
from device_agent.service import Notifier
from device_agent.settings import Settings


def test_the_unit_names_home_owner_and_watchdog(tmp_path: Path) -> None:
    unit = service.unit(Settings(home=tmp_path))
    assert f"run --home {tmp_path}\n" in unit
    assert f"ReadWritePaths={tmp_path}\n" in unit
    assert "Type=notify\n" in unit
    assert "WatchdogSec=60\n" in unit
    assert f"User={tmp_path.owner()}\n" in unit


def test_the_unit_leaves_what_the_agent_reads_and_writes_in_sight(tmp_path: Path) -> None:
    data = Source(path=Path("/home/pi/samples.csv"))
    unit = service.unit(Settings(home=tmp_path, data=data, log_file=Path("/var/log/shoal/agent.log")))
    assert f"ReadWritePaths={tmp_path} /var/log/shoal\n" in unit
    assert "ProtectHome=read-only\n" in unit
    assert "PrivateTmp=false\n" in unit, "this home lies in a folder for temporary files"


def test_odd_names_of_folders_stay_one_word(tmp_path: Path) -> None:
    home = tmp_path / 'attic "pi" 100%'
    home.mkdir()
    assert rf'--home "{tmp_path}/attic \"pi\" 100%%"' in service.unit(Settings(home=home))


def test_install_writes_it(tmp_path: Path) -> None:
    assert service.install(Settings(home=tmp_path), tmp_path).read_text() == service.unit(Settings(home=tmp_path))
    with pytest.raises(HomeError, match="run this as root"):
        service.install(Settings(home=tmp_path), tmp_path / "nowhere")
    with pytest.raises(HomeError, match="enrol first"):
        service.unit(Settings(home=tmp_path / "nobody"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_the_unit_sound_and_hardened(tmp_path: Path) -> None:
    path = service.install(Settings(home=tmp_path), tmp_path)
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    complaints = [one for one in verified.stderr.splitlines() if service.UNIT in one]
    assert complaints == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", path], capture_output=True, text=True
    )
    if judged.returncode == 0:
        exposure = float(judged.stdout.rsplit("Overall exposure level for", 1)[1].split(":")[1].split()[0])
        assert exposure <= 2.5


def test_systemd_hears_that_the_agent_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000"})
        notifier.ready()
        notifier.alive("idle")
        notifier.alive("idle")
        notifier.stopping()
        heard = [systemd.recv(100).decode() for _ in range(5)]
    assert heard == ["READY=1", "WATCHDOG=1", "STATUS=idle", "WATCHDOG=1", "STOPPING=1"]


def test_a_watchdog_meant_for_another_process_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + str(tmp_path / "abstract"))
        environ = {"NOTIFY_SOCKET": "@" + str(tmp_path / "abstract"), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        notifier = Notifier(environ)
        notifier.alive("idle")
        notifier.stopping()
        assert [systemd.recv(100), systemd.recv(100)] == [b"STATUS=idle", b"STOPPING=1"]


def test_without_systemd_nothing_happens() -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).ready()
