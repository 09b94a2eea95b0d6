"""docs/benchmarks.md: one section per benchmark, each with the conditions it was measured under."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from .measure import UNSETTLED, Row

_PACKAGES = ("numpy", "ai-edge-litert", "tflite-runtime", "torch", "sqlalchemy", "amqtt", "paho-mqtt")
_HEADER = f"""# Benchmarks

Written by `make bench`; `make bench ONLY=<name>` replaces one section. Ratios are medians over alternating pairs on one
pinned core with one BLAS thread; more than 1 is better than the reference. Where the reference's quartiles differ by
more than {UNSETTLED:.0%} of its median, the row says *unsettled* and proves nothing.
"""


def conditions(folder: Path) -> dict[str, str]:
    """Machine, versions, and how many writes of 4 KiB per second ``folder`` makes durable."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "fsync": f"{fsync_rate(folder):.0f}/s",
        "python": platform.python_version(),
    } | {name: version for name, version in versions.items() if version}


def fsync_rate(folder: Path, count: int = 100) -> float:
    """Appends of 4 KiB, each followed by fsync, per second."""
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(count):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        return count / (time.perf_counter() - start)


def merge(path: Path, results: Mapping[str, list[Row]], measured: Mapping[str, str], order: Iterable[str]) -> None:
    """Write ``results`` into the page; sections of benchmarks that did not run stay as they are."""
    sections = _sections(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections |= {name: _section(rows, measured) for name, rows in results.items()}
    known = [name for name in order if name in sections]
    rest = [name for name in sections if name not in known]
    page = _HEADER + "".join(f"\n## {name}\n\n{sections[name]}\n" for name in known + rest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    return {name.strip(): body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _section(rows: list[Row], measured: Mapping[str, str]) -> str:
    lines = ["| name | value | unit | reference | ratio | spread |", "|---|--:|---|--:|--:|--:|", *map(_line, rows)]
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in measured.items())])


def _line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}" + (" *unsettled*" if row.unsettled else "")
    spread = "" if row.spread is None else f"{row.spread:.0%}"
    return f"| {row.name} | {_number(row.value)} | {row.unit} | {_number(row.reference)} | {ratio} | {spread} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()
