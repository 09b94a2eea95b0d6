"""A model is deployed by the driver of deployments: the device answers with one whole model whatever happens."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from device_agent import course as courses
from device_agent.model_kind import Model
from device_agent.releases import Verdict
from device_agent.shelf import FOLDER, InUse, Shelf
from protocol.deployments import Manifest
from protocol.wire import decode
from tests.device_agent import toy_model
from tests.device_agent.released import deploy, manifest
from tests.device_agent.test_course import Device, PowerCut, put
from tests.device_agent.toy_model import facts, files, wrong

X = np.array([0.25, 1.0, 0.5, 9.0], np.float32)
"""Of class 1; the model that is wrong says 2."""
RIGHT, WRONG = files(), files(wrong())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures are looked at elsewhere, and every look at the clock takes ten seconds."""
    seconds = itertools.count(0.0, 10.0)
    monkeypatch.setattr(courses, "verify", lambda *_: None)
    monkeypatch.setattr(courses, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(seconds)))
    monkeypatch.setattr(os, "fsync", lambda _: None)


def kind(home: Path, **more: Any) -> Model:
    loaded = toy_model.data()
    return Model(InUse(Shelf(home), "litert"), lambda: loaded, lambda: 1 << 20, patience=0.0, **more)


def device(home: Path) -> Device:
    return Device(home, kind(home))  # type: ignore[arg-type]


def fetched(home: Path, content: dict[str, bytes]) -> None:
    for data in content.values():
        put(home, data)


def text(number: int, content: dict[str, bytes], **bounds: float) -> str:
    return manifest("model", number, content, facts=facts(**bounds))


def deployed(home: Path, order: str, content: dict[str, bytes], **more: Any) -> Device:
    board = device(home)
    fetched(home, content)
    board.told(deploy(order, f"e{decode(Manifest, order.encode()).number}", trial=20, **more))
    board.run()
    return board


def answer(home: Path) -> int | None:
    return InUse(Shelf(home), "litert").model(X).label


def test_a_model_goes_through_all_states_and_answers(tmp_path: Path) -> None:
    board = device(tmp_path)
    fetched(tmp_path, RIGHT)
    board.told(deploy(text(1, RIGHT), trial=20))
    assert board.run() == ["downloading", "verifying", "staged", "switching", "probation", "succeeded"]
    assert answer(tmp_path) == 1
    assert board.end.facts["accuracy"] == 1.0
    assert not (tmp_path / "releases").exists()


def test_a_model_that_does_worse_here_has_failed_and_nothing_was_switched(tmp_path: Path) -> None:
    deployed(tmp_path, text(1, RIGHT), RIGHT)
    board = deployed(tmp_path, text(2, WRONG, max_accuracy_drop=0.05), WRONG)
    assert (board.end.state, board.end.retry) == ("failed", False)
    assert "this device's hold-out right" in board.end.text
    assert answer(tmp_path) == 1


def test_a_model_that_is_too_large_for_the_board_is_rejected(tmp_path: Path) -> None:
    board = deployed(tmp_path, text(1, RIGHT, max_memory=10), RIGHT)
    assert board.end.state == "rejected"
    assert "bytes of memory" in board.end.text


def test_the_same_model_again_is_there_already(tmp_path: Path) -> None:
    order = text(1, RIGHT)
    deployed(tmp_path, order, RIGHT)
    board = device(tmp_path)
    board.told(deploy(order, "again"))
    assert board.run()[-1] == "succeeded"
    assert "already" in board.end.text


def test_an_older_model_comes_back_when_it_is_told_to(tmp_path: Path) -> None:
    deployed(tmp_path, text(1, RIGHT), RIGHT)
    deployed(tmp_path, text(2, WRONG), WRONG)
    assert answer(tmp_path) == 2
    board = deployed(tmp_path, text(3, RIGHT), RIGHT, back=True)
    assert board.end.state == "succeeded"
    assert answer(tmp_path) == 1


@contextmanager
def cut(at: int) -> Iterator[list[str]]:
    """The power fails before the ``at``-th change of the disk. Yields the changes."""
    seen: list[str] = []
    places = [(os, name) for name in ("open", "replace", "rename", "unlink", "mkdir", "rmdir")]
    real = {(where, name): getattr(where, name) for where, name in [*places, (shutil, "copyfile")]}

    def counted(where: Any, name: str) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            reading = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            if not reading:
                seen.append(name)
                if len(seen) == at:
                    raise PowerCut
            return real[where, name](*args, **kwargs)

        return change

    patched = pytest.MonkeyPatch()
    for where, name in real:
        patched.setattr(where, name, counted(where, name))
    try:
        yield seen
    except PowerCut:
        pass
    finally:
        patched.undo()


@pytest.mark.parametrize("good", [True, False])
def test_a_power_cut_at_any_change_of_the_disk_leaves_a_whole_model(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the cut, before anything was put right, questions are answered by the old or by the new model; from
    the next start on all goes as it would have gone."""
    deployed(tmp_path, text(1, WRONG), WRONG)
    second = text(2, RIGHT)
    if not good:
        monkeypatch.setattr(Model, "judge", lambda *_: Verdict(False, "it does worse"))
    cuts, done = 0, False
    while not done:
        cuts += 1
        home = tmp_path_factory.mktemp("home") / "h"
        shutil.copytree(tmp_path, home)
        board = device(home)
        fetched(home, RIGHT)
        board.told(deploy(second, "e2", trial=20))
        with cut(at=cuts) as seen:
            board.run()
        done = len(seen) < cuts
        assert answer(home) in (1, 2), f"cut before change {cuts}: {seen[-1:]}"
        fetched(home, RIGHT)  # it would be fetched again
        again = device(home)
        again.run()
        assert again.end.state == ("succeeded" if good else "rolled-back"), f"cut before change {cuts}: {seen[-1:]}"
        assert answer(home) == (1 if good else 2)
        assert len([path for path in (home / FOLDER).iterdir() if path.is_dir()]) == 1
    assert cuts > 30
