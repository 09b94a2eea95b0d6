"""Partition tables: where in an image its file systems are (MBR, and GPT as of the UEFI specification 2.10, 5.3)."""

from __future__ import annotations

import struct
from typing import BinaryIO, Final
from uuid import UUID

from attrs import frozen

from coordinator.fleet.flash.errors import FlashError

_FAT_TYPES: Final = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF})
_FAT_GUIDS: Final = frozenset(
    {
        UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),  # EFI system partition
        UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"),  # basic data
        UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172"),  # extended boot loader
    }
)
_PROTECTIVE: Final = 0xEE
_SECTORS: Final = (512, 4096)
_MAX_ENTRIES: Final = 1024


@frozen
class Partition:
    """``start`` and ``size`` in bytes; ``fat``: its type says that it holds a FAT file system."""

    number: int
    start: int
    size: int
    fat: bool


class Window:
    """The bytes of one partition; nothing outside it can be read or written."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size

    def read(self, at: int, size: int) -> bytes:
        self._file.seek(self._place(at, size))
        content = self._file.read(size)
        if len(content) != size:
            raise FlashError("The image ends in the middle of its partition: it is cut short")
        return content

    def write(self, at: int, content: bytes) -> None:
        self._file.seek(self._place(at, len(content)))
        self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def _place(self, at: int, size: int) -> int:
        if not 0 <= at <= at + size <= self.size:
            raise FlashError(f"The file system points to byte {at + size} of a partition of {self.size} bytes")
        return self._start + at


def partitions(file: BinaryIO) -> list[Partition]:
    """The partitions of an image or disk, in the table's order; FlashError if it has no table that can be read.

    A file system without any table, as on a floppy or a seed volume, is one partition.
    """
    size = file.seek(0, 2)
    first = _read(file, 0, 512)
    if first[510:] != b"\x55\xaa":
        raise FlashError("There is no partition table: expected the uncompressed image of a whole card")
    if _is_boot_sector(first):
        return [Partition(1, 0, size, fat=True)]
    entries = [first[at : at + 16] for at in range(446, 510, 16)]
    if any(entry[4] == _PROTECTIVE for entry in entries):
        found = _gpt(file)
    else:
        found = [
            Partition(number, start * 512, count * 512, entry[4] in _FAT_TYPES)
            for number, entry in enumerate(entries, 1)
            for start, count in [struct.unpack_from("<II", entry, 8)]
            if entry[4] and count
        ]
    for one in found:
        if one.size <= 0 or one.start + one.size > size:
            raise FlashError(
                f"Partition {one.number} ends at byte {one.start + one.size}, the image has {size}: it is cut short"
            )
    return found


def _gpt(file: BinaryIO) -> list[Partition]:
    for sector in _SECTORS:
        header = _read(file, sector, 92)
        if header[:8] == b"EFI PART":
            break
    else:
        raise FlashError("The partition table announces a GPT, and there is none")
    table, count, size = struct.unpack_from("<QII", header, 72)
    if not (128 <= size <= 4096 and count <= _MAX_ENTRIES):
        raise FlashError(f"The GPT announces {count} entries of {size} bytes: it is damaged")
    found = []
    for number in range(1, count + 1):
        entry = _read(file, table * sector + (number - 1) * size, size)
        kind = UUID(bytes_le=entry[:16])
        if kind.int:
            first, last = struct.unpack_from("<QQ", entry, 32)
            found.append(Partition(number, first * sector, (last - first + 1) * sector, kind in _FAT_GUIDS))
    return found


def _is_boot_sector(sector: bytes) -> bool:
    """Whether a FAT file system begins here: a jump, and a plausible sector and cluster size."""
    (size,) = struct.unpack_from("<H", sector, 11)
    return sector[0] in (0xEB, 0xE9) and size in (512, 1024, 2048, 4096) and sector[13].bit_count() == 1


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    content = file.read(size)
    if len(content) != size:
        raise FlashError(f"The image ends before byte {at + size}, within its partition table")
    return content
