"""Samples on which float32 cannot tell what a network computes.

The derivative of a rectifier jumps at its kink, that of a max-pool where two values of a window are equal. A value
nearer to it than float32 rounds falls on either side, whoever computes, and one alone moves weights by more than the
rule of :mod:`tests.compiler.test_numerics` allows. Of a million values a few are so near. Such samples judge nothing:
others are drawn in their place, until none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from coordinator.compiler import kinds

from .oracle import Oracle, functional, nchw, torch

MARGIN = 4
"""Standard deviations of PyTorch's own rounding in float32, measured layer by layer."""
EXACT = 1e-6
"""Above what float64 rounds."""
DRAWS = 100

KINKS: dict[type[kinds.Layer], tuple[float, ...]] = {kinds.Relu: (0,), kinds.LeakyRelu: (0,), kinds.Relu6: (0, 6)}

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Near(Exception):
    """A value lies at a kink."""


def clear(exact: Oracle, single: Oracle, draw: Callable[[int], Batch]) -> Batch:
    """The first of ``draw(0)``, ``draw(1)``, … whose values all lie clear of the kinks at the present weights."""
    spread = _rounding(exact, single, draw(0))
    for number in range(DRAWS):
        batch = draw(number)
        if not _near(exact, batch, spread):
            return batch
    raise AssertionError(f"none of {DRAWS} draws of samples is clear of the kinks")


def _rounding(exact: Oracle, single: Oracle, batch: Batch) -> dict[int, float]:
    """Standard deviation of what float32 adds to the input of every layer with a kink."""
    seen: list[dict[int, Any]] = [{}, {}]
    for oracle, found in zip((exact, single), seen, strict=True):
        _look(oracle, batch, lambda index, _, x, found=found: found.update({index: x.double()}))
    return {index: float((seen[1][index] - value).pow(2).mean().sqrt()) for index, value in seen[0].items()}


def _near(exact: Oracle, batch: Batch, spread: dict[int, float]) -> bool:
    def check(index: int, layer: kinds.Layer, x: Any) -> None:
        for distance in _distances(layer, x):
            # What float64 puts at the kink is there in truth, and so in every precision: windows over equal patches.
            if bool(((distance < MARGIN * spread[index]) & (distance > EXACT * spread[index])).any()):
                raise _Near

    try:
        _look(exact, batch, check)
    except _Near:
        return True
    return False


def _distances(layer: kinds.Layer, x: Any) -> Iterator[Any]:
    """How far every value is from each kink."""
    if isinstance(layer, kinds.MaxPool):
        size = (1, *layer.size)[-2:]
        image = nchw(x[:, None] if x.dim() == 3 else x)
        windows = functional.unfold(image.flatten(0, 1)[:, None], size, stride=size)
        if windows.shape[1] > 1:
            first, second = windows.topk(2, 1).values.unbind(1)
            yield first - second
    for kink in KINKS.get(type(layer), ()):
        yield (x - kink).abs()


def _look(oracle: Oracle, batch: Batch, watch: Callable[[int, kinds.Layer, Any], None]) -> None:
    """Show the inputs of all layers with a kink, of the rows that count."""
    x, _, weight = batch
    oracle.present = present = torch.tensor(weight > 0)

    def pass_on(index: int, layer: kinds.Layer, value: Any) -> None:
        if isinstance(layer, (*KINKS, kinds.MaxPool)):
            watch(index, layer, value[present])

    oracle.watch = pass_on
    try:
        with torch.no_grad():
            oracle.forward(x)
    finally:
        oracle.watch = None
