"""The allocation table of a FAT16 or FAT32 file system (Microsoft, FAT32 File System Specification 1.03)."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from attrs import frozen

from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.partitions import Window

_MAX_CLUSTERS: Final = 0x0FFFFFF5
_MIN_CLUSTERS_16: Final = 4085
"""Fewer make it FAT12."""
_INFO: Final = ((0, b"RRaA"), (484, b"rrAa"))


@frozen(kw_only=True)
class Geometry:
    """What the boot sector says. Places and sizes are bytes from the partition's begin; ``cluster`` is the bytes of one
    cluster, ``clusters`` how many there are, numbered from 2. The root folder of FAT16 lies at ``root``, that of FAT32
    begins in ``root_cluster``; ``info`` is FAT32's FSInfo sector, 0 if there is none."""

    bits: int
    sector: int
    cluster: int
    clusters: int
    tables: tuple[int, ...]
    root: int
    root_size: int
    data: int
    root_cluster: int
    info: int

    @classmethod
    def read(cls, window: Window) -> Geometry:
        """FlashError if no FAT16 or FAT32 file system begins here."""
        boot = window.read(0, 512)
        sector, per_cluster, reserved, copies, entries, small = struct.unpack_from("<HBHBHH", boot, 11)
        (size16,), (large, size32, flags) = struct.unpack_from("<H", boot, 22), struct.unpack_from("<IIH", boot, 32)
        bits = 16 if size16 else 32  # as Linux decides: small FAT32 volumes exist
        total, size = small or large, size16 or size32
        if boot[510:] != b"\x55\xaa" or sector not in (512, 1024, 2048, 4096) or per_cluster.bit_count() != 1:
            raise FlashError("The partition holds no FAT file system")
        root_sectors = -(-entries * 32 // sector)
        first = reserved + copies * size + root_sectors
        clusters = (total - first) // per_cluster
        if not (0 < copies <= 8 and reserved and size and 0 < clusters <= _MAX_CLUSTERS):
            raise FlashError("The FAT file system's boot sector is damaged")
        if bits == 16 and clusters < _MIN_CLUSTERS_16:
            raise FlashError("The boot partition is FAT12, expected FAT16 or FAT32")
        if total * sector > window.size or (clusters + 2) * bits // 8 > size * sector:
            raise FlashError("The FAT file system is larger than its partition")
        # FAT32 may keep one copy of the table only.
        used = range(copies) if bits == 16 or not flags & 0x80 else (flags & 0x0F,)
        root_cluster, info = struct.unpack_from("<IH", boot, 44) if bits == 32 else (0, 0)
        return cls(
            bits=bits,
            sector=sector,
            cluster=per_cluster * sector,
            clusters=clusters,
            tables=tuple((reserved + copy * size) * sector for copy in used),
            root=(reserved + copies * size) * sector,
            root_size=entries * 32 if bits == 16 else 0,
            data=first * sector,
            root_cluster=root_cluster,
            info=0 if info == 0xFFFF else info * sector,
        )

    def place(self, cluster: int) -> int:
        return self.data + (cluster - 2) * self.cluster


class Table:
    """Which cluster follows which. Changes are kept in memory until :meth:`flush` writes them into every copy."""

    def __init__(self, window: Window, geometry: Geometry) -> None:
        self._window = window
        self._geometry = geometry
        self._kind = np.dtype("<u2" if geometry.bits == 16 else "<u4")
        self._mask = 0xFFFF if geometry.bits == 16 else 0x0FFFFFFF
        size = (geometry.clusters + 2) * self._kind.itemsize
        self._next = np.frombuffer(window.read(geometry.tables[0], size), self._kind).copy()
        self._dirty: set[int] = set()
        self._hint = 2

    @property
    def free(self) -> int:
        """Clusters that nothing uses."""
        return int(np.count_nonzero(self._next[2:] & self._mask == 0))

    def chain(self, first: int) -> list[int]:
        """The clusters of a file or folder; FlashError if the chain leaves the file system or bites its tail."""
        found: list[int] = []
        cluster = first
        while cluster < self._mask - 7:
            if not 2 <= cluster < len(self._next) or len(found) >= self._geometry.clusters:
                raise FlashError("The file system of the boot partition is damaged: repair it with fsck.vfat")
            found.append(cluster)
            cluster = int(self._next[cluster]) & self._mask
        return found

    def allocate(self, count: int) -> list[int]:
        """A new chain of ``count`` clusters; FlashError, and nothing is changed, if there are not so many."""
        if count == 0:
            return []
        empty = np.flatnonzero(self._next[2:] & self._mask == 0) + 2
        if len(empty) < count:
            missing = (count - len(empty)) * self._geometry.cluster
            raise FlashError(f"The boot partition is full: {missing} bytes are missing")
        begin = int(np.searchsorted(empty, self._hint))  # after the last one: so files lie in one piece
        if begin + count > len(empty):
            begin = 0
        taken = empty[begin : begin + count]
        for cluster, following in zip(taken, [*taken[1:], self._mask], strict=True):
            self._set(int(cluster), int(following))
        self._hint = int(taken[-1]) + 1
        return [int(cluster) for cluster in taken]

    def extend(self, last: int, following: int) -> None:
        """Let ``following`` come after the last cluster of a chain."""
        self._set(last, following)

    def release(self, chain: list[int]) -> None:
        for cluster in chain:
            self._set(cluster, 0)

    def flush(self) -> None:
        """Write what has changed: the same sectors of every copy, then the counts of FSInfo."""
        sector, width = self._geometry.sector, self._kind.itemsize
        for number in sorted(self._dirty):
            begin = number * sector // width
            content = self._next[begin : begin + sector // width].tobytes()
            for table in self._geometry.tables:
                self._window.write(table + number * sector, content)
        self._dirty.clear()
        self._write_info()

    def _write_info(self) -> None:
        if not self._geometry.info:
            return
        info = bytearray(self._window.read(self._geometry.info, 512))
        if all(info[at : at + 4] == word for at, word in _INFO):
            following = self._hint if self._hint < len(self._next) else 2
            struct.pack_into("<II", info, 488, self.free, following)
            self._window.write(self._geometry.info, bytes(info))

    def _set(self, cluster: int, following: int) -> None:
        # FAT32 leaves the upper four bits of an entry as they are.
        kept = int(self._next[cluster]) & ~self._mask
        self._next[cluster] = kept | following
        self._dirty.add(cluster * self._kind.itemsize // self._geometry.sector)
