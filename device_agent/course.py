"""The way of a deployment from its release to its end, through the states that the device tells."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from attrs import evolve, frozen

from protocol.deployments import Manifest
from protocol.errors import ProtocolError
from protocol.messages import Blob
from protocol.wire import decode

from .download import Blobs, DownloadFailed, Fetching
from .errors import HomeError
from .executions import STARTS, Execution, Executions
from .releases import Kind, Release, Setback, Trial, Unfit, Verdict, verify

ROOM = 16 << 20  # bytes that stay free beside a release
LOOK = 1.0  # seconds between two looks at training, and at a release on trial
AGAIN = 60.0  # seconds between two attempts to go back

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The agent stops; the next process goes on."""


@frozen
class Signs:
    """How the agent is: ``busy`` with an assignment, ``connected``, ``answered`` since it was started."""

    busy: bool = False
    connected: bool = False
    answered: bool = False


class Course:
    """Takes deployments along, one at a time. All but the plain attributes is for one thread.

    ``key``: the one of releases, None if this device has none. ``tell`` is called when there is something to be told:
    with the kind whose release is another now, or with None. ``recalled``: the id of a deployment that is to end while
    it can.
    """

    def __init__(
        self,
        key: str | None,
        folder: Path,
        blobs: Blobs,
        kinds: Mapping[str, Kind],
        executions: Executions,
        tell: Callable[[str | None], None],
    ) -> None:
        self._key = key
        self._folder = folder
        self._blobs = blobs
        self._kinds = kinds
        self._executions = executions
        self._tell = tell
        self.stopping = threading.Event()
        self.recalled: str | None = None
        self.signs = Signs(busy=True)  # until somebody has looked
        self.restart = False

    @property
    def on_trial(self) -> str | None:
        """The kind of the release on trial."""
        current = self._executions.current
        kind = self._kind_of(current) if current is not None and current.on_trial else None
        return None if kind is None else kind.name

    def tidy(self) -> None:
        """What is on trial without anybody's knowing goes back."""
        current, trial = self._executions.current, self.on_trial
        for kind in self._kinds.values():
            if kind.name != trial:
                before = kind.current()
                self._until_it_works(kind.back)
                if kind.restarts and kind.current() != before:
                    self._start_anew()
        if current is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def carry_out(self, execution: Execution) -> None:
        """From where it is to its end, unless the agent stops."""
        kind: Kind | None = None
        try:
            release, kind = self._checked(execution)
            if not execution.on_trial:
                self._fetch(execution, kind, release)
                self._wait(execution)
            self._try(execution, kind, release)
        except Stopped:
            pass
        except Unfit as error:
            self._fail(execution, kind, "rejected", str(error))
        except Setback as error:
            self._fail(execution, kind, "failed", str(error), error.retry)
        except Exception as error:  # whatever it is, the agent has to go on
            log.exception("deployment-broke id=%s", execution.id)
            retry = isinstance(error, OSError | HomeError)
            self._fail(execution, kind, "failed", str(error) or type(error).__name__, retry)

    def _checked(self, execution: Execution) -> tuple[Release, Kind]:
        """What it is, once its signature is known to be good."""
        if self._key is None:
            raise Unfit("this device has no key to check releases with: enrol it again")
        if not execution.on_trial:
            verify(self._key, execution.manifest, execution.signature)
        try:
            manifest = decode(Manifest, execution.manifest.encode())
        except ProtocolError as error:
            raise Unfit(f"its manifest is not one: {error}") from error
        given = execution.id, execution.manifest, execution.signature
        release = Release(*given, manifest, self._folder, execution.trial)
        kind = self._kinds.get(manifest.kind)
        if kind is None:
            raise Unfit(f"this agent takes no releases of the kind {manifest.kind}")
        if not execution.on_trial:
            self._admit(execution, kind, release)
        return release, kind

    def _admit(self, execution: Execution, kind: Kind, release: Release) -> None:
        manifest, floor = release.manifest, self._executions.floors.get(kind.name, 0)
        if time.time() >= manifest.expires_at:
            raise Unfit("the release has expired")
        if manifest.number < floor:
            raise Unfit(f"its number is {manifest.number}, and this device takes none below {floor} any more")
        reason = kind.fit(manifest)
        if reason is not None:
            raise Unfit(reason)

    def _fetch(self, execution: Execution, kind: Kind, release: Release) -> None:
        if kind.current() == release.deployed:
            return
        self._advance(execution, "downloading")
        files = [file for name in kind.files(release.manifest) if (file := release.manifest.file(name))]
        blobs = [Blob(sha256=file.sha256, size=file.size) for file in files]
        total = sum(blob.size for blob in blobs)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if (free := shutil.disk_usage(self._folder).free) < total + ROOM:
            raise Setback(f"there is no room for it: {free} bytes are free, {total + ROOM} are needed", retry=True)
        self._blobs.limit = total
        left = max(execution.deadline - time.time(), 0.0)
        chance = Random()  # noqa: S311  # jitter, no secrets
        fetching = Fetching(left, lambda: self._left_off(execution), self.stopping.wait, chance)
        try:
            for blob in blobs:
                self._blobs.fetch(blob, blobs, fetching)
        except DownloadFailed as error:
            self._go_on(execution)
            raise Setback(str(error), retry=True) from error
        self._advance(execution, "verifying")
        if any(self._blobs.cached(blob) is None for blob in blobs):
            raise Setback("a file of it was damaged after it had come", retry=True)
        kind.stage(release)
        self._advance(execution, "staged")

    def _wait(self, execution: Execution) -> None:
        """Until no training is in hand, but no longer than its lock."""
        until = time.monotonic() + execution.lock
        if self.signs.busy and execution.lock > 0:
            self._advance(execution, "waiting", "training is in hand")
        while self.signs.busy and time.monotonic() < until:
            self.stopping.wait(LOOK)
            self._go_on(execution)

    def _try(self, execution: Execution, kind: Kind, release: Release) -> None:
        if not execution.on_trial and kind.current() == release.deployed:
            self._end(execution, "succeeded", "this device runs it already", release)
            return
        verdict, unfit = None if execution.failing is None else Verdict(False, execution.failing), False
        if not execution.on_trial:
            self._advance(execution, "switching")
        try:
            if verdict is None and execution.state == "switching":
                self._switch(execution, kind, release)
            since = time.monotonic()
            while verdict is None:
                verdict = self._judged(execution, kind, release, since)
                if verdict is None and self.stopping.wait(LOOK):
                    raise Stopped
        except (Unfit, Setback) as error:
            retry = isinstance(error, Setback) and error.retry
            verdict = Verdict(False, str(error), switched=execution.state == "probation", retry=retry)
            unfit = isinstance(error, Unfit)
        except (OSError, HomeError) as error:
            verdict = Verdict(False, str(error))
        if verdict.good:
            kind.commit()
            execution.facts = verdict.facts
            self._end(execution, "succeeded", verdict.text, release)
        else:
            self._go_back(execution, kind, verdict, unfit)

    def _switch(self, execution: Execution, kind: Kind, release: Release) -> None:
        if execution.starts > STARTS:
            raise Setback(f"the agent was started {STARTS} times and did not come to run it", retry=True)
        kind.switch(release)
        self._advance(execution, "probation")
        if kind.restarts:
            self._start_anew()

    def _judged(self, execution: Execution, kind: Kind, release: Release, since: float) -> Verdict | None:
        seconds, signs = time.monotonic() - since, self.signs
        left = execution.trial - seconds
        trial = Trial(seconds, left, execution.starts, signs.connected, signs.answered)
        verdict = kind.judge(release, trial)
        if verdict is None and execution.starts > STARTS:
            return Verdict(False, f"the agent was started {STARTS} times on trial, and it was not proved")
        if verdict is None and left <= 0:
            return Verdict(False, f"it was not proved within {execution.trial:g} seconds")
        return verdict

    def _go_back(self, execution: Execution, kind: Kind, verdict: Verdict, unfit: bool = False) -> None:
        execution.failing = verdict.text
        self._executions.save_if_possible()
        self._until_it_works(kind.back)
        execution.facts, execution.retry = verdict.facts, verdict.retry
        ended = "rolled-back" if verdict.switched else "rejected" if unfit else "failed"
        self._end(execution, ended, verdict.text)
        self._tell(kind.name)
        if kind.restarts:
            self._start_anew()

    def _until_it_works(self, back: Callable[[], None]) -> None:
        while True:
            try:
                return back()
            except Exception as error:  # there is nothing else to do
                log.exception("going-back-fails cause=%s", error)
                if self.stopping.wait(AGAIN):
                    raise Stopped from error

    def _fail(self, execution: Execution, kind: Kind | None, state: str, text: str, retry: bool = False) -> None:
        if execution.on_trial:  # whatever broke: nobody can say any more that it is good
            if kind is None:
                kind = self._kind_of(execution)
            if kind is not None:
                self._go_back(execution, kind, Verdict(False, text))
                return
        execution.retry = retry
        self._end(execution, state, text)

    # -- what lasts, and what is told -----------------------------------------------------------------------------

    def _left_off(self, execution: Execution) -> bool:
        return self.stopping.is_set() or self.recalled == execution.id

    def _go_on(self, execution: Execution) -> None:
        if self.stopping.is_set():
            raise Stopped
        if self.recalled == execution.id:
            raise Setback("it was recalled", retry=True)
        if time.time() > execution.deadline:
            raise Setback("there was no time left for it", retry=True)

    def _advance(self, execution: Execution, state: str, text: str = "") -> None:
        """On disk when this returns; Setback if it cannot be."""
        if not execution.on_trial:
            self._go_on(execution)
        with self._executions.lock:
            before = evolve(execution)
            execution.say(state, text)
            try:
                self._executions.save()
            except HomeError as error:
                execution.say(before.state, before.text)
                raise Setback(str(error), retry=True) from error
        log.info("deployment id=%s state=%s text=%r", execution.id, state, text)
        self._tell(None)

    def _end(self, execution: Execution, state: str, text: str, release: Release | None = None) -> None:
        with self._executions.lock:
            execution.say(state, text)
            if release is not None:
                self._executions.hold(release.manifest.kind, release.manifest.floor)
            self._executions.end()
            self._executions.save_if_possible()
        if not execution.retry:  # another attempt goes on with what has come
            shutil.rmtree(self._folder, ignore_errors=True)
        log.info("deployment id=%s state=%s text=%r", execution.id, state, text)
        self._tell(None if release is None else release.manifest.kind)

    def _kind_of(self, execution: Execution) -> Kind | None:
        try:
            return self._kinds.get(decode(Manifest, execution.manifest.encode()).kind)
        except ProtocolError:
            return None

    def _start_anew(self) -> None:
        self.restart = True
        self._tell(None)
        self.stopping.wait()
        raise Stopped
