"""Checkpoint files: whole or not named by anybody."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from device_agent.checkpoint import CheckpointLost, Checkpoints, parted
from device_agent.position import File
from tests.device_agent.conversation_partner import checkpoint

LIMIT = 1 << 20
ONE, TWO = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8], np.float32)


@pytest.fixture
def files(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, LIMIT)


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "checkpoint").iterdir())


def test_what_is_written_is_read(files: Checkpoints) -> None:
    file = files.write(iter((ONE, TWO)))
    assert file.size == 8 * 4
    named, rest = parted(files.read(file), {"a": (2, 3), "b": (1,)})
    np.testing.assert_array_equal(named["a"], ONE)
    np.testing.assert_array_equal(named["b"], [7])
    np.testing.assert_array_equal(rest, [8])
    named["a"] += 1  # it belongs to the reader


def test_too_few_numbers_are_not_those_of_the_artifact(files: Checkpoints) -> None:
    with pytest.raises(CheckpointLost, match="not one of this artifact"):
        parted(files.read(files.write([TWO])), {"a": (3,)})


def test_numbers_go_on_after_a_restart(tmp_path: Path, files: Checkpoints) -> None:
    first = files.write([ONE])
    assert Checkpoints(tmp_path, LIMIT).write([ONE]).number > first.number


def test_damage_is_noticed(tmp_path: Path, files: Checkpoints) -> None:
    file = files.write([ONE])
    path = tmp_path / "checkpoint" / f"{file.number}.f32"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(CheckpointLost, match="damaged"):
        files.read(file)
    path.unlink()
    with pytest.raises(CheckpointLost, match="No such file"):
        files.read(file)


def test_only_what_is_kept_stays_and_what_is_newer(tmp_path: Path, files: Checkpoints) -> None:
    one, two, three, four = (files.write([ONE]) for _ in range(4))
    files.clear([one], before=three.number)
    assert names(tmp_path) == ["1.f32", "3.f32", "4.f32"]
    files.clear([four])
    assert names(tmp_path) == ["4.f32"]
    assert two.number == 2


def test_of_a_full_disk_nothing_stays(tmp_path: Path, files: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write([TWO])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write([ONE])
    assert names(tmp_path) == ["1.f32"]


def test_a_checkpoint_after_a_commit_is_one_file() -> None:
    place = checkpoint("a1", 1)
    assert place.files == (place.weights,)
    other = File(number=9, size=4, sha256="f" * 64)
    both = type(place)(assignment="a1", position=place.position, weights=place.weights, base=other)
    assert both.files == (place.weights, other)
    same = type(place)(assignment="a1", position=place.position, weights=other, base=other)
    assert same.files == (other,)
