"""Settings: ``agent.toml`` in the agent's home, overridden by the environment's ``SHOAL_AGENT_<NAME>``."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from .errors import HomeError, UsageError

PREFIX = "SHOAL_AGENT_"
LOG_LEVELS = ("debug", "info", "warning", "error")


@frozen(kw_only=True)
class Settings:
    """``heartbeat`` in seconds (None: what the coordinator asked for), ``cache_bytes`` for downloaded blobs.

    ``pace`` ≥ 1 stretches every training step to that multiple of its own time, so that a fast machine can
    stand in for a slow board. ``checkpoint_seconds`` lie between two checkpoints of training, the spool takes at most
    ``spool_bytes``. ``url`` overrides the coordinator's address of the enrolment.
    """

    home: Path
    url: str | None = None
    data: Path | None = None
    heartbeat: float | None = None
    threads: int = 1
    backend: str | None = None
    cache_bytes: int = 256 << 20
    pace: float = 1.0
    checkpoint_seconds: float = 60.0
    spool_bytes: int = 64 << 20
    log_level: str = "info"


_KINDS: dict[str, type] = {
    "url": str,
    "data": str,
    "heartbeat": float,
    "threads": int,
    "backend": str,
    "cache_bytes": int,
    "pace": float,
    "checkpoint_seconds": float,
    "spool_bytes": int,
    "log_level": str,
}
_RANGES: dict[str, tuple[float, float]] = {
    "heartbeat": (0.1, 86400),
    "threads": (1, 64),
    "cache_bytes": (1 << 20, 1 << 50),
    "pace": (1, 1000),
    "checkpoint_seconds": (0.05, 86400),
    "spool_bytes": (1 << 20, 1 << 40),
}


def default_home() -> Path:
    return Path("/var/lib/shoal-agent") if os.geteuid() == 0 else Path.home() / ".local/share/shoal-agent"


def load(home: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of the agent in ``home``; UsageError names a key that is unknown or out of range."""
    environ = os.environ if environ is None else environ
    home = home or Path(environ.get(PREFIX + "HOME") or default_home())
    values = _from_file(home / "agent.toml") | _from_environment(environ)
    for name, value in values.items():
        _check(name, value)
    if "data" in values:
        values["data"] = home / values["data"]
    return Settings(home=home, **values)


def remember(home: Path, values: Mapping[str, str]) -> None:
    """Write text settings into ``agent.toml``; every other line stays as it is."""
    path = home / "agent.toml"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if not re.match(rf"\s*({'|'.join(map(re.escape, values))})\s*=", line)]
    # On top: after a table header they would belong to the table.
    new = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text("\n".join([*new, *kept]) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise HomeError(f"{path} cannot be written: {error.strerror}") from error


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise HomeError(f"{path} cannot be read: {error.strerror}") from error
    unknown = sorted(values.keys() - _KINDS.keys())
    if unknown:
        raise UsageError(f"{path} has the unknown setting {unknown[0]!r}, known are {', '.join(_KINDS)}")
    return {name: float(v) if _KINDS[name] is float and type(v) is int else v for name, v in values.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == PREFIX + "HOME":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _KINDS:
            raise UsageError(
                f"the environment variable {variable} names no setting, known are {', '.join(_KINDS)}"
            )
        try:
            values[name] = _KINDS[name](text)
        except ValueError as error:
            raise UsageError(f"{variable} is {text!r}, expected {_KINDS[name].__name__}") from error
    return values


def _check(name: str, value: Any) -> None:
    kind = type(value)
    if kind is not _KINDS[name]:
        raise UsageError(f"setting {name} is {value!r}, expected {_KINDS[name].__name__}")
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    if name in _RANGES and not low <= value <= high:
        raise UsageError(f"setting {name} is {value}, expected {low:g} to {high:g}")
    if name == "log_level" and value not in LOG_LEVELS:
        raise UsageError(f"setting log_level is {value!r}, expected one of {', '.join(LOG_LEVELS)}")
