"""What the coordinator tells this device to run: one deployment at a time, from its release to its end.

Every state is on disk before what belongs to it begins, so that power may fail at any moment: the next process goes on
where this one was. A release is proved in its trial, or the device goes back to what it had before, by itself.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from attrs import define, evolve, frozen

from protocol.deployments import Deploy, Deployed, Manifest, Recall
from protocol.errors import ProtocolError
from protocol.messages import Blob, Message
from protocol.wire import decode, encode

from .address import Address
from .download import Blobs, DownloadFailed, Fetching
from .errors import HomeError
from .executions import STARTS, Execution, Executions, Held
from .identity import Identity
from .releases import Kind, Release, Setback, Trial, Unfit, Verdict, verify

FOLDER = "releases"
ROOM = 16 << 20  # bytes that stay free beside a release
LOOK = 1.0  # seconds between two looks at training, and at a release on trial
AGAIN = 60.0  # seconds between two attempts to go back

log = logging.getLogger(__name__)


@frozen
class Said:
    """Tag of a published report."""

    id: str
    number: int


@frozen
class Runs:
    """Tag of a published word on what this device runs."""

    deployed: Deployed


@frozen
class News:
    """There is something to publish, or a restart to be made."""


@frozen
class Signs:
    """How the agent is: ``busy`` with an assignment, ``connected``, ``answered`` since it was started."""

    busy: bool = False
    connected: bool = False
    answered: bool = False


@define
class _Saying:
    deployed: Deployed
    told: bool = False


class Deployments:
    """Deployments of one agent. ``report`` takes :class:`News` from the one thread in which they are carried out; all
    public methods are the main loop's, ``signs`` is its to set."""

    def __init__(
        self, home: Path, identity: Identity, address: Address, kinds: Sequence[Kind], report: Callable[[object], None]
    ) -> None:
        self._key = identity.release_key
        self._folder = home / FOLDER
        self._blobs = Blobs(self._folder, 0, address, identity.device, identity.secret, "files")
        self._kinds = {kind.name: kind for kind in kinds}
        self._report = report
        self._executions = Executions(home)
        self._next: dict[str, Deploy] = {}  # that came while another was in hand
        self._recalled: str | None = None
        self._running: dict[str, _Saying] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._live, name="deployments", daemon=True)
        self.signs = Signs()
        self.restart = False

    # -- the main loop's ------------------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Whether this device knows the key of releases; without it, it takes none."""
        return self._key is not None

    @property
    def holds(self) -> bool:
        """Whether no new work is to be begun, for the device is about to switch."""
        current = self._executions.current
        return current is not None and current.state in ("waiting", "switching")

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        """Leave off; the next process goes on."""
        self._stopping.set()
        self._work.set()
        self._thread.join(timeout)

    def reauthenticate(self, secret: str) -> None:
        self._blobs.reauthenticate(secret)

    def take(self, message: Deploy | Recall) -> None:
        with self._lock:
            known = self._executions.find(message.id)
            if isinstance(message, Recall):
                self._recall(message.id, known)
            elif known is not None:
                known.told = known.delivered = False
            elif not self._executions.current:
                self._begin(message)
            else:
                self._next.setdefault(message.id, message)
                while len(self._next) > len(self._kinds):
                    del self._next[next(iter(self._next))]

    def untold(self) -> list[tuple[str, bytes, Said | Runs]]:
        """Channel, message and tag of what is to be published now."""
        found: list[tuple[str, bytes, Said | Runs]] = []
        with self._lock:
            for one in self._executions.reports():
                if not one.told:
                    one.told = True
                    found += self._encoded("deployment", one.report, Said(one.id, one.number))
            for saying in self._running.values():
                if not saying.told:
                    saying.told = True
                    found.append(("deployed", encode(saying.deployed), Runs(saying.deployed)))
        return found

    def connected(self) -> None:
        """A new connection: what was on its way in the old one may be lost."""
        with self._lock:
            for one in self._executions.reports():
                one.told = False
            for saying in self._running.values():
                saying.told = False

    def delivered(self, tag: Said | Runs) -> None:
        """The broker has it."""
        with self._lock:
            if isinstance(tag, Runs):
                saying = self._running.get(tag.deployed.kind)
                if saying is not None and saying.deployed == tag.deployed:
                    del self._running[tag.deployed.kind]
                return
            known = self._executions.find(tag.id)
            if known is not None and known.number == tag.number:
                known.delivered = True
                if known.ended:
                    self._save()

    def _encoded(self, leaf: str, make: Callable[[], Message], tag: Said) -> list[tuple[str, bytes, Said | Runs]]:
        try:
            return [(leaf, encode(make()), tag)]
        except ProtocolError as error:
            log.warning("report-lost id=%s cause=%s", tag.id, error)
            return []

    def _recall(self, id: str, known: Execution | None) -> None:
        self._next.pop(id, None)
        if known is not None and not known.ended and not known.on_trial:
            self._recalled = id

    def _begin(self, deploy: Deploy) -> None:
        log.info("deployment id=%s", deploy.id)
        self._executions.current = Execution(
            id=deploy.id,
            manifest=deploy.manifest,
            signature=deploy.signature,
            lock=deploy.lock,
            trial=deploy.trial,
            back=deploy.back,
            deadline=time.time() + deploy.seconds,
        )
        self._save()
        self._report(News())
        self._work.set()

    # -- the thread's ---------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._tidy()
            self._say_what_runs(*self._kinds)
            while not self._stopping.is_set():
                current = self._executions.current
                if current is not None:
                    self._carry_out(current)
                elif not self._take_next():
                    self._work.wait()
                    self._work.clear()
        except _Stopped:
            pass

    def _tidy(self) -> None:
        """What is on trial without anybody's knowing goes back."""
        current = self._executions.current
        mine = self._kind_of(current) if current is not None and current.on_trial else None
        for kind in self._kinds.values():
            if kind is not mine:
                before = kind.current()
                self._until_it_works(kind.back)
                if kind.restarts and kind.current() != before:
                    self._start_anew()
        if current is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _take_next(self) -> bool:
        with self._lock:
            if self._executions.current is None and self._next:
                self._begin(self._next.pop(next(iter(self._next))))
            return self._executions.current is not None

    def _kind_of(self, execution: Execution) -> Kind | None:
        try:
            return self._kinds.get(decode(Manifest, execution.manifest.encode()).kind)
        except ProtocolError:
            return None

    def _carry_out(self, execution: Execution) -> None:
        """From where it is to its end, unless the agent stops."""
        kind: Kind | None = None
        try:
            release, kind = self._checked(execution)
            if not execution.on_trial:
                self._fetch(execution, kind, release)
                self._wait(execution)
            self._try(execution, kind, release)
        except _Stopped:
            pass
        except Unfit as error:
            self._fail(execution, kind, "rejected", str(error))
        except Setback as error:
            self._fail(execution, kind, "failed", str(error), error.retry)
        except Exception as error:  # whatever it is, the agent has to go on
            log.exception("deployment-broke id=%s", execution.id)
            self._fail(execution, kind, "failed", str(error) or type(error).__name__, isinstance(error, OSError))

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
        release = Release(execution.id, execution.manifest, execution.signature, manifest, self._folder)
        kind = self._kinds.get(manifest.kind)
        if kind is None:
            raise Unfit(f"this agent takes no releases of the kind {manifest.kind}")
        if not execution.on_trial:
            self._admit(execution, kind, release)
        return release, kind

    def _admit(self, execution: Execution, kind: Kind, release: Release) -> None:
        manifest, held = release.manifest, self._executions.held.get(kind.name)
        if time.time() >= manifest.expires_at:
            raise Unfit("the release has expired")
        if held is not None and manifest.number < held.floor and not execution.back:
            raise Unfit(
                f"the release has the number {manifest.number}, and the one this device has forbids those below "
                f"{held.floor}"
            )
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
        fetching = Fetching(left, lambda: self._left_off(execution), self._stopping.wait, chance)
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
            self._stopping.wait(LOOK)
            self._go_on(execution)

    def _try(self, execution: Execution, kind: Kind, release: Release) -> None:
        since = time.monotonic()
        if not execution.on_trial and kind.current() == release.deployed:
            self._end(execution, "succeeded", "this device runs it already", release)
            return
        verdict = None if execution.failing is None else Verdict(False, execution.failing)
        if not execution.on_trial:
            self._advance(execution, "switching")
        try:
            if verdict is None and execution.state == "switching":
                self._switch(execution, kind, release)
            while verdict is None:
                verdict = self._judged(execution, kind, release, since)
                if verdict is None and self._stopping.wait(LOOK):
                    raise _Stopped
        except (Unfit, Setback, OSError, HomeError) as error:
            verdict = Verdict(False, str(error) or type(error).__name__)
        if verdict.good:
            kind.commit()
            execution.facts = verdict.facts
            self._end(execution, "succeeded", verdict.text, release)
        else:
            self._go_back(execution, kind, verdict)

    def _switch(self, execution: Execution, kind: Kind, release: Release) -> None:
        if execution.starts > STARTS:
            raise Setback(f"the agent was started {STARTS} times and did not come to run it")
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

    def _go_back(self, execution: Execution, kind: Kind, verdict: Verdict) -> None:
        execution.failing = verdict.text
        self._save()
        self._until_it_works(kind.back)
        execution.facts, execution.retry = verdict.facts, verdict.retry
        self._end(execution, "rolled-back" if verdict.switched else "failed", verdict.text)
        self._say_what_runs(kind.name)
        if kind.restarts:
            self._start_anew()

    def _until_it_works(self, back: Callable[[], None]) -> None:
        while True:
            try:
                return back()
            except Exception as error:  # there is nothing else to do
                log.exception("going-back-fails cause=%s", error)
                if self._stopping.wait(AGAIN):
                    raise _Stopped from error

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
        return self._stopping.is_set() or self._recalled == execution.id

    def _go_on(self, execution: Execution) -> None:
        if self._stopping.is_set():
            raise _Stopped
        if self._recalled == execution.id:
            raise Setback("it was recalled", retry=True)
        if time.time() > execution.deadline:
            raise Setback("there was no time left for it", retry=True)

    def _advance(self, execution: Execution, state: str, text: str = "") -> None:
        """On disk when this returns; Setback if it cannot be."""
        if not execution.on_trial:
            self._go_on(execution)
        with self._lock:
            before = evolve(execution)
            execution.say(state, text)
            try:
                self._executions.save()
            except HomeError as error:
                execution.say(before.state, before.text)
                raise Setback(str(error), retry=True) from error
        log.info("deployment id=%s state=%s text=%r", execution.id, state, text)
        self._report(News())

    def _end(self, execution: Execution, state: str, text: str, release: Release | None = None) -> None:
        with self._lock:
            execution.say(state, text)
            if release is not None:
                manifest = release.manifest
                self._executions.held[manifest.kind] = Held(manifest.number, manifest.floor, release.sha256)
            self._executions.end()
            self._save()
        if not execution.retry:  # another attempt goes on with what has come
            shutil.rmtree(self._folder, ignore_errors=True)
        log.info("deployment id=%s state=%s text=%r", execution.id, state, text)
        if release is not None:
            self._say_what_runs(release.manifest.kind)
        self._report(News())

    def _say_what_runs(self, *names: str) -> None:
        found = [deployed for name in names if (deployed := self._kinds[name].current())]
        with self._lock:
            self._running |= {deployed.kind: _Saying(deployed) for deployed in found}
        self._report(News())

    def _start_anew(self) -> None:
        self.restart = True
        self._report(News())
        self._stopping.wait()
        raise _Stopped

    def _save(self) -> None:
        try:
            self._executions.save()
        except HomeError as error:
            log.warning("deployments-not-kept cause=%s", error)


class _Stopped(Exception):
    """The agent stops; the next process goes on."""
