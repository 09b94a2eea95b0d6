"""Which model a device uses is one file, replaced as a whole; who asks follows it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from device_agent.errors import HomeError, ModelError, NoModel
from device_agent.shelf import CURRENT, FOLDER, InUse, Placed, Pointer, Shelf
from tests.device_agent.toy_model import deployed, files, knowing, release, wrong

X = np.array([0.25, 1.0, 0.5, 9.0], np.float32)


def test_without_a_model_there_is_no_answer(tmp_path):
    shelf = Shelf(tmp_path)
    assert shelf.pointer == Pointer()
    with pytest.raises(NoModel, match="no model is deployed"):
        InUse(shelf, "litert").model(X)


def test_what_was_pointed_at_is_read_back(tmp_path):
    placed = Placed(version="1.0", manifest="a" * 64, width=0.5, facts={"milliseconds": 2.0})
    pointer = Pointer(now=placed, before=Placed(version="0.9", manifest="b" * 64, width=1.0), trial=True)
    Shelf(tmp_path).point(pointer)
    assert Shelf(tmp_path).pointer == pointer


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"now": {"version": "../x"}}', b"\xff" * 100])
def test_a_damaged_pointer_is_as_good_as_none(tmp_path, content):
    shelf = deployed(tmp_path, release(tmp_path / "fetched"))
    (tmp_path / FOLDER / CURRENT).write_bytes(content)
    assert shelf.pointer == Pointer()


def test_models_that_nothing_points_at_are_removed(tmp_path):
    first, second = release(tmp_path / "fetched"), release(tmp_path / "fetched", 2)
    shelf = deployed(tmp_path, first)
    deployed(tmp_path, second)
    assert not shelf.folder(first.sha256).exists()
    assert shelf.folder(second.sha256).exists()


def test_the_next_question_goes_to_the_model_that_is_pointed_at(tmp_path):
    shelf = deployed(tmp_path, release(tmp_path / "fetched"))
    in_use = InUse(shelf, "litert")
    assert in_use.model(X).label == 1
    assert in_use.model.tally.answered == 1
    deployed(tmp_path, release(tmp_path / "fetched", 2, files(wrong())))
    assert in_use.model(X).label == 2
    assert (in_use.model.tally.answered, in_use.model.tally.failed) == (1, 0)


def test_a_model_whose_trial_is_over_goes_on_as_it_is(tmp_path):
    shelf = deployed(tmp_path, release(tmp_path / "fetched"))
    now = shelf.pointer.now
    shelf.point(Pointer(now=now, trial=True))
    in_use = InUse(shelf, "litert")
    model = in_use.model
    shelf.point(Pointer(now=now))
    assert in_use.model is model
    shelf.point(Pointer())
    with pytest.raises(NoModel):
        in_use.model(X)


def test_answers_that_fail_are_counted(tmp_path):
    broken = knowing()
    broken["dense2.bias"][0] = np.inf
    in_use = InUse(deployed(tmp_path, release(tmp_path / "fetched", content=files(broken))), "litert")
    with pytest.raises(ModelError):
        in_use.model(X)
    assert (in_use.model.tally.answered, in_use.model.tally.failed) == (0, 1)


def test_a_model_that_cannot_be_loaded_is_no_model(tmp_path):
    made = release(tmp_path / "fetched")
    shelf = deployed(tmp_path, made)
    placed = shelf.pointer.now
    assert placed is not None
    assert shelf.intact(placed)
    (shelf.folder(made.sha256) / "weights-1").write_bytes(b"")
    assert not shelf.intact(placed)
    in_use = InUse(shelf, "litert")
    for _ in range(2):
        with pytest.raises(ModelError, match="damaged"):
            in_use.model(X)


def test_a_full_disk_leaves_no_half_of_a_model(tmp_path, monkeypatch):
    made = release(tmp_path / "fetched")
    made.path("weights-1").unlink()
    shelf = Shelf(tmp_path)
    with pytest.raises(HomeError, match="cannot be written"):
        shelf.place(made, ["model.json", "weights-1"])
    assert not shelf.folder(made.sha256).exists()


def test_many_threads_ask_while_the_model_changes(tmp_path: Path):
    """Every answer is one of the two models', whole."""
    shelf = deployed(tmp_path, release(tmp_path / "fetched"))
    second = release(tmp_path / "fetched", 2, files(wrong()))
    in_use = InUse(shelf, "litert")
    labels: list[int | None] = []
    switched = threading.Event()

    def ask() -> None:
        for _ in range(20):
            labels.append(in_use.model(X).label)
        switched.wait(30)
        labels.append(in_use.model(X).label)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    deployed(tmp_path, second)
    switched.set()
    for thread in threads:
        thread.join()
    assert len(labels) == 4 * 21
    assert set(labels) <= {1, 2}
    assert in_use.model(X).label == 2
