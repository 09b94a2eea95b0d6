"""Which samples make which batch: shuffled epochs that go on where they were left, also after a restart."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.messages import Message


@frozen(kw_only=True)
class Order(Message):
    """Where the shuffling stands: ``row`` of an epoch of ``samples``, the generator's state before it and now."""

    samples: int
    row: int
    epoch: str
    now: str


def seeded(assignment: str) -> np.random.Generator:
    """The generator of one assignment: a repeat after a crash draws the same batches."""
    digest = hashlib.sha256(assignment.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


class Batches:
    """Endless shuffled epochs as (indices [batch], sample weights [batch]).

    What is left at the end of an epoch is padded with sample 0 at weight 0. ``rng`` may be used for other things
    between two batches. With ``order`` they go on where another object's :meth:`order` was taken; if there are more
    or fewer samples by now, with a new epoch.
    """

    def __init__(self, samples: int, batch: int, rng: np.random.Generator, order: Order | None = None) -> None:
        self._samples, self._batch, self._rng = samples, batch, rng
        self._row = samples
        self._epoch = ""
        self._permutation: NDArray[np.intp] = np.empty(0, np.intp)
        if order is not None:
            if order.samples == samples and order.row < samples:
                _set(rng, order.epoch)
                self._shuffle()
                self._row = order.row
            _set(rng, order.now)

    def __next__(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        if self._row >= self._samples:
            self._shuffle()
        part = self._permutation[self._row : self._row + self._batch]
        self._row += self._batch
        indices = np.zeros(self._batch, np.intp)
        weights = np.zeros(self._batch, np.float32)
        indices[: len(part)] = part
        weights[: len(part)] = 1
        return indices, weights

    def order(self) -> Order:
        return Order(samples=self._samples, row=self._row, epoch=self._epoch, now=_state(self._rng))

    def _shuffle(self) -> None:
        self._epoch = _state(self._rng)
        self._permutation = self._rng.permutation(self._samples)
        self._row = 0


def _state(rng: np.random.Generator) -> str:
    return json.dumps(rng.bit_generator.state)


def _set(rng: np.random.Generator, state: str) -> None:
    rng.bit_generator.state = json.loads(state)
