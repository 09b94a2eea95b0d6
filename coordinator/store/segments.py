"""The bodies of updates: appended to segment files, so that one fsync makes many of them durable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from coordinator.errors import ShoalError

SEGMENT_BYTES = 64 * 1024 * 1024


class Segments:
    """Append-only files below one folder. One thread appends; any thread reads."""

    def __init__(self, folder: Path, limit: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._limit = limit
        folder.mkdir(parents=True, exist_ok=True)
        # Never append behind what a crash may have left half-written.
        self._number = max((int(path.stem) for path in folder.glob("*.segment")), default=0) + 1
        self._file = self._open(self._number)
        self._dirty = False

    def append(self, body: bytes) -> tuple[int, int]:
        """Write a body; returns segment and offset. Durable after :meth:`sync`."""
        if self._file.tell() + len(body) > self._limit and self._file.tell():
            self._rotate()
        offset = self._file.tell()
        self._file.write(body)
        self._dirty = True
        return self._number, offset

    def sync(self) -> None:
        """Wait until everything appended survives a power cut."""
        if self._dirty:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._dirty = False

    def read(self, segment: int, offset: int, size: int) -> bytes:
        if segment == self._number and self._dirty:
            self._file.flush()
        return read(self.folder, segment, offset, size)

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _path(self, segment: int) -> Path:
        return _path(self.folder, segment)

    def _rotate(self) -> None:
        """Go on in a new file; where the disk does not allow it, the old one stays in use."""
        self.sync()
        file = self._open(self._number + 1)
        self._file.close()
        self._file, self._number = file, self._number + 1

    def _open(self, number: int) -> BinaryIO:
        file = open(self._path(number), "xb")  # noqa: SIM115 - lives as long as the object
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file


def read(folder: Path, segment: int, offset: int, size: int) -> bytes:
    """A body from below ``folder``, also while another process appends there; ShoalError not-found if it is gone."""
    try:
        with open(_path(folder, segment), "rb") as file:
            file.seek(offset)
            body = file.read(size)
    except OSError as error:
        raise ShoalError("not-found", f"Segment {segment} of update bodies is gone: {error}") from error
    if len(body) != size:
        raise ShoalError("not-found", f"Segment {segment} ends before byte {offset + size}")
    return body


def _path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:08d}.segment"
