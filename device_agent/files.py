"""Numbered files beside the spool's database, for what is too large for it.

A file is written and fsynced under a new number before the spool's transaction names it, and goes when none names it
any more: whatever moment the power fails at, a file that is named is whole. In SQLite the same bytes would be written
twice, to the log and to the database, and pass through memory in one piece.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from .position import File


class FileLost(Exception):
    """What was written cannot be read. The text says why."""


class Files:
    """The files in ``folder`` with names like 7 + ``ending``."""

    def __init__(self, folder: Path, ending: str) -> None:
        self._folder, self._ending = folder, ending
        self._numbers = itertools.count(max(self._present(), default=0) + 1)

    def put(self, pieces: Iterable[memoryview]) -> File:
        """Durable when it returns. OSError if the disk does not take it: nothing stays of it then."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        number = next(self._numbers)
        path, digest, size = self.path(number), hashlib.sha256(), 0
        try:
            with open(path, "xb", buffering=0) as file:
                for piece in pieces:
                    data = piece.cast("B")
                    digest.update(data)
                    while data:
                        data = data[file.write(data) or 0 :]
                    size = file.tell()
                os.fsync(file.fileno())
            self._settle()
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return File(number=number, size=size, sha256=digest.hexdigest())

    def get(self, file: File) -> bytes:
        """What was written; FileLost if that is not there any more."""
        try:
            data = self.path(file.number).read_bytes()
        except OSError as error:
            raise FileLost(f"{self.path(file.number)} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise FileLost(f"{self.path(file.number)} is damaged")
        return data

    def clear(self, keep: Collection[int], before: int | None = None) -> None:
        """Remove all files but those numbered in ``keep``; with ``before`` only older ones than that number."""
        for number in self._present():
            if number not in keep and (before is None or number < before):
                self.path(number).unlink(missing_ok=True)

    def path(self, number: int) -> Path:
        return self._folder / f"{number}{self._ending}"

    def _present(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob(f"*{self._ending}") if path.stem.isdecimal()]

    def _settle(self) -> None:
        """The folder itself remembers the new name."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
