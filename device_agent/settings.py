"""Settings: ``agent.toml`` in the agent's home, overridden by the environment's ``SHOAL_AGENT_<NAME>``.

A setting of a table is ``SHOAL_AGENT_<TABLE>_<NAME>``, e.g. ``SHOAL_AGENT_CONDITIONS_TEMPERATURE``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import Attribute, field, fields, frozen, resolve_types

from protocol.remote_settings import REMOTE

from .conditions import Conditions
from .data.source import Source
from .errors import HomeError, UsageError
from .setting import from_text, read, setting

PREFIX = "SHOAL_AGENT_"
TOKEN = PREFIX + "TOKEN"
LOG_LEVELS = ("debug", "info", "warning", "error")
BACKENDS = ("litert", "tflite", "numpy")
FLEET = "fleet.toml"
"""In the home: settings that were released to the fleet. Those of the owner's agent.toml go before."""
RELEASED = tuple(dict.fromkeys(name.partition(".")[0] for name in REMOTE))
"""What may be set from afar: never whom the device listens to, what it trains on, nor what it tells."""

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Privacy:
    """Settings ``[privacy]``. ``label_histogram``: the coordinator may know how many samples each class has."""

    label_histogram: bool = setting(False)


@frozen(kw_only=True)
class Serve:
    """Settings ``[serve]``: where programs on this board ask the deployed model. Without a ``port`` nowhere."""

    host: str = setting("127.0.0.1")
    port: int | None = setting(None, 1, 65535)


@frozen(kw_only=True)
class Settings:
    """``heartbeat`` in seconds (None: what the coordinator asked for), ``cache_bytes`` for downloaded blobs.

    ``pace`` ≥ 1 stretches every training step to that multiple of its own time, so that a fast machine can
    stand in for a slow board. ``checkpoint_seconds`` lie between two checkpoints of training, the spool takes at most
    ``spool_bytes``. ``url`` overrides the coordinator's address of the enrolment. ``data`` is a path or the table
    ``[data]``.
    """

    home: Path
    url: str | None = setting()
    data: Source | None = field(default=None)
    heartbeat: float | None = setting(None, 0.1, 86400)
    threads: int = setting(1, 1, 64)
    backend: str | None = setting(None, one_of=BACKENDS)
    cache_bytes: int = setting(256 << 20, 1 << 20, 1 << 50)
    pace: float = setting(1.0, 1, 1000)
    checkpoint_seconds: float = setting(60.0, 0.05, 86400)
    spool_bytes: int = setting(64 << 20, 1 << 20, 1 << 40)
    log_level: str = setting("info", one_of=LOG_LEVELS)
    log_format: str = setting("text", one_of=("text", "json"))
    log_file: Path | None = field(default=None)
    privacy: Privacy = field(factory=Privacy)
    conditions: Conditions = field(factory=Conditions)
    serve: Serve = field(factory=Serve)

    @property
    def stretch(self) -> float:
        """What a training step takes in all, as a multiple of its own time."""
        return self.pace / self.conditions.cpu_share


KNOWN = tuple(attribute.name for attribute in fields(Settings) if attribute.name != "home")
TABLES: dict[str, type] = {"data": Source, "privacy": Privacy, "conditions": Conditions, "serve": Serve}


def default_home() -> Path:
    return Path("/var/lib/shoal-agent") if os.geteuid() == 0 else Path.home() / ".local/share/shoal-agent"


def place(home: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The home: ``home``, or where the environment says."""
    environ = os.environ if environ is None else environ
    return home or Path(environ.get(PREFIX + "HOME") or default_home())


def load(
    home: Path | None = None, environ: Mapping[str, str] | None = None, fleet: str | None = None
) -> Settings:
    """Settings of the agent in ``home``; UsageError names a key that is unknown or out of range.

    ``fleet`` is tried in place of the home's fleet.toml, which is left out with a warning if it is of no use.
    """
    environ = os.environ if environ is None else environ
    home = place(home, environ)
    if fleet is not None:
        return _load(home, environ, _released(fleet))
    own = _load(home, environ, {})  # what is wrong with the owner's settings is not the release's fault
    try:
        text = (home / FLEET).read_text()
        return _load(home, environ, _released(text))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (UsageError, OSError, UnicodeDecodeError) as error:
        log.warning("fleet-settings-left-out cause=%r", str(error))
    return own


def _released(text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{FLEET} is not valid TOML: {error}") from error
    foreign = sorted(values.keys() - set(RELEASED))
    if foreign:
        raise UsageError(f"{FLEET} sets {foreign[0]!r}; a release may set {', '.join(RELEASED)}")
    return values


def _load(home: Path, environ: Mapping[str, str], fleet: dict[str, Any]) -> Settings:
    path = home / "agent.toml"
    values = _from_file(path)
    for name, value in fleet.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] = {**value, **values[name]}
        else:
            values.setdefault(name, value)
    if isinstance(values.get("data"), str):
        values["data"] = {"path": values["data"]}
    for table, name, value in _from_environment(environ):
        within = values.setdefault(table, {}) if table else values
        if isinstance(within, dict):
            within[name] = value
    for table, cls in TABLES.items():
        if isinstance(values.get(table), dict):
            values[table] = read(cls, values[table], table, str(path), home)
    return read(Settings, values, "", str(path), home, home=home)


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


def has_table(home: Path, name: str) -> bool:
    """Whether ``agent.toml`` has a table ``[name]``, beside which no value of that name may stand."""
    return isinstance(_from_file(home / "agent.toml").get(name), dict)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise HomeError(f"{path} cannot be read: {error.strerror}") from error


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """(table, name, value) of every variable; ``SHOAL_AGENT_DATA`` is the path of the data."""
    found: list[tuple[str, str, Any]] = []
    known = _variables()
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in (PREFIX + "HOME", TOKEN):
            continue
        if variable == PREFIX + "DATA":
            found.append(("data", "path", text))
        elif variable in known:
            table, attribute = known[variable]
            found.append((table, attribute.name, from_text(attribute, text, variable)))
        else:
            raise UsageError(
                f"the environment variable {variable} names no setting, known are {', '.join(KNOWN)}"
            )
    return found


def _variables() -> dict[str, tuple[str, Attribute[Any]]]:
    """Every variable there is, with the table and the field it sets."""
    found = {
        f"{PREFIX}{table}_{attribute.name}".upper(): (table, attribute)
        for table, cls in TABLES.items()
        for attribute in fields(resolve_types(cls))
    }
    for attribute in fields(resolve_types(Settings)):
        if attribute.name not in ("home", *TABLES):
            found[f"{PREFIX}{attribute.name}".upper()] = "", attribute
    return found
