"""Samples without labels come from files of every kind, in the shape that the model takes."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from device_agent.data import sample_file
from device_agent.data.loading import load
from device_agent.data.source import Source
from device_agent.errors import DataError

SOURCE = Source()
FOUR = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def read(path: Path, shape: tuple[int, ...] = (4,), source: Source = SOURCE) -> np.ndarray:
    found = sample_file.read(path, shape, source)
    assert found.dtype == np.float32
    assert found.shape[1:] == shape
    return found


@pytest.mark.parametrize("array", [FOUR, FOUR[None], FOUR.reshape(2, 2), FOUR.astype(np.float64)], ids=str)
def test_an_array_is_one_sample_or_many(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    shape = array.shape if array.shape == (2, 2) else (4,)
    assert read(tmp_path / "x.npy", shape).ravel().tolist() == [1, 2, 3, 4]


def test_rows_become_samples_of_the_models_shape(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32).reshape(2, 4))
    assert read(tmp_path / "x.npy", (2, 2)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_an_npz_file_is_read_without_its_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([[0, 255, 51, 0]], np.uint8), y=np.array([1]))
    assert read(tmp_path / "data.npz").tolist() == [[0.0, 1.0, pytest.approx(0.2), 0.0]]


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4\n", "a,b,c,d\n1,2,3,4\n", "a,b,label,c,d\n1,2,walk,3,4\n", "\ufeffa,b,c,d\n\n1,2,3,4"],
)
def test_a_table_may_name_its_columns_and_labels(tmp_path, text):
    (tmp_path / "row.csv").write_text(text, encoding="utf-8")
    assert read(tmp_path / "row.csv").tolist() == [[1, 2, 3, 4]]


def test_an_image_is_scaled_to_the_model(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "white.png")
    for channels in (1, 3):
        assert (read(tmp_path / "white.png", (4, 4, channels)) == 1).all()


def test_sound_is_what_it_is_for_training(tmp_path):
    folder = tmp_path / "sounds" / "hum"
    folder.mkdir(parents=True)
    tone = (np.sin(np.arange(4000) / 5) * 20000).astype("<i2")
    with wave.open(str(folder / "hum.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(4000)
        file.writeframes(tone.tobytes())
    source = Source(source="wav", path=tmp_path / "sounds", classes=("hum",), rate=4000, mels=8, settle=0.0)
    trained = load(source, settled_before=2e10).training.x
    assert (read(folder / "hum.wav", trained.shape[1:], source) == trained).all()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.txt", b"1", "of no kind that is known"),
        ("x.npy", b"", "npy"),
        ("x.npy", b"\x93NUMPY\x01\x00" + b"\xff" * 30, "npy"),
        ("x.npz", b"PK", "npz"),
        ("x.csv", b"", "no rows"),
        ("x.csv", b"a,b\n", "no rows"),
        ("x.csv", b"1,2,3,4\n1,2\n", "has 2 cells, the first has 4"),
        ("x.csv", b"1,2,3,4\n1,2,,4\n", "has '', expected a number"),
        ("x.csv", b"1,2,3\n", r"x has shape \[1, 3\], the model takes samples of shape \[4\]"),
        ("x.csv", b"1,2,3,nan\n", "NaN"),
        ("x.csv", b"\xff\xfe", "CSV"),
        ("x.wav", b"RIFF", "WAV"),
        ("x.png", b"no", "no images"),
    ],
)
def test_what_is_no_sample_is_refused_in_a_sentence(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        sample_file.read(tmp_path / name, (4,), SOURCE)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.npy cannot be read: No such file"):
        sample_file.read(tmp_path / "gone.npy", (4,), SOURCE)


def test_a_header_that_claims_more_than_the_file_takes_no_memory(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)})
    with pytest.raises(DataError, match="claims"):
        sample_file.read(tmp_path / "x.npy", (4,), SOURCE)
