"""The coordinator as a systemd service: its unit, and what systemd hears from it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator import service
from coordinator.app import Coordinator
from coordinator.cli import main
from coordinator.cli import serve as serving
from coordinator.settings import Settings, load

ME = pwd.getpwuid(os.getuid()).pw_name


def shoal(*words):
    return CliRunner().invoke(main, ["service", *map(str, words)])


def test_the_unit_names_home_account_and_watchdog():
    unit = service.unit(Settings(home=Path("/var/lib/shoal")), "shoal")
    assert "serve --home /var/lib/shoal\n" in unit
    for line in ("Type=notify", "User=shoal", "WatchdogSec=60", "StateDirectory=shoal", "RestartPreventExitStatus=2"):
        assert f"{line}\n" in unit
    assert "ReadWritePaths=/var/lib/shoal\n" in unit
    assert "\nCapabilityBoundingSet=\n" in unit


def test_a_home_elsewhere_is_no_state_directory(tmp_path):
    unit = service.unit(Settings(home=tmp_path / "odd home"), ME)
    assert "StateDirectory" not in unit
    assert f'ReadWritePaths="{tmp_path}/odd home"\n' in unit
    assert "PrivateTmp=false\n" in unit, "this home lies in a folder for temporary files"


def test_a_port_below_1024_takes_the_one_capability_it_needs(tmp_path):
    (tmp_path / "shoal.toml").write_text("port = 443\n")
    unit = service.unit(load({"home": tmp_path}, {}), ME)
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit


def test_install_writes_what_show_prints_and_remove_takes_it_back(tmp_path):
    home, about = tmp_path / "home", ["--home", tmp_path / "home", "--user", ME]
    installed = shoal("install", *about, "--folder", tmp_path)
    assert installed.exit_code == 0, installed.output
    assert (tmp_path / service.UNIT).read_text() == shoal("show", *about).output
    assert f"sudo -u {ME} shoal login-link --home {home}" in installed.output
    assert home.stat().st_mode & 0o777 == 0o700
    assert shoal("remove", "--folder", tmp_path).exit_code == 0
    assert not (tmp_path / service.UNIT).exists()
    again = shoal("remove", "--folder", tmp_path)
    assert (again.exit_code, "There is no" in again.output) == (1, True)


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    refused = shoal("install", "--home", tmp_path, "--user", ME, "--folder", tmp_path / "nowhere")
    assert refused.exit_code == 1
    assert "run this as root" in refused.output


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_the_unit_sound_and_hardened(tmp_path):
    path = tmp_path / service.UNIT
    path.write_text(service.unit(Settings(home=tmp_path), ME))
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert [one for one in verified.stderr.splitlines() if service.UNIT in one] == []
    judge = ["systemd-analyze", "security", "--offline=true", "--no-pager", path]
    judged = subprocess.run(judge, capture_output=True, text=True)
    if judged.returncode == 0:
        exposure = float(judged.stdout.rsplit("Overall exposure level for", 1)[1].split(":")[1].split()[0])
        assert exposure <= 2.5


def test_systemd_hears_that_it_serves_that_it_lives_and_that_it_ends(tmp_path, monkeypatch):
    ends = []
    monkeypatch.setattr(serving, "LOOK", 0.01)
    monkeypatch.setattr(serving.signal, "signal", lambda _, handler: ends.append(handler))
    monkeypatch.setattr(serving.logs, "configure", lambda *_: None)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    words = ["--home", str(tmp_path / "home"), "--port", "0", "--mqtt-port", "0", "--broker", "embedded"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        heard = []

        def listen():
            while heard[-1:] != ["STOPPING=1"]:
                heard.append(systemd.recv(200).decode())
                if len(heard) == 3:
                    ends[0](15, None)

        thread = threading.Thread(target=listen)
        thread.start()
        assert CliRunner().invoke(serving.serve, words).exit_code == 0
        thread.join()
    assert heard[:2] == ["READY=1", "WATCHDOG=1"]
    assert heard[2].startswith("STATUS=serving at http://127.0.0.1:")


def test_without_its_thread_or_its_broker_it_does_not_count_as_alive(tmp_path, monkeypatch):
    with Coordinator(Settings(home=tmp_path, port=0, mqtt_port=0, broker="embedded")) as coordinator:
        assert coordinator.lively
        (link,) = coordinator._links
        link._client.disconnect()
        monkeypatch.setattr("coordinator.app.PATIENCE", 0.0001)
        while coordinator.lively:
            pass
        assert coordinator.healthy
        monkeypatch.setattr("coordinator.app.PATIENCE", 60.0)
        assert coordinator.lively, "it may come back"
        coordinator.steward.stop()
        assert not coordinator.lively
