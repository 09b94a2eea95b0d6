"""Images to flash, made and judged by the programs of mtools and dosfstools, which share no code with ours."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest
from attrs import frozen

START = 1 << 20
PROGRAMS = ("mkfs.vfat", "fsck.vfat", "mcopy", "mdir", "mlabel")
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def needs_programs() -> None:
    """Skips on a machine without them; in CI they have to be there."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]
    if missing:
        text = f"{', '.join(missing)} not found (apt-get install mtools dosfstools)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


def program(*command: str | Path, accepted: tuple[int, ...] = (0,)) -> str:
    environment = {**os.environ, "PATH": _SEARCH, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(word) for word in command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=60,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    assert done.returncode in accepted, f"{command[0]} left with {done.returncode}: {said}"
    return said


@frozen
class Shape:
    """A FAT of ``bits`` and ``mib`` MiB with ``per_cluster`` sectors in a cluster, in a table of kind ``table``."""

    bits: int
    mib: int
    per_cluster: int
    table: str = "mbr"

    @property
    def start(self) -> int:
        return 0 if self.table == "none" else START

    def make(self, path: Path) -> Path:
        size = self.mib << 20
        with open(path, "wb") as file:
            file.truncate(self.start + size + (START if self.table != "none" else 0))
        place = () if self.table == "none" else ("--offset", str(START // 512))
        kind = ("-F", str(self.bits), "-s", str(self.per_cluster))
        program("mkfs.vfat", *kind, "-n", "bootfs", *place, path, str(size >> 10))
        with open(path, "r+b") as file:
            if self.table == "mbr":
                file.write(_mbr(0x0C, START // 512, size // 512))
            elif self.table == "gpt":
                file.write(_gpt(START // 512, size // 512, path.stat().st_size // 512))
        return path


def _mbr(kind: int, first: int, count: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0" * 3, kind, b"\0" * 3, first, count)
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _gpt(first: int, count: int, sectors: int) -> bytes:
    kind = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
    entry = kind.bytes_le + uuid.uuid4().bytes_le + struct.pack("<QQQ", first, first + count - 1, 0) + bytes(72)
    entries = (bytes(128) + entry).ljust(128 * 128, b"\0")  # the first row is empty: partition 2
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, sectors - 1, 34, sectors - 34, bytes(16), 2, 128, 128,
        zlib.crc32(entries),
    )  # fmt: skip
    return _mbr(0xEE, 1, sectors - 1) + header.ljust(512, b"\0") + entries


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, every folder with None."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def extract(image: Path, start: int, into: Path) -> dict[str, bytes | None]:
    """What mtools reads from the file system at byte ``start``."""
    into.mkdir()
    if "No files" not in program("mdir", "-b", "-i", f"{image}@@{start}", "::", accepted=(0, 1)):
        program("mcopy", "-s", "-n", "-i", f"{image}@@{start}", "::*", into)
    return tree(into)


def check(image: Path, start: int, size: int, beside: Path) -> str:
    """fsck.vfat must find nothing to repair; what it says."""
    with open(image, "rb") as file:
        file.seek(start)
        beside.write_bytes(file.read(size))
    return program("fsck.vfat", "-n", "-v", beside)
