"""Releases of the agent on trial on this board: begun, counted, kept or taken back, whatever moment the power fails."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .system import Board
from .update_units import AGENT, STATE

RELEASES = "/opt/shoal/releases"
CURRENT = "/opt/shoal/current"
STARTS = 3
"""How often the agent may be started with a release before it has proved itself."""
ASKED = "the agent asked to go back"
_BAD = 32  # remembered


class Trials:
    """``trial.json`` is there while a release is on trial, and from before it is current. ``state.json``: the release
    that was proved last, and those that were not. ``result.json``: what came of the last request."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.folder = board.path(STATE)
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    # -- files ----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> dict[str, Any] | None:
        """None if it is not there, or of no use."""
        try:
            found = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, name: str, value: dict[str, Any]) -> None:
        """On disk when this returns."""
        _sync(self._board.write(f"{STATE}/{name}", json.dumps(value, indent=1) + "\n").parent)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        _sync(self.folder)

    @property
    def state(self) -> dict[str, Any]:
        """What was proved last, what it takes none below, what was not proved, and the release before."""
        none: dict[str, Any] = dict.fromkeys(("release", "manifest", "version", "before"))
        return {**none, "number": 0, "floor": 0, "bad": [], **(self.read("state.json") or {})}

    def told(self, id: str, state: str, text: str, retry: bool = False) -> None:
        self.keep("result.json", {"id": id, "state": state, "text": text[:2000], "retry": retry})

    @property
    def on(self) -> bool:
        """Whether a release is on trial."""
        return (self.folder / "trial.json").exists()

    @property
    def current(self) -> str | None:
        """The release that is current."""
        try:
            return Path(os.readlink(self._board.path(CURRENT))).name
        except OSError:
            return None

    def prune(self) -> None:
        """Two releases stay: the current one, and the one before it."""
        place = self._board.path(RELEASES)
        kept = {self.current, self.state["before"]}
        for path in place.iterdir() if place.is_dir() else ():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time: several units call at once. Nobody else may open the lock, or he could hold it for ever."""
        descriptor = os.open(self.folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _trial(self) -> dict[str, Any] | None:
        """What is on trial. What cannot be read any more has not proved itself."""
        trial = self.read("trial.json")
        if trial is None and (self.folder / "trial.json").exists():
            places = self._board.path(RELEASES).glob("*/.complete")
            others = [one.parent.name for one in places if one.parent.name != self.current]
            before = self.state["release"] or next(iter(sorted(others)), None)
            ending = "what was noted about its trial was damaged"
            trial = {"id": "", "release": self.current, "manifest": "", "before": before, "starts": 0, "ending": ending}
        return trial

    # -- a trial --------------------------------------------------------------------------------------------------

    def begin(self, id: str, release: str, digest: str, manifest: dict[str, Any], seconds: float) -> None:
        with self._locked():
            if release == self.current:
                self._proved({"release": release, "manifest": digest, **_facts(manifest)})
                self.told(id, "succeeded", "this board runs it already")
                return
            trial = {"id": id, "release": release, "manifest": digest, "before": self.current, "seconds": seconds}
            self.keep("trial.json", {**trial, **_facts(manifest), "starts": 0, "began": time.time()})
        # What is still to be done is done by step, now or after a power cut.

    def step(self, confirmed: Callable[[dict[str, Any]], bool], asked_back: Callable[[], bool], seconds: float) -> bool:
        """One look at the trial, ``seconds`` after the first; whether it goes on."""
        with self._locked():
            trial = self._trial()
            if trial is None:
                return False
            other = self._decided(trial, confirmed, asked_back, seconds)
            goes_on = self.on
        if other:
            self._restart()
        return goes_on

    def _decided(
        self, trial: dict[str, Any], confirmed: Callable[[dict[str, Any]], bool], asked_back: Callable[[], bool],
        seconds: float,
    ) -> bool:  # fmt: skip
        """Take the trial as far as it can be taken now; whether another release is current than before."""
        if trial.get("ending"):
            self._go_back(trial, trial["ending"])
        elif self.current != trial["release"]:
            self._board.point(trial["release"])
        elif confirmed(trial):
            self._proved(trial)
            self.told(trial["id"], "succeeded", "")
            self.remove("trial.json")
            self.prune()
            return False
        elif asked_back():
            self._go_back(trial, ASKED)
        elif seconds > trial["seconds"]:
            self._go_back(trial, f"the agent did not prove itself within {trial['seconds']:g} seconds")
        else:
            return False
        return True

    def started(self) -> None:
        """The agent is about to be started: after too many times with the one before."""
        with self._locked():
            trial = self._trial()
            if trial is None:
                return
            trial["starts"] += 1
            try:
                self.keep("trial.json", trial)
            except OSError:  # what cannot be counted is not tried again
                trial["starts"] = STARTS + 1
            if trial.get("ending") or trial["starts"] > STARTS:
                text = f"the agent was started {STARTS} times and did not prove itself"
                self._go_back(trial, trial.get("ending") or text)

    def back(self, reason: str) -> None:
        """A release that is on trial goes back, for ``reason``; nothing happens if none is."""
        with self._locked():
            trial = self._trial()
            if trial is None:
                return
            self._go_back(trial, reason)
        self._restart()

    def _go_back(self, trial: dict[str, Any], reason: str) -> None:
        trial["ending"] = reason
        with suppress(OSError):  # a full disk must not keep us from going back
            self.keep("trial.json", trial)
        before = trial["before"]
        if before is not None and (self._board.path(f"{RELEASES}/{before}") / ".complete").exists():
            self._board.point(before)
        with suppress(OSError):
            state = self.state
            state["bad"] = [*(one for one in state["bad"] if one != trial["manifest"]), trial["manifest"]][-_BAD:]
            self.keep("state.json", state)
            self.told(trial["id"], "rolled-back", reason)
        self.remove("trial.json")

    def _proved(self, trial: dict[str, Any]) -> None:
        state = self.state
        known = {name: trial[name] for name in ("release", "manifest", "version", "number")}
        before = trial.get("before", state["before"])
        self.keep("state.json", {**state, **known, "floor": max(state["floor"], trial["floor"]), "before": before})

    def _restart(self) -> None:
        # A unit that was started too often would not start any more. Nobody waits: the agent's start calls us.
        self._board.run("systemctl", "reset-failed", AGENT, check=False)
        self._board.run("systemctl", "restart", "--no-block", AGENT, check=False)


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"version": manifest["version"], "number": manifest["number"], "floor": manifest["floor"]}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
