"""From a source to a checked data set: class map, shape, hold-out."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from device_agent.dataset import Dataset, checked
from device_agent.errors import DataError, printable

from . import folder
from .budget import Budget, budget
from .source import Samples, Source

READERS = {
    "npz": "arrays.samples",
    "csv": "table.from_csv",
    "images": "images.samples",
    "sqlite": "table.from_sqlite",
    "wav": "sound.samples",
    "python": "function.samples",
}
"""Kind to the function of this package that reads it: only what is used is loaded into a small memory."""


@frozen
class Loaded:
    """``training`` and ``held_out`` are disjoint views of the same samples; ``skipped``: files left out, and why."""

    training: Dataset
    held_out: Dataset
    skipped: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """What may be said about the data on this device."""
        return {
            "samples": len(self.training),
            "held_out": len(self.held_out),
            "input": list(self.training.input),
            "classes": self.training.classes,
            "skipped": [printable(text) for text in self.skipped[:10]],
        }


def load(source: Source, settled_before: float | None = None, root: Path = Path("/")) -> Loaded:
    """Read and check ``source``; DataError says in one sentence what is wrong with it.

    Files modified after ``settled_before`` (seconds since 1970, default: now) are left alone.
    """
    before = time.time() if settled_before is None else settled_before
    allowed = budget(source.name, source.memory_bytes, root)
    try:
        samples = _reader(source.kind)(source, allowed, before)
    except MemoryError as error:
        raise DataError(f"{source.name} does not fit into memory") from error
    try:
        dataset = checked(_shaped(samples.x, source), *_numbered(samples, source))
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    return split(dataset, source.holdout, source.seed, samples.skipped)


def _reader(kind: str) -> Callable[[Source, Budget, float], Samples]:
    module, _, name = READERS[kind].partition(".")
    found: Callable[[Source, Budget, float], Samples] = getattr(import_module(f".{module}", __package__), name)
    return found


def fingerprint(source: Source, settled_before: float) -> str:
    """Another text whenever the source has changed; of a function nobody can tell."""
    return "" if source.kind == "python" else folder.fingerprint(source.where(), settled_before)


def split(dataset: Dataset, share: float, seed: int, skipped: tuple[str, ...] = ()) -> Loaded:
    """Hold out about ``share`` of the samples. Which ones depends on their content and the seed, not on their place:
    a sample stays on its side when others come or go."""
    everything = np.arange(len(dataset))
    out = np.zeros(len(dataset), bool)
    if share > 0:
        key = seed.to_bytes(8, "little")
        limit = int(share * (1 << 64))
        for row in range(len(dataset)):
            digest = blake2b(np.ascontiguousarray(dataset.x[row]).tobytes(), digest_size=8, key=key).digest()
            out[row] = int.from_bytes(digest, "little") < limit
        if out.all():
            raise DataError(f"all {len(dataset)} samples fell into the hold-out: set holdout in [data] to less")
    training = evolve(dataset, rows=everything[~out] if share > 0 else None)
    return Loaded(training, evolve(dataset, rows=everything[out]), skipped)


def _shaped(x: NDArray[Any], source: Source) -> NDArray[Any]:
    if source.shape is None or x.ndim < 1 or x.shape[1:] == source.shape:
        return x
    if int(np.prod(x.shape[1:], dtype=object)) != int(np.prod(source.shape, dtype=object)):
        raise DataError(f"a sample has shape {x.shape[1:]}, which cannot be made into {list(source.shape)} of [data]")
    return x.reshape(len(x), *source.shape)


def _numbered(samples: Samples, source: Source) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Labels as class numbers, and how many classes there are."""
    labels, names = samples.labels, source.classes
    if names is not None and len(set(names)) < len(names):
        raise DataError("classes in [data] names a class twice")
    count = len(names) if names is not None else source.class_count
    classes = samples.classes if count is None else np.array(count)
    if labels.dtype.kind not in "US":
        return labels, classes
    words = labels.astype(str)
    if names is None:
        seen = sorted(set(words.tolist()))
        raise DataError(
            f"the labels are words ({', '.join(seen[:10])}): set classes = [...] in [data], in the order of the "
            "model's class numbers"
        )
    number = {name: index for index, name in enumerate(names)}
    unknown = [word for word in words.tolist() if word not in number]
    if unknown:
        raise DataError(f"the label {unknown[0][:80]!r} is not in the class map ({', '.join(names[:20])})")
    return np.array([number[word] for word in words.tolist()], np.int64), classes
