"""The demo's parts: what data it takes, how it paces its agents, what it says, and that they do not outlive it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import click.testing
import numpy as np
import pytest

from coordinator.cli import main
from coordinator.compiler.spec import ModelSpec
from coordinator.compiler.zoo import ZOO
from coordinator.demo import data, fleet, report
from coordinator.errors import ShoalError
from coordinator.training.evaluation import read_dataset


def saved(x: object, y: object) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.asarray(x), y=np.asarray(y))
    return file.getvalue()


def single() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((200, 4)))
    return file.getvalue()


GOOD = saved(np.random.default_rng(0).random((200, 4), np.float32), np.arange(200) % 5)
FLIPPED = bytes(byte ^ 255 if 200 < place < 400 else byte for place, byte in enumerate(GOOD))


@pytest.mark.parametrize("content", [single(), GOOD[:100], GOOD[:-30], FLIPPED, b"", b"PK\x03\x04"])
def test_a_file_that_is_no_whole_npz_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(content)
    with pytest.raises(ShoalError, match=r"samples\.npz is not an npz file with arrays x and y"):
        data.from_file(path)


@pytest.mark.parametrize("label", [200, 1_000_000, 2**40])
def test_more_classes_than_samples_are_refused(tmp_path: Path, label: int) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(saved(np.zeros((200, 4), np.float32), [label] * 200))
    with pytest.raises(ShoalError, match=f"the label {label}: .* at most 200"):
        data.from_file(path)


def test_test_control_and_training_samples_are_disjoint_and_the_coordinator_reads_the_first_two(tmp_path: Path) -> None:
    samples = data.Samples(np.arange(200, dtype=np.float32)[:, None], np.arange(200, dtype=np.int32) % 5, 5)
    parts = data.split(samples, np.random.default_rng(3))
    assert [len(part.y) for part in parts] == [30, 30, 140]
    assert np.array_equal(np.sort(np.concatenate([part.x[:, 0] for part in parts])), np.arange(200))
    test, control, _ = parts
    test.save(tmp_path / "test.npz", control)
    spec = ModelSpec.from_json('{"name": "x", "input": [1], "classes": 5, "layers": [{"dense": {"units": 5}}]}')
    read = read_dataset(tmp_path / "test.npz", spec)
    assert read.control is not None
    assert np.array_equal(read.x, test.x)
    assert np.array_equal(read.control.x, control.x)
    assert np.array_equal(read.control.y, control.y)


def test_good_samples_are_read_and_dealt_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_bytes(GOOD)
    samples = data.from_file(path)
    hands = data.deal(samples, 4, np.random.default_rng(1))
    assert (samples.classes, sum(len(hand.y) for hand in hands)) == (5, 200)


def test_the_digits_are_paced_as_ever_and_costly_models_less_with_the_same_ratios(tmp_path: Path) -> None:
    assert fleet.pace(ZOO["digits"], 8) == 250
    assert fleet.pace(ZOO["cnn"], 8) == 8
    assert 8 < fleet.pace(ZOO["mlp"], 8) < 250
    paces = [agent.tier.pace for agent in fleet.muster(tmp_path, 4, 10.0)]
    assert paces == pytest.approx([36, 30, 16.7, 10])


@pytest.mark.parametrize(
    ("versions", "updates", "sentence"),
    [
        (0, {"applied": 0, "stale": 0}, "2.0 s, no versions, no updates"),
        (1, {"applied": 1, "stale": 0}, "2.0 s, 1 version, 1 applied update"),
        (3, {"applied": 9, "stored": 2, "stale": 1}, "2.0 s, 3 versions, 9 applied, 2 stored and 1 stale updates"),
    ],
)
def test_what_the_run_took_is_said_in_words(versions: int, updates: dict[str, int], sentence: str) -> None:
    found = report.Report(False, None, 0.9, 2.0, None, versions, updates, [])
    assert report.spent(found) == sentence


def test_images_without_channels_and_a_summary_nobody_can_write_are_told_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "grey.npz"
    path.write_bytes(saved(np.zeros((200, 28, 28), np.float32), np.arange(200) % 10))
    said = click.testing.CliRunner().invoke(main, ["demo", "--data", str(path)])
    assert said.exit_code == 1
    assert "add a channel axis" in said.output
    for file in (tmp_path, tmp_path / "missing" / "out.json"):
        said = click.testing.CliRunner().invoke(main, ["demo", "--json", str(file)])
        assert said.exit_code == 1
        assert f"{file} cannot be written" in said.output


def test_samples_that_do_not_fit_the_model_are_told_before_the_start(tmp_path: Path) -> None:
    path, x = tmp_path / "samples.npz", np.zeros((200, 64), np.float32)
    for content, sentence in (
        (saved(x, np.arange(200) % 12), f"{path}: there is a label 11, model digits knows 0 to 9"),
        (saved(x[:, :9], np.arange(200) % 10), f"{path}: samples have the shape (9,), model digits takes (64,)"),
    ):
        path.write_bytes(content)
        said = click.testing.CliRunner().invoke(main, ["demo", "--data", str(path), "--model", "digits"])
        assert (said.exit_code, "Shoal is at" in said.output) == (1, False)
        assert sentence in said.output


@pytest.mark.skipif(sys.platform != "linux", reason="the system cannot do it")
def test_agents_die_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from coordinator.demo.fleet import _last_will;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=_last_will());"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:1]
    except (ProcessLookupError, FileNotFoundError):
        return False
