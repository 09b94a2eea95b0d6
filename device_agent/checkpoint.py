"""Where training stands, as files beside the spool: what a restart goes on from.

A file holds float32 tensors one after the other, nothing else; which they are, and the sha256, stands in the spool.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from protocol.weights import Array, Weights

from .files import Files
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
        self._files = Files(home / FOLDER, ".f32")

    def write(self, tensors: Iterable[Array]) -> File:
        """Durable when it returns. OSError if the disk does not take it: nothing stays of it then."""
        return self._files.put(np.ascontiguousarray(tensor, "<f4").reshape(-1).data for tensor in tensors)

    def read(self, file: File) -> Array:
        """All its numbers [n]; CheckpointLost unless they are those that were written."""
        try:
            values = np.fromfile(self._files.path(file.number), "<f4")
        except OSError as error:
            raise CheckpointLost(f"the checkpoint cannot be read: {error.strerror}") from error
        if hashlib.sha256(values.data).hexdigest() != file.sha256:
            raise CheckpointLost("the checkpoint is damaged")
        return values

    def clear(self, keep: Collection[File], before: int | None = None) -> None:
        """Remove all files but those of ``keep``; with ``before`` only older ones than that number."""
        self._files.clear({file.number for file in keep}, before)


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
