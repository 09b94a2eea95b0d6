"""What two differences have in common, told from 1,024 numbers each.

A count sketch (Charikar, Chen, Farach-Colton: Finding Frequent Items in Data Streams, ICALP 2002) adds every
coordinate with its sign into one of 1,024 buckets, sign and bucket taken from a hash of the coordinate. The inner
product of two sketches is that of the vectors, within about |u||v|/√1024, 3 %.

Sketches are made per *coverage band*: band b holds the coordinates of ``WIDTHS[b]`` that no smaller width has. Products
over the bands that two differences share add up, whatever their widths.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.subnetwork import WIDTHS, Axis, Region, nested
from protocol.weights import Array, Weights

SIZE = 1024

Sketch = dict[int, Array]
"""Band → [SIZE] sums."""


@frozen(eq=False)
class Bands:
    """The coordinates of a region by band. ``places`` has for each its place in the sketches of all bands, from 1, with
    the coordinate's sign; tensors of the region's shapes."""

    places: dict[str, NDArray[np.int16]]

    @classmethod
    def of(cls, region: Region) -> Bands:
        places: Any = _places(tuple(region.layout.items()))
        return cls(cast(Any, region.cut(places)))

    @property
    def _flat(self) -> NDArray[np.int16]:
        return np.concatenate([places.ravel() for places in self.places.values()])

    @property
    def sizes(self) -> dict[int, int]:
        """How many coordinates of each band there are; bands without any are left out."""
        counts = np.bincount(_band(self._flat), minlength=len(WIDTHS))
        return {band: int(count) for band, count in enumerate(counts) if count}

    def sketch(self, difference: Mapping[str, Array]) -> Sketch:
        """The sketches of a difference over the region, one for each band it has."""
        flat = self._flat
        values = np.sign(flat) * np.concatenate([difference[name].ravel() for name in self.places])
        sums = np.bincount(np.abs(flat) - 1, values, SIZE * len(WIDTHS)).astype(np.float32)
        return {band: sums[SIZE * band : SIZE * (band + 1)].copy() for band in self.sizes}

    def spread(self, values: Mapping[int, float]) -> Weights:
        """For every coordinate the value of its band."""
        table = np.array([values.get(band, 0.0) for band in range(len(WIDTHS))], np.float32)
        return {name: table[_band(places)] for name, places in self.places.items()}


def products(one: Sketch, other: Sketch) -> dict[int, float]:
    """Inner products over the bands that both have, divided by the lengths of both over these bands: their sum is a
    cosine. Nothing where a length is 0."""
    common = sorted(one.keys() & other.keys())
    lengths = [sum(_dot(sketch[band], sketch[band]) for band in common) ** 0.5 for sketch in (one, other)]
    if not all(lengths):
        return {}
    return {band: _dot(one[band], other[band]) / lengths[0] / lengths[1] for band in common}


def _dot(one: Array, other: Array) -> float:
    return float(np.dot(one.astype(np.float64), other))


def _band(places: NDArray[np.int16]) -> NDArray[np.int16]:
    return (np.abs(places) - 1) // SIZE


@lru_cache(maxsize=4)
def _places(layout: tuple[tuple[str, tuple[Axis, ...]], ...]) -> dict[str, NDArray[np.int16]]:
    whole = dict(layout)
    bands = {name: np.zeros([axis.size for axis in axes], np.float32) for name, axes in layout}
    for width in WIDTHS[1:]:
        Region(whole, nested(whole, width)).fill(bands, 1)
    places = {}
    for name, band in bands.items():
        drawn = _hash(np.arange(band.size, dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)))
        bucket = (drawn % np.uint64(SIZE)).astype(np.int16).reshape(band.shape)
        sign = np.where(drawn >> np.uint64(63), 1, -1).astype(np.int16).reshape(band.shape)
        places[name] = sign * (np.int16(SIZE) * band.astype(np.int16) + bucket + np.int16(1))
    return places


def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): the same on every machine and version."""
    with np.errstate(over="ignore"):
        keys = (keys + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))
