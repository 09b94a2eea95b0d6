"""NumPy files: an ``.npz`` with ``x`` [n, ...] and ``y`` [n], a folder of such, or ``x.npy`` and ``y.npy``.

Large arrays that are stored uncompressed are mapped, not read: they may be larger than the memory. Replace such a file
by renaming another one over it; one that is cut short while it is mapped ends the process.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from device_agent.errors import DataError

from .budget import Budget
from .folder import listing
from .source import Samples, Source

MAPPED_FROM = 64 << 20  # bytes; smaller arrays are read, so that their files may be written over in place
_DAMAGE = (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError)
_FORMAT: Any = np.lib.format
_LOCAL_HEADER = 30  # bytes before the names in a zip member's own header


@frozen
class _Array:
    """An array in a file, not read yet. ``start``: byte of the file where its values begin, None if compressed."""

    file: Path
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int | None
    read: Callable[[], NDArray[Any]]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def get(self, budget: Budget) -> NDArray[Any]:
        """The values, mapped where that is possible and worth it."""
        mappable = self.start is not None and not self.fortran and self.dtype in (np.float32, np.uint8)
        if mappable and self.size >= MAPPED_FROM:
            return np.memmap(self.file, self.dtype, "r", self.start or 0, self.shape)
        budget.ask(self.size if self.dtype.itemsize <= 4 else self.size * 3 // 2)  # float64 becomes float32
        return self.read()


def samples(source: Source, budget: Budget, settled_before: float) -> Samples:
    """What ``source`` holds; DataError says in one sentence what is wrong with it."""
    path = source.where()
    if path.is_dir() and not (path / "x.npy").exists():
        return _joined(path, budget, settled_before)
    try:
        if path.is_dir():
            x, y = _loose(path / "x.npy"), _loose(path / "y.npy")
            return Samples(x.get(budget), y.get(budget))
        with _Members(path) as members:
            return Samples(members.need("x").get(budget), members.need("y").get(budget), members.classes())
    except FileNotFoundError as error:
        raise DataError(f"the data file {error.filename} does not exist") from error
    except _DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error


def _joined(folder: Path, budget: Budget, settled_before: float) -> Samples:
    """All files of a folder, one behind the other."""
    found = listing(folder, (".npz",), settled_before)
    good: list[tuple[NDArray[Any], NDArray[Any]]] = []
    skipped = []
    counts: list[NDArray[Any]] = []
    size = 0
    for file in found.files:
        try:
            with _Members(file) as members:
                x, y = members.need("x"), members.need("y")
                if good and x.shape[1:] != good[0][0].shape[1:]:
                    expected = good[0][0].shape[1:]
                    raise DataError(f"{file}: a sample of x has shape {x.shape[1:]}, those before {expected}")
                size += x.size + y.size
                budget.ask(2 * size)  # while they are joined, everything is there twice
                good.append((x.read(), y.read()))
                counts += [] if (count := members.classes()) is None else [count]
        except DataError:
            raise
        except _DAMAGE as error:
            skipped.append(f"{file}: {error}")
    if not good:
        why = f"{found.unsettled} are still being written" if found.unsettled else "; ".join(skipped[:1]) or "none"
        raise DataError(f"the data is empty: {folder} holds no .npz file that can be read ({why})")
    joined = [np.concatenate(parts) for parts in zip(*good, strict=True)]
    return Samples(joined[0], joined[1], max(counts, key=int) if counts else None, tuple(skipped))


class _Members:
    """The arrays of an ``.npz`` file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Members:
        with open(self._path, "rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            raise DataError(f"{self._path} is a single array, expected an .npz file with the arrays x and y")
        self._zip = zipfile.ZipFile(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def need(self, name: str) -> _Array:
        there = [member.removesuffix(".npy") for member in self._zip.namelist()]
        if name not in there:
            listed = ", ".join(there) or "nothing"
            raise DataError(f"{self._path} has no array {name!r} (there is {listed}), expected x and y")
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as member:
            shape, fortran, dtype = _header(member)
            behind = member.tell()
        start = None if info.compress_type != zipfile.ZIP_STORED else self._values(info) + behind
        return _Array(self._path, shape, fortran, dtype, start, lambda: self._read(info))

    def classes(self) -> NDArray[Any] | None:
        return self.need("classes").read() if "classes.npy" in self._zip.namelist() else None

    def _values(self, info: zipfile.ZipInfo) -> int:
        """Byte of the file where a member's content begins."""
        with open(self._path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return info.header_offset + _LOCAL_HEADER + names

    def _read(self, info: zipfile.ZipInfo) -> NDArray[Any]:
        with self._zip.open(info) as member:
            found: NDArray[Any] = _FORMAT.read_array(member, allow_pickle=False)
            return found


def _loose(path: Path) -> _Array:
    with open(path, "rb") as file:
        shape, fortran, dtype = _header(file)
        return _Array(path, shape, fortran, dtype, file.tell(), lambda: np.load(path, allow_pickle=False))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = _FORMAT.read_magic(file)
    if version == (1, 0):
        return _FORMAT.read_array_header_1_0(file)
    return _FORMAT.read_array_header_2_0(file)
