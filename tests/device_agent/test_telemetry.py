"""What a board says about itself, and that nothing of it has to be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent import telemetry


def board(root: Path, files: dict[str, str], answers: dict[str, str] | None = None) -> telemetry.Board:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return telemetry.Board(root, "auto", root, lambda command: (answers or {}).get(command[0]))


def test_a_board(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n",
        "proc/self/statm": "500 100 50 1 0 40 0\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "sys/class/thermal/thermal_zone0/temp": "broken\n",
        "sys/class/thermal/thermal_zone1/temp": "48312\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }
    reading = board(tmp_path, files).read(0)
    assert reading.temperature == 48.312
    assert reading.memory % 100 == 0
    assert reading.memory_free == 400 * 1024
    assert reading.throttled == ("under-voltage", "throttled"), "the upper bits are what once happened"
    capability = telemetry.capability(["tflite"], root=tmp_path)
    assert capability.machine == "Raspberry Pi 4 Model B Rev 1.4"
    assert capability.memory == 1000 * 1024


def test_a_board_that_says_nothing(tmp_path: Path) -> None:
    silent = telemetry.Board(tmp_path / "gone", root=tmp_path, ask=lambda _: None)
    reading = silent.read(0)
    assert (reading.temperature, reading.memory_free, reading.disk_free) == (None, None, None)
    assert (reading.throttled, reading.battery, reading.mains, reading.metered) == (None, None, None, None)
    assert silent.cpu() is None
    assert reading.memory > 0
    assert telemetry.capability([], root=tmp_path).memory == 0


SUPPLY = "sys/class/power_supply"


@pytest.mark.parametrize(
    ("files", "mains", "battery"),
    [
        ({"AC/type": "Mains", "AC/online": "1"}, True, None),
        ({"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/capacity": "41"}, False, 41),
        ({"USB/type": "USB", "USB/online": "0", "AC/type": "Mains", "AC/online": "1"}, True, None),
        ({"BAT0/type": "Battery", "BAT0/capacity": "60", "BAT0/status": "Discharging"}, False, 60),
        ({"BAT0/type": "Battery", "BAT0/capacity": "60", "BAT0/status": "Charging"}, True, 60),
        ({"a/type": "Battery", "a/capacity": "20", "b/type": "Battery", "b/capacity": "40"}, False, 30),
        ({"mouse/type": "Battery", "mouse/scope": "Device", "mouse/capacity": "3"}, None, None),
        ({"BAT0/type": "Battery", "BAT0/capacity": "many"}, None, None),
    ],
)
def test_power(tmp_path: Path, files: dict[str, str], mains: bool | None, battery: float | None) -> None:
    reading = board(tmp_path, {f"{SUPPLY}/{name}": text for name, text in files.items()}).read(0)
    assert (reading.mains, reading.battery) == (mains, battery)


@pytest.mark.parametrize(
    ("answer", "metered"), [("u 1\n", True), ("u 4\n", False), ("u 0\n", None), ("", None), ("what?", None)]
)
def test_networkmanager_says_whether_the_link_is_metered(tmp_path: Path, answer: str, metered: bool | None) -> None:
    assert board(tmp_path, {}, {"busctl": answer}).read(0).metered is metered


def test_the_owner_knows_better_than_networkmanager(tmp_path: Path) -> None:
    assert telemetry.Board(tmp_path, "yes", tmp_path, lambda _: "u 2").read(0).metered is True


def test_nobody_is_asked_for_what_nobody_wants_to_know(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    reading = telemetry.Board(tmp_path, None, tmp_path, lambda command: asked.append(command)).read(0)
    assert (reading.metered, asked) == (None, [])


def test_the_firmware_is_asked_where_the_driver_does_not_say(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(command: list[str]) -> str | None:
        asked.append(command[0])
        return "throttled=0x8\n" if command[0] == "vcgencmd" else None

    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").touch()
    found = telemetry.Board(tmp_path, "auto", tmp_path, answer)
    assert found.read(0).throttled == ("soft-temperature-limit",)
    assert found.read(10).throttled == ("soft-temperature-limit",)
    assert asked == ["busctl", "vcgencmd"], "what takes a process is asked once a minute"


def test_cpu_is_the_busy_share_between_two_looks(tmp_path: Path) -> None:
    found = board(tmp_path, {"proc/stat": "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1\n"})
    assert found.cpu() is None
    (tmp_path / "proc/stat").write_text("cpu  150 0 125 800 125 0 0 0 99 0\n")
    assert found.cpu() == 0.375, "75 of 200 ticks were neither idle nor waiting for the disk"
    assert found.cpu() is None, "no time has passed"


def test_this_machine(tmp_path: Path) -> None:
    reading = telemetry.Board(tmp_path).read(0)
    assert reading.memory > 1 << 20
    assert reading.disk_free is not None
