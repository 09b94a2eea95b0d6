"""What Linux says about the board. Everything may be missing: then it is None."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

from attrs import frozen

from protocol.messages import Capability


@frozen
class Reading:
    """``load``: runnable tasks, one-minute mean. ``temperature`` in °C. ``memory``: bytes of this process."""

    load: float | None
    temperature: float | None
    memory: int
    memory_free: int | None
    disk_free: int | None


def read(home: Path, root: Path = Path("/")) -> Reading:
    """The board now; ``root`` is where proc/ and sys/ are found."""
    return Reading(
        load=_load(),
        temperature=_temperature(root),
        memory=_resident(root),
        memory_free=_meminfo(root, "MemAvailable"),
        disk_free=_disk_free(home),
    )


def capability(runtimes: list[str], root: Path = Path("/")) -> Capability:
    """What the coordinator is told at enrolment."""
    return Capability(
        machine=(_text(root / "proc/device-tree/model") or platform.machine())[:200],
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        runtimes=tuple(runtimes),
        memory=_meminfo(root, "MemTotal") or 0,
        cores=os.cpu_count() or 1,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _temperature(root: Path) -> float | None:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            degrees = int(_text(zone) or "") / 1000
        except ValueError:
            continue
        if -100 <= degrees <= 300:
            return degrees
    return None


def _resident(root: Path) -> int:
    try:
        return int((_text(root / "proc/self/statm") or "").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(root: Path, name: str) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith(name + ":"):
            try:
                return int(line.split()[1]) * 1024
            except (ValueError, IndexError):
                return None
    return None


def _disk_free(home: Path) -> int | None:
    try:
        found = os.statvfs(home)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
