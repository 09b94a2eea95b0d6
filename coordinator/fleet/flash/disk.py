"""Real cards: which device may be written, writing it, and reading it back."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from attrs import frozen

from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.source import CHUNK, Progress

_SYSTEM: Final = frozenset({"/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var", "/home"})


@frozen
class Machine:
    """Where this machine says what disks it has."""

    sys: Path = Path("/sys")
    mounts: Path = Path("/proc/self/mounts")
    swaps: Path = Path("/proc/swaps")


@frozen
class Disk:
    """A whole disk; ``size`` in bytes."""

    path: Path
    name: str
    model: str
    size: int
    removable: bool


def disk(path: Path, machine: Machine) -> Disk:
    """FlashError unless ``path`` is a whole disk that nothing uses and the system does not live on."""
    place = path.resolve()
    try:
        is_device = stat.S_ISBLK(place.stat().st_mode)
    except OSError as error:
        raise FlashError(f"{path} cannot be looked at: {error.strerror}") from error
    if not is_device:
        raise FlashError(f"{path} is no disk: to write into a file, use --output")
    return whole(place, machine)


def whole(place: Path, machine: Machine) -> Disk:
    """The disk of a device's name; FlashError as :func:`disk`."""
    about = machine.sys / "block" / place.name
    if not about.is_dir():
        raise FlashError(f"{place} is a part of a disk, or not one: name the whole disk, such as /dev/sdb")
    own = {place.name, *(child.name for child in about.iterdir() if (child / "partition").exists())}
    for line in [*_lines(machine.mounts), *_lines(machine.swaps)]:
        device, where = [*line.split(), ""][:2]
        if device.startswith("/") and Path(device).resolve().name in own:
            whose = "this system lives on it" if where in _SYSTEM else f"it is in use at {where}: unmount it first"
            raise FlashError(f"{place} is refused: {whose}")
    for name in own:
        holders = machine.sys / "block" / place.name / ("holders" if name == place.name else f"{name}/holders")
        if holders.is_dir() and any(holders.iterdir()):
            raise FlashError(f"{place} is refused: {next(holders.iterdir()).name} is built on it")
    if _text(about / "ro") == "1":
        raise FlashError(f"{place} is write-protected")
    model = " ".join(_text(about / "device" / name) for name in ("vendor", "model", "name")).split()
    return Disk(
        place, place.name, " ".join(model), int(_text(about / "size") or 0) * 512, _text(about / "removable") == "1"
    )


def burn(image: Path, target: Path, progress: Progress) -> None:
    """Write an image onto a disk, and read it back. The first block comes last: a card that was pulled out in between
    boots nothing."""
    total, digest = image.stat().st_size, hashlib.sha256()
    try:
        with open(image, "rb") as source, open(target, "r+b", buffering=0, opener=_exclusively) as disk:
            first = source.read(CHUNK)
            digest.update(first)
            _put(disk.fileno(), bytes(min(CHUNK, total)), 0)
            done = len(first)
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                _put(disk.fileno(), chunk, done)
                done += len(chunk)
                progress("writing", done, total)
            os.fsync(disk.fileno())
            _put(disk.fileno(), first, 0)
            os.fsync(disk.fileno())
            os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # to be read from the card, not from memory
            if _read_back(disk.fileno(), total, progress) != digest.digest():
                raise FlashError(f"{target} was read back other than it was written: the card is damaged or a fake")
    except OSError as error:
        raise FlashError(f"{target} cannot be written: {error.strerror}") from error


def _exclusively(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL)  # of a block device: nobody else may mount it meanwhile


def _put(handle: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(handle, view, at)
        view, at = view[count:], at + count


def _read_back(handle: int, total: int, progress: Progress) -> bytes:
    digest, done = hashlib.sha256(), 0
    while done < total:
        chunk = os.pread(handle, min(CHUNK, total - done), done)
        if not chunk:
            break
        digest.update(chunk)
        done += len(chunk)
        progress("reading back", done, total)
    return digest.digest()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
