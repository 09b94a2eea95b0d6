"""ADSP's reading of a loss curve: how much faster does the loss fall at one commit rate than at another.

Hu, Wang, Wu (AAAI 2020) fit loss(t) = 1/(a₁²t + a₂) + a₃ to a window of each rate and compare the times that are left
until a target. A later window has less left, so that on windows of their own the later rate always wins. Here the
rates alternate, and one curve is fitted to all samples:

    loss = 1 / (off + A·(x + R·y)) + c

with x and y the seconds that the fleet has spent at the one rate and at the other. R > 1: the other is faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

LEAST_SAMPLES = 6
WIDEST = 10.0
"""No rate makes training more than ten times as fast or as slow as its neighbour does."""


def ratio(arguments: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """R from ``x``, ``y`` (seconds) and ``loss``, equally long; ValueError where they say nothing.

    ``ratio`` is R and ``error`` its standard error, both at most :data:`WIDEST`; ``linear`` is 1 where no curve was
    found and straight slopes were compared.
    """
    x, y, loss = (np.asarray(arguments[name], np.float64) for name in ("x", "y", "loss"))
    if not len(x) == len(y) == len(loss) >= LEAST_SAMPLES or not np.isfinite([x, y, loss]).all():
        raise ValueError(f"a fit needs {LEAST_SAMPLES} finite samples of x, y and loss")
    if not np.ptp(x) > 0 or not np.ptp(y) > 0 or not np.ptp(loss) > 0:
        raise ValueError("a fit needs samples of both rates and a loss that moves")
    scale = float(np.ptp(x) + np.ptp(y))  # the fit is done in units of the search's length and of the loss' range
    scaled = x / scale, y / scale, loss / float(np.ptp(loss))
    found, linear = _curve(*scaled), 0.0
    if found is None:
        found, linear = _slopes(*scaled), 1.0
    value = min(max(found[0], 1 / WIDEST), WIDEST)
    inside = 1.001 / WIDEST < value < 0.999 * WIDEST  # at the edge of what is plausible no error can be told
    error = found[1] if inside and np.isfinite(found[1]) else WIDEST
    return {"ratio": value, "error": min(error, WIDEST), "linear": linear}


def _model(xy: tuple[Vector, Vector], off: float, A: float, R: float, c: float) -> Vector:
    return 1 / (off + A * (xy[0] + R * xy[1])) + c


def _curve(x: Vector, y: Vector, loss: Vector) -> tuple[float, float] | None:
    """R and its error by the best fit from two beginnings: a loss that falls to nothing, and one nearly down."""
    from scipy.optimize import OptimizeWarning, curve_fit  # takes most of a second: only who searches pays for it

    floor = float(loss.min())
    bounds = [1e-9, 1e-9, 1 / WIDEST, 0.0], [1e6, 1e6, WIDEST, max(floor, 1e-9)]
    best: tuple[float, float, float] | None = None
    for c in (0.0, 0.9 * max(floor, 0.0)):
        above, left = max(float(loss[0]) - c, 1e-3), max(float(loss[-1]) - c, 1e-4)
        start = [1 / above, max(1 / left - 1 / above, 1e-3), 1.0, c]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizeWarning)  # no covariance: the error is infinite, as it says
                fitted, covariance = curve_fit(_model, (x, y), loss, p0=start, bounds=bounds, max_nfev=2000)
        except (RuntimeError, ValueError):  # it did not converge, or it began outside
            continue
        squares = float(np.sum((_model((x, y), *fitted) - loss) ** 2))
        if best is None or squares < best[0]:
            best = squares, float(fitted[2]), float(max(covariance[2, 2], 0.0)) ** 0.5
    return None if best is None else best[1:]


def _slopes(x: Vector, y: Vector, loss: Vector) -> tuple[float, float]:
    """Where no curve is found: the loss as a plane, and how steeply it falls either way."""
    plane = np.stack([np.ones_like(x), -x, -y], axis=1)
    found, *_ = np.linalg.lstsq(plane, loss, rcond=None)
    variance = float(np.sum((plane @ found - loss) ** 2)) / (len(loss) - 3)
    spread = variance * np.diag(np.linalg.pinv(plane.T @ plane))
    one, other = float(found[1]), float(found[2])
    if one <= 0 or other <= 0:  # the loss rises: nothing can be told
        return 1.0, WIDEST
    return other / one, other / one * float(spread[1] / one**2 + spread[2] / other**2) ** 0.5
