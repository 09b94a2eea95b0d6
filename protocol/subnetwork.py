"""Subnetworks: which part of every tensor belongs to a nested width, and how to cut it out and lift it back.

A *layout* says for every axis of every tensor which channel group it runs over. A *subnetwork* keeps some
channels of each group: the first ⌈p·C⌉ of every hidden group for a nested width p (HeteroFL, Diao et al.,
ICLR 2021), or an explicit list of channels. The output classes form the group ``classes``, which no width
cuts; an update may still cover only the classes its device has seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from .errors import ProtocolError, listed, shown
from .weights import Array, Weights

WIDTHS: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
CLASSES = "classes"
Channels = int | tuple[int, ...]
_MAX_DEPTH = 4  # of parts within parts
_MAX_PARTS = 256


@frozen
class Axis:
    """One axis of a tensor.

    ``size`` is its full length, a multiple of ``repeat`` below 2³¹. ``group`` names the channel group it runs
    over, None if it is never cut. An axis may hold several positions of every channel (``repeat``; a dense
    layer after flatten has H·W of them): then channel c at position q stands at index q·channels + c.
    An axis over joined channels (behind a concat) has no group but ``parts``, axes that follow each other; all of
    them together repeat.
    """

    size: int
    group: str | None = None
    repeat: int = 1
    parts: tuple[Axis, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not (0 < self.repeat <= self.size < 1 << 31 and self.size % self.repeat == 0):
            raise ProtocolError(f"an axis of {self.size} cannot hold {self.repeat} positions of every channel")
        if self.parts and (self.group is not None or sum(part.size for part in self.parts) != self.channels):
            raise ProtocolError(f"an axis of {self.size} in {self.repeat} positions is not the sum of its parts")

    @property
    def channels(self) -> int:
        return self.size // self.repeat

    def runs_over(self) -> Iterator[Axis]:
        """The axes without parts it is made of: itself, or those of its parts."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.runs_over()


Layout = dict[str, tuple[Axis, ...]]


@frozen
class Subnetwork:
    """The channels kept of every group: a count keeps the first, a tuple exactly those, in that order.

    A group that is not named is kept whole.
    """

    channels: Mapping[str, Channels] = field(factory=dict)

    def count(self, group: str | None, full: int) -> int:
        kept = self.channels.get(group, full) if group is not None else full
        return kept if isinstance(kept, int) else len(kept)

    def size(self, axis: Axis) -> int:
        """Length of what is kept of an axis."""
        if axis.parts:
            return axis.repeat * sum(self.size(part) for part in axis.parts)
        return axis.repeat * self.count(axis.group, axis.channels)

    def indices(self, axis: Axis) -> NDArray[np.intp]:
        """Where on an axis the kept elements stand, in the order they are kept."""
        if axis.parts:
            starts = accumulate((part.size for part in axis.parts), initial=0)
            once = np.concatenate([start + self.indices(part) for start, part in zip(starts, axis.parts, strict=False)])
        else:
            kept = axis.channels if axis.group is None else self.channels.get(axis.group, axis.channels)
            once = np.arange(kept) if isinstance(kept, int) else np.asarray(kept, np.intp)
        everywhere: NDArray[np.intp] = np.arange(axis.repeat)[:, None] * axis.channels + once
        return everywhere.reshape(-1)


FULL = Subnetwork()


def groups(layout: Layout) -> dict[str, int]:
    """Channel count of every group of a layout."""
    found: dict[str, int] = {}
    for name, axes in layout.items():
        for axis in (part for whole in axes for part in whole.runs_over()):
            if axis.group is None:
                continue
            full = found.setdefault(axis.group, axis.channels)
            if full != axis.channels:
                raise ProtocolError(
                    f"tensor {shown(name)} gives group {shown(axis.group)} {axis.channels} channels, expected {full}"
                )
    return found


def nested(layout: Layout, width: float, roll: int = 0) -> Subnetwork:
    """The subnetwork of the first ⌈width·C⌉ channels of every hidden group; ``width`` in (0, 1].

    With ``roll`` the window begins at channel roll mod C and wraps around (FedRolex: Alam et al., NeurIPS 2022); the
    channels keep their order.
    """
    if not 0 < width <= 1:
        raise ProtocolError(f"width {width!r} is outside (0, 1]")
    exact = Fraction(width)
    sizes = {group: full for group, full in groups(layout).items() if group != CLASSES}
    return Subnetwork({group: _window(full, math.ceil(exact * full), roll) for group, full in sizes.items()})


