"""Releases of the agent itself. The updater, which root keeps on the board, puts them to use and takes them back; the
agent leaves the bundle in its home, asks, and says that it is well once it runs as the new one."""

from __future__ import annotations

import json
import os
import platform
import shutil
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocol.deployments import Deployed, Manifest

from . import __version__, speed
from .identity import write_durably
from .releases import Release, Setback, Trial, Unfit, Verdict
from .runtime import ArtifactError, RuntimeUnavailable

VARIABLE = "SHOAL_UPDATE"
"""The environment of an agent beside which there is an updater: the folder in which that notes what it does."""
FOLDER = "update"
UNHEARD, UNSWITCHED, UNANSWERED = 60.0, 1800.0, 60.0  # seconds: until a request is taken, carried out, a word believed
LOOK = 0.5  # seconds

NO_UPDATER = (
    "there is no updater on this device: it was not installed from a card or by install.sh, or before the coordinator "
    "had a release key; update it as it was installed, or install it anew"
)


def target() -> str:
    """The bundle that runs here, e.g. aarch64-cp313."""
    machine = platform.machine()
    if struct.calcsize("P") == 4 and machine in ("aarch64", "armv8l"):
        machine = "armv7l"  # a 32-bit system on a 64-bit kernel
    return f"{machine}-cp{sys.version_info.major}{sys.version_info.minor}"


class Upgrade:
    """``program`` is a file of this agent's, by which it knows which release it is."""

    name = "agent"
    restarts = False  # the updater does that

    def __init__(
        self,
        home: Path,
        backend: str,
        environ: Mapping[str, str] = os.environ,
        program: Path = Path(__file__),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._folder = home / FOLDER
        self._backend = backend
        self._updater = Path(environ[VARIABLE]) if environ.get(VARIABLE) else None
        # Now, and not later: the link on the way there may point to another release then.
        self._own = program.resolve().parents[1].name
        self._sleep = sleep

    def fit(self, manifest: Manifest) -> str | None:
        if self._updater is None:
            return NO_UPDATER
        if manifest.file(target()) is None:
            there = ", ".join(file.name for file in manifest.files) or "none"
            return f"the release has no bundle for {target()}, there is: {there}"
        return None

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        return (target(),)

    def stage(self, release: Release) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        bundle = release.path(target())
        try:
            os.link(bundle, self._folder / bundle.name)
        except OSError:  # a file system that has no links
            shutil.copyfile(bundle, self._folder / bundle.name)

    def switch(self, release: Release) -> None:
        """Ask for it, and wait; usually the updater ends this process meanwhile."""
        trial = {"id": release.id, "manifest": release.text, "signature": release.signature, "trial": release.seconds}
        asked, waited = False, 0.0
        while True:
            result, on_trial = self._result(release), self._note("trial.json")
            if result is not None and result["state"] == "rejected":
                raise Unfit(result["text"])
            if result is not None and result["state"] == "failed":
                raise Setback(result["text"], result["retry"])
            if result is not None or (on_trial is not None and self._is_on_trial(release)):
                return
            if not asked and on_trial is None:
                self._ask(trial)
                asked = True
            if waited > UNSWITCHED or (waited > UNHEARD and (self._folder / "request.json").exists()):
                (self._folder / "request.json").unlink(missing_ok=True)
                raise Setback("the updater of this device did not do what it was asked for", retry=True)
            self._sleep(LOOK)
            waited += LOOK

    def judge(self, release: Release, trial: Trial) -> Verdict | None:
        verdict = self._told(release, trial)
        if verdict is None and self._is_on_trial(release) and trial.connected and trial.answered:
            self._prove()
            # Our word for it, on the disk that has to take it.
            write_durably(self._folder / "confirm.json", json.dumps({"manifest": release.sha256}).encode())
            waited = 0.0
            while verdict is None and waited < UNANSWERED:
                self._sleep(LOOK)
                waited += LOOK
                verdict = self._told(release, trial)
        return verdict

    def back(self) -> None:
        if self._updater is None or not (self._updater / "trial.json").exists():
            return
        self._ask({"back": True})
        waited = 0.0
        while (self._updater / "trial.json").exists():
            if waited > UNHEARD:
                raise Setback("the updater of this device does not go back")
            self._sleep(LOOK)
            waited += LOOK

    def commit(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def current(self) -> Deployed | None:
        for name in ("trial.json", "state.json"):
            note = self._note(name)
            if note is not None and note.get("release") == self._own:
                return Deployed(kind=self.name, version=note["version"], manifest=note["manifest"])
        return Deployed(kind=self.name, version=__version__)

    def _is_on_trial(self, release: Release) -> bool:
        """Whether this very process is the release, on trial."""
        note = self._note("trial.json")
        return note is not None and note.get("manifest") == release.sha256 and note.get("release") == self._own

    def _prove(self) -> None:
        """Setback if this agent could not train here."""
        try:
            speed.run(speed.step_of(self._backend, speed.WIDTHS[-1]))
        except (RuntimeUnavailable, ArtifactError, OSError) as error:
            raise Setback(f"the runtime {self._backend} does not work: {error}") from error

    def _told(self, release: Release, trial: Trial) -> Verdict | None:
        """What the updater has to say about this deployment."""
        result = self._result(release)
        if result is None:
            return None
        if result["state"] == "succeeded":
            return Verdict(True, result["text"], {"seconds": round(trial.seconds, 1)})
        return Verdict(False, result["text"], switched=result["state"] == "rolled-back", retry=result["retry"])

    def _result(self, release: Release) -> dict[str, Any] | None:
        result = self._note("result.json")
        return result if result is not None and result.get("id") == release.id else None

    def _note(self, name: str) -> dict[str, Any] | None:
        if self._updater is None:
            return None
        try:
            found: dict[str, Any] = json.loads((self._updater / name).read_text())
        except (OSError, ValueError):
            return None
        return found

    def _ask(self, request: dict[str, Any]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._folder / "request.json", json.dumps(request).encode())
