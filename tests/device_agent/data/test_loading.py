"""Every kind of source, from real files: what it gives, and one clear sentence for everything else."""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from device_agent.data import arrays
from device_agent.data.loading import Loaded, load
from device_agent.data.sound import Spectrogram, filters
from device_agent.data.source import Source
from device_agent.errors import DataError

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])
PETS = ("cat", "dog")


def told(**settings: Any) -> str:
    """The sentence with which such a source is refused."""
    with pytest.raises(DataError) as refusal:
        load(Source(**settings))
    return str(refusal.value)


def everything(loaded: Loaded) -> tuple[np.ndarray, list[int]]:
    x, y = loaded.training.batch(np.arange(len(loaded.training)))
    return x, y.tolist()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


# NumPy files.


def test_an_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y, classes=10)
    loaded = load(Source(path=tmp_path / "data.npz"))
    x, y = everything(loaded)
    np.testing.assert_array_equal(x, X)
    assert (y, loaded.training.classes, len(loaded.held_out)) == ([0, 1, 2, 1], 10, 0)


@pytest.mark.parametrize("form", ["npz", "npy"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_large_plain_arrays_are_mapped_and_need_not_fit(
    form: str, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MAPPED_FROM", 1000)
    x = np.arange(3000).reshape(300, 10).astype(dtype)
    y = np.arange(300) % 3
    if form == "npz":
        path = tmp_path / "data.npz"
        np.savez(path, x=x, y=y)
    else:
        path = tmp_path
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", y)
    loaded = load(Source(source="npz", path=path, memory_bytes=5000))
    base: Any = loaded.training.x
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert base is not None, "the samples lie in the file"
    np.testing.assert_array_equal(loaded.training.x, x)


def test_what_does_not_fit_into_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.zeros((1000, 100), np.float32), y=np.zeros(1000, np.int64))
    sentence = told(path=path, memory_bytes=100_000)
    assert "takes 0.4 MB in memory or more, 0.1 MB may be used" in sentence
    assert str(path) in sentence


def test_a_header_that_promises_the_moon_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with open(path, "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 10)}
        np.lib.format.write_array_header_1_0(file, header)
    np.save(tmp_path / "y.npy", Y)
    assert "may be used" in told(source="npz", path=tmp_path, memory_bytes=1 << 30)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, labels=Y)
    assert "has no array 'y' (there is x, labels)" in told(path=tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04 no zip", b"\x93NUMPY\x01\x00broken"])
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert "cannot be read" in (said := told(path=path)) or "is a single array" in said


def test_a_file_cut_anywhere_is_refused_by_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert "cannot be read" in told(path=path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert told(path=tmp_path / "none.npz") == f"the data file {tmp_path / 'none.npz'} does not exist"


def test_a_folder_of_npz_files_is_one_data_set_without_the_broken_ones(tmp_path: Path) -> None:
    for number in (1, 2):
        np.savez(tmp_path / f"{number}.npz", x=X + 100 * number, y=Y)
    (tmp_path / "3.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:200])
    loaded = load(Source(source="npz", path=tmp_path))
    assert everything(loaded)[0][:, 0].tolist() == [100, 103, 106, 109, 200, 203, 206, 209]
    assert len(loaded.skipped) == 1
    assert "3.npz" in loaded.skipped[0]


def test_nan_is_named_by_its_place(tmp_path: Path) -> None:
    bad = X.copy()
    bad[2, 1] = np.nan
    np.savez(tmp_path / "data.npz", x=bad, y=Y)
    assert "data.npz: x[2] holds NaN or an infinite value, expected finite" in told(path=tmp_path / "data.npz")


# Tables.

GOOD = "a,kind,b\n1,cat,2\n3,dog,4.5\n"


def table(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "data.csv").write_text(text)
    return {"path": tmp_path / "data.csv", "label": "kind", "classes": PETS}


def test_a_csv_file(tmp_path: Path) -> None:
    loaded = load(Source(**table(tmp_path, GOOD)))
    x, y = everything(loaded)
    assert (x.tolist(), y, loaded.training.classes) == ([[1, 2], [3, 4.5]], [0, 1], 2)


def test_numbers_as_labels_and_a_shape(tmp_path: Path) -> None:
    (tmp_path / "data.tsv").write_text("label\ta\tb\tc\td\n3\t1\t2\t3\t4\n")
    loaded = load(Source(path=tmp_path / "data.tsv", class_count=5, shape=(2, 2, 1)))
    assert (loaded.training.input, loaded.training.y.tolist(), loaded.training.classes) == ((2, 2, 1), [3], 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty, expected a first line that names the columns"),
        ("a,kind\n", "the data is empty"),
        ("a,b\n1,2\n", "has no column 'kind' (there is a, b): set label in [data]"),
        ("a,kind\nx,cat\n", "data.csv line 2 has 'x', expected a number"),
        ("a,kind\n1,cat\nnan,cat\n", "data.csv line 3 holds NaN"),
        ("a,kind\n,cat\n", "data.csv line 2 has '', expected a number"),
        ("a,kind\n1,cat,3\n", "data.csv line 2 has 3 cells, expected 2"),
        ("a,kind\n1,dgo\n", "the label 'dgo' is not in the class map (cat, dog)"),
        ("a,kind\n1,2\n", "y[0] is 2, expected a class number from 0 to 1"),
        ("a,kind\n1,\xff\n", None),
    ],
)
def test_bad_tables(text: str, sentence: str | None, tmp_path: Path) -> None:
    settings = table(tmp_path, text)
    if sentence is None:
        settings["path"].write_bytes(text.encode("latin-1"))
        sentence = "cannot be read as CSV"
    assert sentence in told(**settings)


def test_words_without_a_class_map_are_not_numbered_by_guessing(tmp_path: Path) -> None:
    settings = table(tmp_path, GOOD) | {"classes": None}
    assert "the labels are words (cat, dog): set classes" in told(**settings)


def test_a_line_without_an_end_counts_once_nobody_writes_it_any_more(tmp_path: Path) -> None:
    source = Source(**table(tmp_path, GOOD + "5,dog,6"))
    now = time.time()
    assert len(load(source, now - 2).training) == 2
    age(tmp_path / "data.csv", 60)
    assert len(load(source, now - 2).training) == 3


def test_a_table_is_read_within_the_budget(tmp_path: Path) -> None:
    settings = table(tmp_path, "a,b,kind\n" + "1,2,cat\n" * 5000)
    assert "may be used" in told(**settings, memory_bytes=20_000)
    assert len(load(Source(**settings, memory_bytes=500_000)).training) == 5000


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "meter.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE reading (volt REAL, ampere INTEGER, kind TEXT, curve BLOB)")
        connection.executemany(
            "INSERT INTO reading VALUES (?, ?, ?, ?)",
            [(230.5, 1, "cat", struct.pack("<3f", 1, 2, 3)), (229, 2, "dog", struct.pack("<3f", 4, 5, 6))],
        )
    connection.close()
    return path


def test_rows_of_a_query(database: Path) -> None:
    query = "SELECT volt, ampere, kind AS label FROM reading ORDER BY volt"
    x, y = everything(load(Source(source="sqlite", path=database, query=query, classes=PETS)))
    assert (x.tolist(), y) == ([[229, 2], [230.5, 1]], [1, 0])


def test_blobs_of_a_query(database: Path) -> None:
    query = "SELECT curve, kind AS label FROM reading"
    x, _ = everything(load(Source(source="sqlite", path=database, query=query, classes=PETS)))
    assert x.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (None, "the source sqlite needs a query"),
        ("SELECT volt FROM reading", "gives no column 'label' (it gives volt)"),
        ("SELECT volt, kind AS label FROM log", "no such table: log"),
        ("SELECT kind AS label, NULL FROM reading", "row 1 of the query has 'None', expected a number"),
        ("SELECT kind AS label, x'0102' FROM reading", "row 1 of the query has 2 bytes, expected float32 values"),
        ("SELECT volt, kind AS label FROM reading WHERE 0", "the data is empty: the query has no rows"),
        ("DELETE FROM reading", "attempt to write a readonly database"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
    ],
)
def test_queries_that_give_no_data(query: str | None, sentence: str, database: Path) -> None:
    assert sentence in told(source="sqlite", path=database, query=query, classes=PETS)


# Images.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index, name in enumerate(("dog", "cat")):
        (tmp_path / name).mkdir()
        Image.new("L", (6, 4), 100 + index).save(tmp_path / name / "a.png")
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "cat" / "b.bmp")
    return tmp_path


def test_folders_of_images(pictures: Path) -> None:
    loaded = load(Source(source="images", path=pictures, shape=(4, 6, 1), classes=PETS))
    assert loaded.training.x.dtype == np.uint8
    assert loaded.training.x[:, 0, 0, 0].tolist() == [101, 76, 100], "red is as grey as 0.299 · 255"
    assert loaded.training.y.tolist() == [0, 0, 1]


def test_colours(pictures: Path) -> None:
    loaded = load(Source(source="images", path=pictures, shape=(2, 3, 3), color="rgb", classes=PETS))
    assert loaded.training.x[1, 0, 0].tolist() == [255, 0, 0]


def test_an_image_cut_short_is_left_out(pictures: Path) -> None:
    whole = (pictures / "dog" / "a.png").read_bytes()
    (pictures / "dog" / "z.png").write_bytes(whole[: len(whole) - 30])
    (pictures / "dog" / ".hidden.png").write_bytes(b"")
    (pictures / "dog" / "new.png.part").write_bytes(b"")
    loaded = load(Source(source="images", path=pictures, shape=(4, 6, 1), classes=PETS))
    assert len(loaded.training) == 3
    assert [text.partition(" ")[0] for text in loaded.skipped] == [str(pictures / "dog" / "z.png")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "shape in [data] is [], expected [height, width, 1] for grey images"),
        ({"shape": (4, 6, 3)}, "expected [height, width, 1] for grey images"),
        ({"shape": (4, 6)}, "the labels are words (cat, dog)"),
        ({"shape": (4, 6), "classes": ("cat", "cow")}, "the label 'dog' is not in the class map (cat, cow)"),
        ({"shape": (4000, 6000), "memory_bytes": 1 << 20}, "takes 72.0 MB in memory or more, 1.0 MB may be used"),
    ],
)
def test_images_that_are_refused(settings: dict[str, Any], sentence: str, pictures: Path) -> None:
    assert sentence in told(source="images", path=pictures, **settings)


