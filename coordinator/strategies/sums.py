"""Running sums over regions, at the speed of memory."""

from __future__ import annotations

from protocol.subnetwork import Region
from protocol.weights import Weights


def add(region: Region, total: Weights, part: Weights, factor: float) -> None:
    """``total += factor·part`` in place, inside the region only; ``total`` is full-size.

    Whole models go by BLAS, in one pass and without a copy; it may fuse product and sum, and so round once instead of
    twice.
    """
    if not region.whole:
        region.add(total, part, factor)
        return
    from scipy.linalg.blas import saxpy  # a fifth of a second that not every start has to pay

    for name, sum_ in total.items():
        flat = sum_.reshape(-1)
        if saxpy(part[name].reshape(-1), flat, a=factor) is not flat:
            raise AssertionError(f"the sum of {name} was not updated in place")  # it is contiguous float32
