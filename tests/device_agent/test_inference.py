"""A released model answers as the numbers in its files say, or says what is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from device_agent.errors import ModelError
from device_agent.inference import MANIFEST, Predictor
from protocol import tensors
from tests.device_agent.toy_model import BACKENDS, deployed, files, knowing, release, samples

X = np.array([0.25, 1.0, 0.5, 9.0], np.float32)


def folder(tmp_path: Path, content: dict[str, bytes] | None = None) -> Path:
    made = release(tmp_path / "fetched", content=content)
    return deployed(tmp_path / "home", made).folder(made.sha256)


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_classes_have_probabilities(tmp_path, backend, width):
    found = Predictor(folder(tmp_path), width, backend)(X)
    powers = [math.exp(value) for value in (0.25, 1.0, 0.5)]
    assert found.label == 1
    assert found.probabilities == pytest.approx([power / sum(powers) for power in powers], rel=1e-6)
    assert found.milliseconds > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_right_about_every_sample(tmp_path, backend):
    x, y = samples()
    predictor = Predictor(folder(tmp_path), 0.5, backend)
    assert [predictor(one).label for one in x] == y.tolist()


@pytest.mark.parametrize("name", ["weights-1", "infer-1.tflite", "model.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    place = folder(tmp_path)
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} is damaged: deploy 1.0 again"):
        Predictor(place, 1.0, "litert")


@pytest.mark.parametrize("name", ["weights-1", MANIFEST])
def test_a_missing_file_is_named(tmp_path, name):
    place = folder(tmp_path)
    (place / name).unlink()
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        Predictor(place, 1.0, "litert")


def test_a_width_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no width 0.25"):
        Predictor(folder(tmp_path), 0.25, "litert")


@pytest.mark.parametrize(
    ("card", "expected"),
    [({"input": (5,)}, "samples of shape"), ({"classes": 7}, "knows 3 classes")],
)
def test_a_card_of_another_model_is_refused(tmp_path, card, expected):
    with pytest.raises(ModelError, match=expected):
        Predictor(folder(tmp_path, files(**card)), 1.0, "litert")


def test_weights_of_another_model_are_refused(tmp_path):
    content = files()
    content["weights-1"] = tensors.encode({"other": np.zeros(3, np.float32)})
    with pytest.raises(ModelError, match="weights differ"):
        Predictor(folder(tmp_path, content), 1.0, "litert")


def test_an_answer_that_is_no_number_is_none(tmp_path):
    broken = knowing()
    broken["dense2.bias"][1] = np.nan
    predictor = Predictor(folder(tmp_path, files(broken)), 1.0, "litert")
    with pytest.raises(ModelError, match="not finite"):
        predictor(X)