def test_names_of_files_may_be_any_bytes(pictures: Path) -> None:
    odd = os.fsdecode(os.fsencode(pictures) + b"/cat/\xff.png")
    Path(odd).write_bytes(b"no image")
    loaded = load(Source(source="images", path=pictures, shape=(4, 6), classes=PETS))
    assert loaded.summary()["skipped"][0].startswith(f"{pictures}/cat/?.png cannot be read")
    for name in ("a.png", "b.bmp"):
        (pictures / "cat" / name).unlink()
    (pictures / "dog" / "a.png").unlink()
    assert "?.png" in told(source="images", path=pictures, shape=(4, 6))


def test_an_image_in_no_class(pictures: Path) -> None:
    Image.new("L", (6, 4)).save(pictures / "stray.png")
    assert "lies in no folder named after its class" in told(source="images", path=pictures, shape=(4, 6))


def test_without_pillow_it_is_said_what_to_install(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert told(source="images", path=pictures, shape=(4, 6)).endswith("install the extra shoal[images]")


# Sound.


def tone(path: Path, hertz: float, seconds: float = 0.5, rate: int = 8000, wide: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(exist_ok=True)
    values = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    whole = np.round(values * (1 << (8 * wide - 1))).astype("<i8")
    data = (whole + 128).astype(np.uint8).tobytes() if wide == 1 else b"".join(
        int(v).to_bytes(wide, "little", signed=True) * channels for v in whole
    )
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, wide, rate, 0, "NONE", ""))
        file.writeframes(data)


