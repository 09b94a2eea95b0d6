"""Where training stands, as files beside the spool: what a restart goes on from.

A file holds float32 tensors one after the other, nothing else; which they are, and the sha256, stands in the
spool. It is written and fsynced under a new number before the spool's transaction names it, and goes when none
names it any more: whatever moment the power fails at, the checkpoint named is whole. In SQLite the same bytes
would be written twice, to the log and to the database, and pass through memory in one piece.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from protocol.weights import Array, Weights

from .position import File

FOLDER = "checkpoint"


class CheckpointLost(Exception):
    """The checkpoint cannot be read. The text says why."""


class Checkpoints:
    """The files in ``home``, which may take ``limit`` bytes with their successors.

    Written and read by the thread that trains, cleared away by the one that spools.
    """

    def __init__(self, home: Path, limit: int) -> None:
        self.limit = limit
        self._folder = home / FOLDER
        self._numbers = itertools.count(max(self._present(), default=0) + 1)

    def write(self, tensors: Iterable[Array]) -> File:
        """Durable when it returns. OSError if the disk does not take it: nothing stays of it then."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        number = next(self._numbers)
        path, digest, size = self._path(number), hashlib.sha256(), 0
        try:
            with open(path, "xb", buffering=0) as file:
                for tensor in tensors:
                    data = np.ascontiguousarray(tensor, "<f4").reshape(-1).data.cast("B")
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

    def read(self, file: File) -> Array:
        """All its numbers [n]; CheckpointLost unless they are those that were written."""
        try:
            values = np.fromfile(self._path(file.number), "<f4")
        except OSError as error:
            raise CheckpointLost(f"the checkpoint cannot be read: {error.strerror}") from error
        if hashlib.sha256(values.data).hexdigest() != file.sha256:
            raise CheckpointLost("the checkpoint is damaged")
        return values

    def clear(self, keep: Collection[File], before: int | None = None) -> None:
        """Remove all files but those of ``keep``; with ``before`` only older ones than that number."""
        kept = {file.number for file in keep}
        for number in self._present():
            if number not in kept and (before is None or number < before):
                self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.f32"

    def _present(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.f32") if path.stem.isdecimal()]

    def _settle(self) -> None:
        """The folder itself remembers the new name."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def parted(values: Array, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Weights, Array]:
    """Named views of the first of ``values``, and what is left of them; CheckpointLost if they are too few."""
    named: Weights = {}
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if at + size > len(values):
            raise CheckpointLost("the checkpoint is not one of this artifact")
        named[name] = values[at : at + size].reshape(shape)
        at += size
    return named, values[at:]
