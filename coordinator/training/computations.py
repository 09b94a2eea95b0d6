"""What members may have computed for them, off the steward's thread: named functions of numbers."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.strategies import adsp, adsp_fit

Arguments = dict[str, tuple[float, ...]]

COMPUTATIONS: dict[str, Callable[[Arguments], dict[str, float]]] = {adsp.FIT: adsp_fit.ratio}
"""By name; pure, and finite numbers come back. One that raises is answered with ``failed`` = 1."""