def _window(full: int, kept: int, roll: int) -> Channels:
    if kept == full or roll % full == 0:
        return kept
    return tuple(sorted((roll + step) % full for step in range(kept)))


def shrunk(layout: Layout, subnetwork: Subnetwork) -> Layout:
    """The layout of what a subnetwork keeps, as a model of its own."""

    def axis(full: Axis) -> Axis:
        return evolve(full, size=subnetwork.size(full), parts=tuple(map(axis, full.parts)))

    return {name: tuple(map(axis, axes)) for name, axes in layout.items()}


def counted(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Subnetwork:
    """How many channels of each group tensors of these shapes have kept; ProtocolError if no subnetwork does.

    Every group must have an axis of its own somewhere, as what makes its channels has.
    """
    kept: dict[str, Channels] = {}
    for name, axes in layout.items():
        for axis, size in zip(axes, shapes.get(name, ()), strict=False):
            if axis.group is not None and axis.group != CLASSES:
                kept.setdefault(axis.group, max(1, min(size // axis.repeat, axis.channels)))
    found = Subnetwork(kept)
    whole = Region(layout, found).shapes
    if whole != dict(shapes):
        odd = listed(name for name in whole.keys() | shapes.keys() if whole.get(name) != shapes.get(name))
        raise ProtocolError(f"no subnetwork of the model has tensors of these shapes: {odd} do not fit the others")
    return found


Index = tuple[slice, ...] | tuple[NDArray[np.intp], ...]


@frozen
class _Patch:
    """Where one tensor's part lies: at ``index`` of the full tensor seen as ``view``.

    The part has the shape ``kept`` in that view and ``shape`` as a tensor.
    """

    view: tuple[int, ...]
    index: Index
    kept: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether the part is the tensor as it is."""
        return self.kept == self.view and all(isinstance(index, slice) for index in self.index)


class Region:
    """The part of every tensor of a layout that a subnetwork keeps."""

    def __init__(self, layout: Layout, subnetwork: Subnetwork = FULL) -> None:
        sizes = groups(layout)
        for group, kept in subnetwork.channels.items():
            _check_channels(group, kept, sizes)
        self.layout = layout
        self.subnetwork = subnetwork
        self._patches = {name: _patch(axes, subnetwork) for name, axes in layout.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor after the cut."""
        return {name: patch.shape for name, patch in self._patches.items()}

    @property
    def parameters(self) -> int:
        return sum(math.prod(patch.shape) for patch in self._patches.values())

    @property
    def whole(self) -> bool:
        """Whether it is the model as it is."""
        return all(patch.whole for patch in self._patches.values())

    def cut(self, full: Mapping[str, Array]) -> Weights:
        """Copies of the kept parts of full-size tensors."""
        return {
            name: np.array(full[name].reshape(p.view)[p.index], order="C").reshape(p.shape)
            for name, p in self._patches.items()
        }

    def add(self, total: Mapping[str, Array], part: Mapping[str, Array], scale: float = 1.0) -> None:
        """``total += scale·part`` in place, inside the region only; ``total`` is full-size."""
        for name, p in self._patches.items():
            # Splitting axes never copies: this writes to ``total`` itself.
            view = total[name].reshape(p.view)
            piece = part[name].reshape(p.kept)
            view[p.index] += piece if scale == 1.0 else np.float32(scale) * piece

    def fill(self, total: Mapping[str, Array], value: float) -> None:
        """``total += value`` in place, inside the region only: the weight a coverage count grows by."""
        for name, p in self._patches.items():
            total[name].reshape(p.view)[p.index] += np.float32(value)

    def lift(self, part: Mapping[str, Array]) -> Weights:
        """Full-size tensors with ``part`` inside the region and zero outside."""
        full = {name: np.zeros([axis.size for axis in axes], np.float32) for name, axes in self.layout.items()}
        self.add(full, part)
        return full

    def coverage(self) -> dict[str, NDArray[np.bool_]]:
        """Full-size masks, true where the region is."""
        masks: dict[str, NDArray[np.bool_]] = {}
        for name, p in self._patches.items():
            mask = np.zeros(p.view, bool)
            mask[p.index] = True
            masks[name] = mask.reshape([axis.size for axis in self.layout[name]])
        return masks

    def check(self, part: Mapping[str, Array]) -> None:
        """Raise ProtocolError unless ``part`` has exactly the region's tensors and shapes."""
        shapes = self.shapes
        if part.keys() != shapes.keys():
            odd = listed(part.keys() ^ shapes.keys())
            raise ProtocolError(f"tensors differ from the subnetwork's: {odd} stand on one side only")
        for name, shape in shapes.items():
            if part[name].shape != shape:
                raise ProtocolError(f"tensor {shown(name)} has shape {part[name].shape}, expected {shape}")


def _check_channels(group: str, kept: Channels, sizes: Mapping[str, int]) -> None:
    if group not in sizes:
        raise ProtocolError(f"the model has no channel group {shown(group)}, only {listed(sizes)} and so on")
    full = sizes[group]
    if isinstance(kept, int):
        if not 1 <= kept <= full:
            raise ProtocolError(f"group {shown(group)} has {full} channels, cannot keep {kept}")
    elif len(set(kept)) != len(kept) or not kept or min(kept) < 0 or max(kept) >= full:
        raise ProtocolError(
            f"group {shown(group)} has channels 0 to {full - 1}: the list must name some of them, each once"
        )


def _patch(axes: tuple[Axis, ...], subnetwork: Subnetwork) -> _Patch:
    """Slices where every group is a count, otherwise one index list per axis of the view."""
    view: list[int] = []
    index: list[slice | NDArray[np.intp]] = []
    kept: list[int] = []
    shape: list[int] = []
    for axis in axes:
        if axis.parts:
            listed_indices = subnetwork.indices(axis)
            whole = len(listed_indices) == axis.size and bool((np.diff(listed_indices) == 1).all())
            view.append(axis.size)
            index.append(slice(None) if whole else listed_indices)
            kept.append(len(listed_indices))
            shape.append(len(listed_indices))
            continue
        channels = axis.channels if axis.group is None else subnetwork.channels.get(axis.group, axis.channels)
        count = channels if isinstance(channels, int) else len(channels)
        if axis.repeat > 1:
            view.append(axis.repeat)
            index.append(slice(None))
            kept.append(axis.repeat)
        view.append(axis.channels)
        index.append(slice(count) if isinstance(channels, int) else np.asarray(channels, np.intp))
        kept.append(count)
        shape.append(axis.repeat * count)
    if all(isinstance(i, slice) for i in index):
        return _Patch(tuple(view), tuple(index), tuple(kept), tuple(shape))  # type: ignore[arg-type]
    lists = [np.arange(n)[i] for n, i in zip(view, index, strict=True)]
    return _Patch(tuple(view), np.ix_(*lists), tuple(kept), tuple(shape))


def layout_to_json(layout: Layout) -> dict[str, list[Any]]:
    """A layout as plain JSON: tensor → [[size, group, repeat], …]; an axis with parts lists them as fourth."""
    return {name: [_axis_to_json(axis) for axis in axes] for name, axes in layout.items()}


def _axis_to_json(axis: Axis) -> list[Any]:
    plain: list[Any] = [axis.size, axis.group, axis.repeat]
    return [*plain, [_axis_to_json(part) for part in axis.parts]] if axis.parts else plain


def layout_from_json(value: object) -> Layout:
    """Inverse of :func:`layout_to_json`; ProtocolError on anything else."""
    if not isinstance(value, dict):
        raise ProtocolError(f"a layout is an object of tensors, not {type(value).__name__}")
    layout = {name: _axes(name, axes) for name, axes in value.items()}
    groups(layout)
    return layout


def _axes(name: object, axes: object) -> tuple[Axis, ...]:
    if not isinstance(name, str) or not isinstance(axes, list) or len(axes) > 8:
        raise ProtocolError(f"tensor {shown(name)} of the layout needs a list of at most 8 axes")
    return tuple(_axis(name, axis, _MAX_DEPTH) for axis in axes)


def _axis(name: str, axis: object, depth: int) -> Axis:
    if isinstance(axis, list) and len(axis) in (3, 4):
        size, group, repeat, *rest = axis
        if type(size) is int and type(repeat) is int and (group is None or isinstance(group, str)):
            if not rest:
                return Axis(size, group, repeat)
            if depth and isinstance(rest[0], list) and 1 <= len(rest[0]) <= _MAX_PARTS:
                return Axis(size, group, repeat, tuple(_axis(name, part, depth - 1) for part in rest[0]))
    raise ProtocolError(
        f"tensor {shown(name)} has an axis {shown(axis)}, expected [size, group or null, repeat] and perhaps parts"
    )
