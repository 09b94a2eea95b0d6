"""The reference model, and the order of runtimes that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.compiler.reference import files
from device_agent import speed
from device_agent.offer import backend
from device_agent.runtime import backends
from device_agent.settings import Settings


def test_the_agent_carries_what_the_compiler_makes_today() -> None:
    made = files()
    assert set(made) == {path.name for path in speed._FOLDER.iterdir()}
    how = "run python -m coordinator.compiler.reference device_agent/reference"
    for name, content in made.items():
        assert (speed._FOLDER / name).read_bytes() == content, how


@pytest.mark.parametrize("name", backends())
def test_every_runtime_trains_the_reference_model(name: str) -> None:
    step = speed.step_of(name, "0.25")
    losses = [speed.run(step) for _ in range(40)]
    assert losses[0] == pytest.approx(2.3, abs=0.5), "ten classes at random: ln 10"
    assert losses[-1] < losses[0]


def test_measured_speeds_are_remembered(tmp_path: Path) -> None:
    assert speed.remembered(tmp_path) == {}
    speed.remember(tmp_path, {"tflite": {"1": 2.5}})
    assert speed.remembered(tmp_path) == {"tflite": {"1": 2.5}}
    (tmp_path / speed.FILE).write_text("[1]")
    assert speed.remembered(tmp_path) == {}


def test_the_fastest_comes_first_and_numpy_last() -> None:
    all_three = ["litert", "tflite", "numpy"]
    assert speed.ranked(all_three, {}) == all_three
    measured = {"litert": {"1": 3.0}, "tflite": {"1": 2.0}, "numpy": {"1": 1.0}}
    assert speed.ranked(all_three, measured) == ["tflite", "litert", "numpy"]
    assert speed.ranked(all_three, {"tflite": {"1": 2.0}}) == ["tflite", "litert", "numpy"]


@pytest.mark.skipif(len(backends()) < 2, reason="one runtime leaves no choice")
def test_the_agent_takes_the_fastest_unless_it_is_told_another(tmp_path: Path) -> None:
    first, second = backends()[:2]
    speed.remember(tmp_path, {first: {"1": 9.0}, second: {"1": 1.0}})
    assert backend(Settings(home=tmp_path)) == (first if second == "numpy" else second)
    assert backend(Settings(home=tmp_path, backend=first)) == first
