"""Settings for the whole fleet: ``fleet.toml`` in the home, below what the owner of this device has set."""

from __future__ import annotations

import os
import re
from pathlib import Path

from protocol.deployments import Deployed, Manifest

from . import settings
from .errors import UsageError
from .executions import STARTS, count_start
from .identity import write_durably
from .releases import Release, Trial, Verdict

BEFORE = "fleet.toml.before"  # is there while one is on trial; empty if there was none before it
_HEADER = re.compile(r"# config release (\S+) ([0-9a-f]{64})\n")


class Config:
    """Releases of settings. They are read when the agent starts, and proved when the broker has let it in."""

    name = "config"
    restarts = True

    def __init__(self, home: Path) -> None:
        self._path, self._before = home / settings.FLEET, home / BEFORE
        self._home = home

    def fit(self, manifest: Manifest) -> str | None:
        try:
            settings.load(self._home, fleet=manifest.settings)
        except UsageError as error:
            return str(error)
        return None

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        return ()

    def stage(self, release: Release) -> None:
        pass

    def switch(self, release: Release) -> None:
        if not self._before.exists():
            write_durably(self._before, self._path.read_bytes() if self._path.exists() else b"")
        header = f"# config release {release.manifest.version} {release.sha256}\n"
        write_durably(self._path, (header + release.manifest.settings).encode())

    def judge(self, release: Release, trial: Trial) -> Verdict | None:
        if trial.starts > STARTS:
            return Verdict(False, f"with these settings the agent was started {STARTS} times and never connected")
        if self.current() != release.deployed:
            return Verdict(False, "the settings are not those of the release")
        if trial.connected:
            return Verdict(True, facts={"seconds": round(trial.seconds, 1)})
        if trial.left <= 0:
            return Verdict(False, f"with these settings the agent was not connected within {trial.seconds:.0f} seconds")
        return None

    def back(self) -> None:
        if self._before.exists():  # needs no room on the disk
            os.replace(self._before, self._path)
            os.sync()

    def commit(self) -> None:
        self._before.unlink(missing_ok=True)

    def current(self) -> Deployed | None:
        try:
            found = _HEADER.match(self._path.read_text())
        except (OSError, UnicodeDecodeError):
            return None
        return Deployed(kind=self.name, version=found[1], manifest=found[2]) if found else None


def started(home: Path) -> None:
    """The agent was started, and is about to read its settings: those that were tried often enough go back first."""
    if not count_start(home):
        Config(home).back()
