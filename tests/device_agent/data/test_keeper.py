"""Data that changes, breaks and is mended again while the agent runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from device_agent.data import arrays
from device_agent.data.keeper import Found, Keeper, Spoiled
from device_agent.data.source import Source

NOW = 1_000_000.0


class Watched:
    """A folder, its keeper, and what that said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[object] = []
        self.keeper = Keeper(Source(source="npz", path=folder, settle=2, every=30), self.said.append)

    def write(self, name: str, samples: int, at: float, value: float = 0.0) -> None:
        path = self.folder / name
        np.savez(path, x=np.full((samples, 3), value, np.float32), y=np.zeros(samples, np.int64))
        os.utime(path, (at, at))

    def look(self, at: float) -> list[object]:
        """What one look brings: numbers of samples, or sentences."""
        self.said.clear()
        self.keeper.look(at)
        return [
            len(one.loaded.training) if isinstance(one, Found) else one.reason
            for one in self.said
            if isinstance(one, Found | Spoiled)
        ]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_growing_folder_is_read_again_only_when_something_changed(watched: Watched) -> None:
    watched.write("a.npz", 5, NOW - 100)
    assert watched.look(NOW) == [5]
    assert watched.look(NOW + 30) == []
    watched.write("b.npz", 2, NOW + 40)
    assert watched.look(NOW + 60) == [7]
    (watched.folder / "a.npz").unlink()
    assert watched.look(NOW + 90) == [2]


def test_a_file_that_is_being_written_is_waited_for(watched: Watched) -> None:
    watched.write("a.npz", 5, NOW - 100)
    watched.write("b.npz", 2, NOW + 29)
    assert watched.look(NOW + 30) == [5]
    assert watched.look(NOW + 31.5) == [7]


def test_one_file_that_is_being_written_over_is_waited_for(watched: Watched) -> None:
    watched.write("data.npz", 5, NOW - 100)
    watched.keeper = Keeper(Source(path=watched.folder / "data.npz", settle=2, every=30), watched.said.append)
    assert watched.look(NOW) == [5]
    (watched.folder / "data.npz").write_bytes(b"half")
    os.utime(watched.folder / "data.npz", (NOW + 29, NOW + 29))
    assert watched.look(NOW + 30) == []
    watched.write("data.npz", 6, NOW + 31)
    assert watched.look(NOW + 40) == [6]


def test_damage_is_told_once_and_so_is_its_end(watched: Watched) -> None:
    watched.write("a.npz", 5, NOW - 100)
    assert watched.look(NOW) == [5]
    watched.write("b.npz", 1, NOW, np.nan)
    (said,) = watched.look(NOW + 30)
    assert "x[5] holds NaN" in str(said)
    assert watched.look(NOW + 60) == []
    (watched.folder / "b.npz").unlink()
    assert watched.look(NOW + 90) == [5]


def test_nothing_yet_is_a_state_that_ends(watched: Watched) -> None:
    (said,) = watched.look(NOW)
    assert "the data is empty" in str(said)
    watched.write("a.npz", 5, NOW)
    assert watched.look(NOW + 30) == [5]


def test_a_folder_that_is_away_comes_back(watched: Watched) -> None:
    home = watched.folder.with_name(watched.folder.name + "-unplugged")
    watched.write("a.npz", 5, NOW - 100)
    assert watched.look(NOW) == [5]
    watched.folder.rename(home)
    (said,) = watched.look(NOW + 30)
    assert "does not exist" in str(said)
    home.rename(watched.folder)
    assert watched.look(NOW + 60) == [5]


def test_a_cause_outside_the_files_is_tried_again_ever_more_seldom(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.write("a.npz", 5, NOW - 100)
    tries = []

    def short_of_memory(*_: object) -> None:
        tries.append(1)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "samples", short_of_memory)
        for step in range(40):
            watched.look(NOW + 30 * step)
    assert 5 <= len(tries) <= 8
    assert watched.look(NOW + 30 * 80) == [5]
