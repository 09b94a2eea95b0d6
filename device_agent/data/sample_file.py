"""Files of samples without labels, for a model to answer."""

from __future__ import annotations

import csv
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import DataError
from protocol.weights import Array

from .source import Source, Unreadable
from .unlabelled import array, shaped

MOST_BYTES = 64 << 20  # of a file
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError)


def read(path: Path, shape: tuple[int, ...], source: Source) -> Array:
    """The samples of a file, float32 [n, *shape].

    ``.npy`` and ``.npz`` (its array ``x``) hold one sample or many, ``.csv`` and ``.tsv`` one in each row, with or
    without a line that names the columns, of which the label's is left out; ``.wav`` and images hold one, which is
    treated as ``source`` (settings ``[data]``) says. DataError for what fits neither.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected at most {MOST_BYTES}")
        found = _read(path, shape, source)
    except Unreadable as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return shaped(found, shape)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read(path: Path, shape: tuple[int, ...], source: Source) -> NDArray[Any]:
    from . import images, sound

    kind = path.suffix.lower()
    if kind == ".npz":
        with open(path, "rb") as file:
            return _member(file, path)
    if kind == ".npy":
        return array(path.read_bytes())
    if kind in (".csv", ".tsv"):
        return _rows(path, source.label)
    if kind == ".wav":
        length = round(source.seconds * source.rate)
        spectrogram = sound.Spectrogram(source.rate, source.window, source.hop, source.mels)
        spectrogram.frames(length)
        return spectrogram(sound.waveform(path, source.rate, length))
    if kind in images.SUFFIXES:
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise DataError(f"the model takes samples of shape {list(shape)}, which are no images")
        mode = images.MODES["rgb" if shape[2] == 3 else "grey"]
        return images.pixels(images.library(), path, mode, shape).reshape(shape)
    known = ", ".join((".npz", ".npy", ".csv", ".tsv", ".wav", *images.SUFFIXES))
    raise DataError(f"{path} is of no kind that is known, expected one of {known}")


def _member(file: IO[bytes], path: Path) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if "x.npy" not in names:
                there = ", ".join(name.removesuffix(".npy") for name in names[:10]) or "nothing"
                raise DataError(f"{path} has no array 'x' (there is {there})")
            info = archive.getinfo("x.npy")
            if info.file_size > MOST_BYTES:
                raise DataError(f"x of {path} has {info.file_size} bytes, expected at most {MOST_BYTES}")
            return array(archive.read(info))
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error


def _rows(path: Path, label: str) -> NDArray[Any]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as text:
            rows = [row for row in csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    place = None
    if rows and not all(map(_is_number, rows[0])):
        columns = rows.pop(0)
        place = columns.index(label) if label in columns else None
    if not rows:
        raise DataError(f"{path} has no rows, expected at least one")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DataError(f"row {number} of {path} has {len(row)} cells, the first has {width}")
        if place is not None:
            del row[place]
        for cell in row:
            if not _is_number(cell):
                raise DataError(f"row {number} of {path} has {cell[:40]!r}, expected a number")
    return np.array([[float(cell) for cell in row] for row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