@pytest.mark.parametrize("wide", [1, 2, 3, 4])
def test_a_tone_is_loudest_in_its_own_band(wide: int, tmp_path: Path) -> None:
    tone(tmp_path / "cat" / "low.wav", 500, wide=wide)
    tone(tmp_path / "dog" / "high.wav", 2000, wide=wide)
    loaded = load(Source(source="wav", path=tmp_path, rate=8000, seconds=0.5, mels=20, classes=PETS))
    # 25 ms windows of 200 samples every 80: 1 + (4000 - 200) // 80 frames.
    assert loaded.training.input == (48, 20)
    centres = filters(8000, 256, 20).argmax(axis=0) * 8000 / 256
    for spectrum, hertz in zip(loaded.training.x, (500, 2000), strict=True):
        band = int(spectrum.mean(axis=0).argmax())
        assert abs(centres[band] - hertz) == np.abs(centres - hertz).min()


def test_silence_and_a_hand_computed_energy() -> None:
    spectrogram = Spectrogram(8000, 0.032, 0.032, 4)
    assert spectrogram(np.zeros(256, np.float32)) == pytest.approx(np.log(1e-6))
    # A constant 1 under a Hann window of 256: bin 0 holds 128², bin 1 64², all others nothing. No filter reaches
    # bin 0; the first rises from 0 Hz to 5.13 bins, so that bin 1 counts 1/5.13 of it.
    edge = 700 * (10 ** ((2595 * np.log10(1 + 4000 / 700) / 5) / 2595) - 1) / (8000 / 256)
    heard = spectrogram(np.ones(256, np.float32))
    assert heard[0, 0] == pytest.approx(np.log(64**2 / edge), rel=1e-4)


