"""Folder entries of FAT: 32-byte records, with long names in records of their own before the short one."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from attrs import frozen

from coordinator.fleet.flash.errors import FlashError

RECORD: Final = 32
LABEL, FOLDER, FILE = 0x08, 0x10, 0x20
_LONG: Final = 0x0F
_DELETED: Final = 0xE5
_LAST: Final = 0x40
_UNITS: Final = 13
"""UTF-16 units of a long name in one record."""
_FORBIDDEN = re.compile(r'[\x00-\x1f"*/:<>?\\|\x7f\ud800-\udfff]')
_SHORT = re.compile(r"[A-Z0-9!#$%&'()@^_`{}~-]{1,8}(\.[A-Z0-9!#$%&'()@^_`{}~-]{1,3})?")
_NOT_SHORT = re.compile(r"[^A-Z0-9!#$%&'()@^_`{}~-]")


@frozen(kw_only=True)
class Entry:
    """``short`` is the name's 11 bytes on disk; ``begin`` to ``end`` are its records' places in the folder's bytes."""

    name: str
    short: bytes
    attributes: int
    cluster: int
    size: int
    begin: int
    end: int

    @property
    def folder(self) -> bool:
        return bool(self.attributes & FOLDER)


def fold(name: str) -> str:
    """What two names are compared by: FAT keeps the case and ignores it."""
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def check(name: str) -> None:
    """FlashError unless a file may be called so."""
    if _FORBIDDEN.search(name) or name != name.rstrip(". ") or not name or len(name.encode("utf-16-le")) > 510:
        raise FlashError(f"{name[:80]!r} cannot be the name of a file on a FAT partition")


def end_of(content: bytes | bytearray) -> int:
    """Where the entries of a folder end; what follows is without meaning."""
    for at in range(0, len(content), RECORD):
        if content[at] == 0:
            return at
    return len(content)


def parse(content: bytes) -> list[Entry]:
    """The files and folders in a folder's bytes, "." and ".." and labels left out."""
    found, long, begin = [], b"", -1
    for at in range(0, end_of(content), RECORD):
        record = content[at : at + RECORD]
        if record[0] != _DELETED and record[11] & 0x3F == _LONG:
            if record[0] & _LAST:
                long, begin = b"", at
            long = record[1:11] + record[14:26] + record[28:32] + long
            last_sum = record[13]
            continue
        if record[0] != _DELETED and not record[11] & LABEL and record[0] != ord("."):
            belongs = begin >= 0 and last_sum == checksum(record[:11])
            name = _long_name(long) if belongs else _short_name(record)
            high, low = struct.unpack_from("<H", record, 20)[0], struct.unpack_from("<H", record, 26)[0]
            (size,) = struct.unpack_from("<I", record, 28)
            entry = Entry(
                name=name, short=record[:11], attributes=record[11], cluster=high << 16 | low, size=size,
                begin=begin if belongs else at, end=at + RECORD,
            )  # fmt: skip
            found.append(entry)
        long, begin = b"", -1
    return found


def records(name: str, short: bytes, attributes: int, cluster: int, size: int, at: datetime) -> bytes:
    """The records of a new entry: the long name's, unless the short one says it all, then the short one's."""
    day = max(at.year - 1980, 0) << 9 | at.month << 5 | at.day
    time = at.hour << 11 | at.minute << 5 | at.second // 2
    head = struct.pack("<11sBBBHHHH", short, attributes, 0, 0, time, day, day, cluster >> 16)
    record = head + struct.pack("<HHHI", time, day, cluster & 0xFFFF, size)
    if name in (".", "..") or _joined(short) == name:
        return record
    units = name.encode("utf-16-le")
    if len(units) % (2 * _UNITS):
        units += b"\0\0"
    units += b"\xff" * (-len(units) % (2 * _UNITS))
    pieces = [units[place : place + 2 * _UNITS] for place in range(0, len(units), 2 * _UNITS)]
    sealed = bytes([checksum(short)])
    long = [
        bytes([number | (_LAST if number == len(pieces) else 0)])
        + piece[:10] + bytes([_LONG, 0]) + sealed + piece[10:22] + b"\0\0" + piece[22:]
        for number, piece in enumerate(pieces, 1)
    ]  # fmt: skip
    return b"".join(reversed(long)) + record


def changed(record: bytes, cluster: int, size: int, at: datetime) -> bytes:
    """A short record with other content and time."""
    fresh = records(".", record[:11], record[11], cluster, size, at)
    return record[:20] + fresh[20:]


def new_short(name: str, taken: Iterable[bytes]) -> bytes:
    """The short name of a new entry: the name itself where it is one, otherwise with ~1, ~2, ... at its end."""
    used = set(taken)
    if _SHORT.fullmatch(name) and (plain := _padded(*_parts(name))) not in used:
        return plain
    base, extension = (_NOT_SHORT.sub("_", part.replace(" ", "").replace(".", "")) for part in _parts(name.upper()))
    for number in range(1, 1_000_000):
        tail = f"~{number}"
        short = _padded((base or "_")[: 8 - len(tail)] + tail, extension[:3])
        if short not in used:
            return short
    raise FlashError(f"There are too many names like {name[:80]!r}")


def checksum(short: bytes) -> int:
    """Ties the records of a long name to their short one."""
    total = 0
    for byte in short:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total


def _parts(name: str) -> tuple[str, str]:
    base, dot, extension = name.rpartition(".")
    return (base, extension) if dot and base.strip(".") else (name, "")


def _padded(base: str, extension: str) -> bytes:
    return base.ljust(8).encode("ascii") + extension.ljust(3).encode("ascii")


def _joined(short: bytes) -> str:
    base, extension = short[:8].decode("cp437").rstrip(), short[8:].decode("cp437").rstrip()
    return f"{base}.{extension}" if extension else base


def _short_name(record: bytes) -> str:
    # 0x05 stands for a name that begins with 0xE5, which would mean deleted; byte 12 says what is in lower case.
    first = bytes([_DELETED]) if record[0] == 0x05 else record[:1]
    base, dot, extension = _joined(first + record[1:11]).partition(".")
    base = base.lower() if record[12] & 0x08 else base
    return base + dot + (extension.lower() if record[12] & 0x10 else extension)


def _long_name(units: bytes) -> str:
    ends = next((at for at in range(0, len(units), 2) if units[at : at + 2] == b"\0\0"), len(units))
    return units[:ends].decode("utf-16-le", "replace")
