"""``shoal demo`` as its user starts it: what it shows, what it writes, how it ends."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from coordinator.compiler.zoo import ZOO
from coordinator.training.recipe import presets
from tests.integration.fleet import SHOAL, single_threaded

SHAPE = {"reached", "accuracy", "target", "seconds", "first_accuracy_seconds", "versions", "updates", "devices"}
DEVICE = {
    *("name", "tier", "widths", "updates", "bytes_up", "bytes_down", "training_share", "status", "staleness"),
}


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The demo without a terminal; its temporary things stay in ``folder``."""
    return subprocess.run(
        [*SHOAL, "demo", *options],
        cwd=Path.cwd(),
        env={**single_threaded(), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_fleet_reaches_the_target_and_its_summary_says_how(tmp_path: Path) -> None:
    home, summary = tmp_path / "home", tmp_path / "out.json"
    common = ("--home", str(home), "--devices", "4", "--exit")
    done = demo(tmp_path, *common, "--minutes", "3", "--json", str(summary))
    assert done.returncode == 0, done.stderr
    assert "reached 0.93" in done.stderr
    told = json.loads(summary.read_text())
    assert told.keys() == SHAPE
    assert told["reached"] is True
    assert told["target"] == 0.93
    assert 0.88 <= told["accuracy"] <= 1  # on the test set, which only reports: the control set has decided
    assert 0 < told["first_accuracy_seconds"] <= told["seconds"] < 180
    assert told["versions"] > 0
    assert told["updates"]["applied"] > 0
    assert all(device.keys() == DEVICE for device in told["devices"])
    assert sum(told["updates"].values()) == sum(device["updates"] for device in told["devices"])
    assert {d["tier"] for d in told["devices"] if d["updates"] > 0} == {"zero2", "pi3", "pi4", "pi5"}
    assert len({width for device in told["devices"] for width in device["widths"]}) >= 3
    assert all(device["training_share"] >= 0.5 for device in told["devices"])

    again = demo(tmp_path, *common)
    assert again.returncode == 1
    assert f"{home} holds an earlier demo: name another folder, or remove it" in again.stderr


def test_a_target_out_of_reach_ends_with_1_and_says_so(tmp_path: Path) -> None:
    summary = tmp_path / "out.json"
    options = ("--target", "1.0", "--minutes", "0.1", "--devices", "4", "--exit", "--json", str(summary))
    done = demo(tmp_path, *options)
    assert done.returncode == 1
    assert "The fleet did not reach 1: accuracy" in done.stderr
    told = json.loads(summary.read_text())
    assert told["reached"] is False
    assert told.keys() == SHAPE
    assert not list(tmp_path.glob("shoal-demo-*")), "the temporary folder is left over"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = demo(tmp_path, "--port", str(port), "--exit")
    assert done.returncode == 1
    assert f"Error: The port is already in use. The pages cannot be served at 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--home", "{file}/below"), "The home folder {file}/below cannot be written"),
        (("--recipe", "fedbluff"), f"There is no recipe 'fedbluff', only {', '.join(presets())}"),
        (("--data", "{file}"), "{file} is not an npz file with arrays x and y"),
        (("--data", "{few}"), "expected at least 100 samples"),
        (("--model", "vgg16"), f"known models: {', '.join(ZOO)}"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_sentence(tmp_path: Path, options: tuple[str, str], sentence: str) -> None:
    places = {"file": str(tmp_path / "file"), "few": str(tmp_path / "few.npz")}
    Path(places["file"]).write_text("not a folder and not an npz file")
    np.savez(places["few"], x=np.zeros((5, 3), np.float32), y=np.zeros(5, np.int32))
    done = demo(tmp_path, *(option.format(**places) for option in options), "--exit")
    assert done.returncode == 1
    assert sentence.format(**places) in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
