"""What a board says about itself, and that nothing of it has to be there."""

from __future__ import annotations

from pathlib import Path

from device_agent import telemetry


def test_a_board(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   400 kB\n",
        "proc/self/statm": "500 100 50 1 0 40 0\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "sys/class/thermal/thermal_zone0/temp": "broken\n",
        "sys/class/thermal/thermal_zone1/temp": "48312\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    reading = telemetry.read(tmp_path, tmp_path)
    assert reading.temperature == 48.312
    assert reading.memory % 100 == 0
    assert reading.memory_free == 400 * 1024
    assert telemetry.capability(["tflite"], tmp_path).machine == "Raspberry Pi 4 Model B Rev 1.4"
    assert telemetry.capability(["tflite"], tmp_path).memory == 1000 * 1024


def test_a_board_that_says_nothing(tmp_path: Path) -> None:
    reading = telemetry.read(tmp_path / "gone", tmp_path)
    assert (reading.temperature, reading.memory_free, reading.disk_free) == (None, None, None)
    assert reading.memory > 0
    assert telemetry.capability([], tmp_path).memory == 0


def test_this_machine(tmp_path: Path) -> None:
    reading = telemetry.read(tmp_path)
    assert reading.memory > 1 << 20
    assert reading.disk_free is not None
