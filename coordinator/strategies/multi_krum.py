"""Multi-Krum: the mean of the updates that have the closest neighbours.

Blanchard et al.: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017 (arXiv
1703.02757). Of the K updates of a buffer, of which f may be anything, each is scored by the sum of its squared
distances to the K − f − 2 nearest others; the best K − f are averaged. Two updates are compared over the coordinates
that both cover, by the mean squared difference, so that subnetworks of different widths are comparable; two that have
no coordinate in common are infinitely far apart. f is ``byzantine``·K rounded up, but never so large that the paper's
K ≥ 2f + 3 fails: a buffer of less than five is a plain mean.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from protocol.weights import Weights

from .base import Step, option
from .held import Buffered, Held, Taken, stacked


@frozen
class MultiKrum(Buffered):
    """``byzantine`` is the share of a buffer that may be poisoned; updates that are left out have weight 0 in history.
    Otherwise as :class:`Buffered`."""

    kind: ClassVar[str] = "multi_krum"
    needs_base: ClassVar[bool] = False
    byzantine: float = option(0.2, 0, 0.5)

    def combined(self, state: Held) -> Step:
        chosen = self._chosen(state.taken)
        difference: Weights = {}
        coverage: Weights = {}
        for name in state.taken[0].difference:
            stack, count = stacked([state.taken[n] for n in chosen], name)
            difference[name] = np.asarray(np.nansum(stack, axis=0) / np.maximum(count, 1), np.float32)
            coverage[name] = np.asarray(count, np.float32)
        contributors = tuple(
            contributor if n in chosen else evolve(contributor, weight=0.0)
            for n, contributor in enumerate(state.contributors)
        )
        return self.step(difference, coverage, contributors)

    def _chosen(self, taken: tuple[Taken, ...]) -> list[int]:
        """Which are averaged, in their order; of equal scores the earlier."""
        count = len(taken)
        poisoned = max(0, min(math.ceil(self.byzantine * count - 1e-9), (count - 3) // 2))
        if not poisoned:
            return list(range(count))
        distances = np.sort(
            _distances([one.difference for one in taken]), axis=1
        )  # the first is the distance to itself
        scores = distances[:, 1 : count - poisoned - 1].sum(axis=1)
        return sorted(np.argsort(scores, kind="stable")[: count - poisoned].tolist())


def _distances(differences: list[Weights]) -> NDArray[np.float64]:
    """[n, n] mean squared differences over the coordinates both cover."""
    count = len(differences)
    distances = np.zeros((count, count))
    for one in range(count):
        for other in range(one):
            total, common = 0.0, 0
            for name, value in differences[one].items():
                gap = (value - differences[other][name]).ravel()
                gap = gap[~np.isnan(gap)]
                total += float(np.dot(gap.astype(np.float64), gap))
                common += len(gap)
            distances[one, other] = distances[other, one] = total / common if common else np.inf
    return distances
