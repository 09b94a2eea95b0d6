"""What Linux says about the board. Everything may be missing: then it is None."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from protocol.messages import Capability

THROTTLED = {0: "under-voltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
"""Bits of a Raspberry Pi's get_throttled that stand for what happens now."""
_THROTTLING = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FIRMWARE = "dev/vcio"  # what vcgencmd talks to
ASK_AGAIN = 60.0  # seconds between two looks at what takes a process to find out
_PATIENCE = 2.0  # seconds for such a process
_NETWORK = "org.freedesktop.NetworkManager"
_METERED = {"1": True, "3": True, "2": False, "4": False}  # NMMetered: yes, guess-yes, no, guess-no


@frozen
class Reading:
    """``load``: runnable tasks, one-minute mean. ``temperature`` in °C. ``memory``: bytes of this process.

    ``throttled``: why the board slows itself down now; ``battery`` in percent.
    """

    load: float | None
    temperature: float | None
    memory: int
    memory_free: int | None
    disk_free: int | None
    throttled: tuple[str, ...] | None
    battery: float | None
    mains: bool | None
    metered: bool | None


class Board:
    """Reads the board again and again; what is dear to find out, not every time.

    ``root`` is where proc/ and sys/ are found, ``ask`` runs a program and gives its output, None without an answer.
    ``metered``: what the owner says of the link, auto to ask NetworkManager, None if nobody wants to know.
    """

    def __init__(
        self,
        home: Path,
        metered: str | None = None,
        root: Path = Path("/"),
        ask: Callable[[list[str]], str | None] | None = None,
    ) -> None:
        self._home, self._root, self._ask = home, root, ask or _answer
        self._metered_setting = metered
        self._metered: bool | None = None
        self._firmware: str | None = None
        self._ask_at = float("-inf")
        self._ticks: tuple[int, int] | None = None

    def read(self, now: float) -> Reading:
        """The board at ``now`` (seconds of any clock)."""
        if now >= self._ask_at:
            self._ask_at = now + ASK_AGAIN
            self._metered, self._firmware = self._link(), self._throttling()
        mains, battery = _power(self._root)
        return Reading(
            load=_load(),
            temperature=_temperature(self._root),
            memory=_resident(self._root),
            memory_free=memory_available(self._root),
            disk_free=_disk_free(self._home),
            throttled=_flags(_text(self._root / _THROTTLING) or self._firmware),
            battery=battery,
            mains=mains,
            metered=self._metered,
        )

    def cpu(self) -> float | None:
        """The busy share of all cores since the last call, None the first time."""
        before, self._ticks = self._ticks, _ticks(self._root)
        if before is None or self._ticks is None:
            return None
        total, idle = self._ticks[0] - before[0], self._ticks[1] - before[1]
        return min(max(1 - idle / total, 0.0), 1.0) if total > 0 else None

    def _link(self) -> bool | None:
        if self._metered_setting != "auto":
            return None if self._metered_setting is None else self._metered_setting == "yes"
        path = "/" + _NETWORK.replace(".", "/")
        answer = self._ask(["busctl", "--system", "get-property", _NETWORK, path, _NETWORK, "Metered"])
        return _METERED.get((answer or "").removeprefix("u ").strip())

    def _throttling(self) -> str | None:
        """What a Raspberry Pi's firmware answers, where its driver does not."""
        if (self._root / _THROTTLING).exists() or not (self._root / _FIRMWARE).exists():
            return None
        return (self._ask(["vcgencmd", "get_throttled"]) or "").strip().removeprefix("throttled=") or None


def capability(
    runtimes: list[str], speed: dict[str, float] | None = None, root: Path = Path("/")
) -> Capability:
    """What the coordinator is told at enrolment."""
    return Capability(
        machine=(_text(root / "proc/device-tree/model") or platform.machine())[:200],
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        runtimes=tuple(runtimes),
        memory=_meminfo(root, "MemTotal") or 0,
        cores=os.cpu_count() or 1,
        speed=speed,
    )


def memory_available(root: Path = Path("/")) -> int | None:
    """Bytes that programs may still take without swapping."""
    return _meminfo(root, "MemAvailable")


def _answer(command: list[str]) -> str | None:
    import subprocess  # what costs memory is not loaded before it is needed

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _temperature(root: Path) -> float | None:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        thousandths = _number(zone)
        if thousandths is not None and -100_000 <= thousandths <= 300_000:
            return thousandths / 1000
    return None


def _flags(text: str | None) -> tuple[str, ...] | None:
    try:
        bits = int(text or "", 16)
    except ValueError:
        return None
    return tuple(name for bit, name in THROTTLED.items() if bits >> bit & 1)


def _power(root: Path) -> tuple[bool | None, float | None]:
    """(on mains, battery in percent) by what hangs on the board; peripherals' batteries do not count."""
    mains: bool | None = None
    charge: list[int] = []
    filling = False
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        kind = _text(supply / "type")
        if kind == "Battery" and _text(supply / "scope") != "Device":
            level = _number(supply / "capacity")
            if level is not None and 0 <= level <= 100:
                charge.append(level)
                filling = filling or _text(supply / "status") in ("Charging", "Full")
        elif kind in ("Mains", "USB", "Wireless") and (online := _number(supply / "online")) is not None:
            mains = bool(mains) or online > 0
    if mains is None and charge:  # a battery alone feeds the board, unless something feeds the battery
        mains = filling
    return mains, sum(charge) / len(charge) if charge else None


def _ticks(root: Path) -> tuple[int, int] | None:
    """(all, idle) time of all cores since the start."""
    line = (_text(root / "proc/stat") or "").partition("\n")[0].split()
    try:
        numbers = [int(word) for word in line[1:9]]
        return sum(numbers), numbers[3] + numbers[4]
    except (ValueError, IndexError):
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