def test_two_channels_are_averaged_and_short_files_padded(tmp_path: Path) -> None:
    tone(tmp_path / "cat" / "a.wav", 500, seconds=0.25)
    tone(tmp_path / "cat" / "b.wav", 500, seconds=0.25, channels=2)
    loaded = load(Source(source="wav", path=tmp_path, rate=8000, seconds=0.5, classes=PETS))
    np.testing.assert_allclose(loaded.training.x[0], loaded.training.x[1], atol=1e-4)
    assert loaded.training.x[0, -1] == pytest.approx(np.log(1e-6))


def test_sounds_that_are_refused_or_left_out(tmp_path: Path) -> None:
    tone(tmp_path / "cat" / "a.wav", 500)
    assert "a.wav has 8000 samples/s, expected 16000: set rate in [data]" in told(source="wav", path=tmp_path)
    whole = (tmp_path / "cat" / "a.wav").read_bytes()
    (tmp_path / "cat" / "b.wav").write_bytes(whole[:1000])
    (tmp_path / "cat" / "c.wav").write_bytes(b"RIFF")
    loaded = load(Source(source="wav", path=tmp_path, rate=8000, seconds=0.5, classes=PETS))
    assert (len(loaded.training), len(loaded.skipped)) == (1, 2)
    assert "less than one window" in told(source="wav", path=tmp_path, rate=8000, seconds=0.01)


# A function of the owner's.


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> None:
        monkeypatch.delitem(sys.modules, "owners_data", raising=False)
        (tmp_path / "owners_data.py").write_text(text)

    return write


def test_a_function(module: Callable[[str], None]) -> None:
    module("import numpy as np\ndef read():\n    return np.ones((3, 2)), np.array(['dog', 'cat', 'dog'])\n")
    loaded = load(Source(function="owners_data:read", classes=PETS))
    assert loaded.training.y.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "function", "sentence"),
    [
        ("", "owners_data", "expected module:function"),
        ("", "owners_data:read", "owners_data:read cannot be found: module 'owners_data' has no attribute 'read'"),
        ("", "nobodys:read", "nobodys:read cannot be found: No module named 'nobodys'"),
        ("def read(): 1 / 0", "owners_data:read", "owners_data:read failed: ZeroDivisionError: division by zero"),
        ("def read(): return 7", "owners_data:read", "returned int, expected (x, y) or (x, y, classes)"),
    ],
)
def test_functions_that_give_no_data(
    text: str, function: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "owners_data", raising=False)
    (tmp_path / "owners_data.py").write_text(text)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert sentence in told(function=function)


# Hold-out, shape, class map.


def test_a_sample_stays_on_its_side_when_others_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    np.savez(tmp_path / "few.npz", x=x[:200], y=np.zeros(200, np.int64))
    order = rng.permutation(500)
    np.savez(tmp_path / "many.npz", x=x[order], y=np.zeros(500, np.int64))
    few, many = (load(Source(path=tmp_path / name, holdout=0.2)) for name in ("few.npz", "many.npz"))
    out_few = {row.tobytes() for row in few.held_out.batch(np.arange(len(few.held_out)))[0]}
    out_many = {row.tobytes() for row in many.held_out.batch(np.arange(len(many.held_out)))[0]}
    assert out_few == out_many & {row.tobytes() for row in x[:200]}
    assert len(few.training) + len(few.held_out) == 200
    assert 70 < len(many.held_out) < 130
    other = load(Source(path=tmp_path / "many.npz", holdout=0.2, seed=1))
    assert {row.tobytes() for row in other.held_out.batch(np.arange(len(other.held_out)))[0]} != out_many


def test_a_hold_out_of_everything_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=X[:1], y=Y[:1])
    outcomes = set()
    for seed in range(20):
        try:
            outcomes.add(str(len(load(Source(path=tmp_path / "one.npz", holdout=0.9, seed=seed)).training)))
        except DataError as error:
            outcomes.add(str(error))
    assert outcomes == {"1", "all 1 samples fell into the hold-out: set holdout in [data] to less"}


def test_shapes_and_class_maps_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=X, y=Y)
    assert "a sample has shape (3,), which cannot be made into [2, 2] of [data]" in told(path=path, shape=(2, 2))
    assert "y[2] is 2, expected a class number from 0 to 1" in told(path=path, classes=PETS)
    assert "names a class twice" in told(path=path, classes=("cat", "cat", "dog"))
    assert load(Source(path=path, classes=("a", "b", "c", "d"))).training.classes == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": Path("/srv/samples")}, "set source to one of npz, csv, images, sqlite, wav, python in [data]"),
        ({"source": "csv"}, "the source csv needs a path in [data]"),
    ],
)
def test_a_source_that_cannot_be_guessed(settings: dict[str, Any], sentence: str) -> None:
    assert sentence in told(**settings)
