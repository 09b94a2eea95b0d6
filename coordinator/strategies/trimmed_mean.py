"""Coordinate-wise median and trimmed mean.

Yin et al.: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018 (arXiv 1803.01498). Of
the K updates of a buffer (as in FedBuff) a coordinate moves by the median of those that cover it, or by their mean
without the β·n largest and the β·n smallest of the n. The paper takes a β of which β·n is whole; here it is rounded up,
as long as one or two values remain.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array, Weights

from .base import Step, option
from .held import Buffered, Held, stacked


@frozen
class CoordinateMedian(Buffered):
    """The options of :class:`Buffered`."""

    kind: ClassVar[str] = "median"
    needs_base: ClassVar[bool] = False

    def combined(self, state: Held) -> Step:
        return self.step(*_middle(state, 0.5), state.contributors)


@frozen
class TrimmedMean(Buffered):
    """``trim`` β, the share that is left out on either side; otherwise as :class:`Buffered`."""

    kind: ClassVar[str] = "trimmed_mean"
    needs_base: ClassVar[bool] = False
    trim: float = option(0.2, 0, 0.5)

    def combined(self, state: Held) -> Step:
        return self.step(*_middle(state, self.trim), state.contributors)


def _middle(state: Held, trim: float) -> tuple[Weights, Weights]:
    """Per coordinate the mean without the ``trim``·n extremes on either side, and n, how many cover it."""
    difference: Weights = {}
    coverage: Weights = {}
    for name in state.taken[0].difference:
        stack, count = stacked(state.taken, name)
        difference[name] = _trimmed(stack, count, trim)
        coverage[name] = np.asarray(count, np.float32)
    return difference, coverage


def _trimmed(stack: Array, count: NDArray[np.int64], trim: float) -> Array:
    """[n, …] → […]; 0 where there is no value. Sorts the stack."""
    stack.sort(axis=0)  # what is NaN comes last
    cut = np.minimum(np.ceil(trim * count - 1e-9).astype(np.int64), np.maximum(count - 1, 0) // 2)
    total = np.zeros(stack.shape[1:], np.float32)
    for rank, values in enumerate(stack):
        np.add(total, values, out=total, where=(rank >= cut) & (rank < count - cut))
    total /= np.maximum(count - 2 * cut, 1).astype(np.float32)
    return total
