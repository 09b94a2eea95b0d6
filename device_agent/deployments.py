"""What the coordinator tells this device to run: one deployment at a time, from its release to its end.

Every state is on disk before what belongs to it begins, so that power may fail at any moment: the next process goes on
where this one was. A release is proved in its trial, or the device goes back to what it had before, by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, frozen

from protocol.deployments import Deploy, Deployed, Recall
from protocol.errors import ProtocolError
from protocol.messages import Message
from protocol.wire import encode

from .address import Address
from .course import Course, Signs, Stopped
from .download import Blobs
from .executions import Execution, Executions
from .identity import Identity
from .releases import Kind

FOLDER = "releases"

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
class Advanced:
    """There is something to publish, or a restart to be made."""


@define
class _Saying:
    deployed: Deployed
    told: bool = False


class Deployments:
    """Deployments of one agent. ``report`` takes :class:`Advanced` from the one thread in which they are carried out;
    all public methods are the main loop's."""

    def __init__(
        self, home: Path, identity: Identity, address: Address, kinds: Sequence[Kind], report: Callable[[object], None]
    ) -> None:
        self._key, folder = identity.release_key, home / FOLDER
        self._blobs = Blobs(folder, 0, address, identity.device, identity.secret, "files")
        self._kinds = {kind.name: kind for kind in kinds}
        self._report = report
        self._executions = Executions(home)
        self._course = Course(self._key, folder, self._blobs, self._kinds, self._executions, self._changed)
        self._next: dict[str, Deploy] = {}  # that came while another was in hand
        self._running: dict[str, _Saying] = {}
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._live, name="deployments", daemon=True)

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

    @property
    def restart(self) -> bool:
        """Whether the agent is to be started anew, to run with what is there now."""
        return self._course.restart

    def feel(self, signs: Signs) -> None:
        """How the agent is now."""
        self._course.signs = signs

    def open(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 0.3) -> None:
        """Leave off; the next process goes on."""
        self._course.stopping.set()
        self._work.set()
        self._thread.join(timeout)

    def reauthenticate(self, secret: str) -> None:
        self._blobs.reauthenticate(secret)

    def take(self, message: Deploy | Recall) -> None:
        with self._executions.lock:
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
        with self._executions.lock:
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
        with self._executions.lock:
            for one in self._executions.reports():
                one.told = False
            for saying in self._running.values():
                saying.told = False

    def delivered(self, tag: Said | Runs) -> None:
        """The broker has it."""
        with self._executions.lock:
            if isinstance(tag, Runs):
                saying = self._running.get(tag.deployed.kind)
                if saying is not None and saying.deployed == tag.deployed:
                    del self._running[tag.deployed.kind]
                return
            known = self._executions.find(tag.id)
            if known is not None and known.number == tag.number:
                known.delivered = True
                if known.ended:
                    self._executions.save_if_possible()

    def _encoded(self, leaf: str, make: Callable[[], Message], tag: Said) -> list[tuple[str, bytes, Said | Runs]]:
        try:
            return [(leaf, encode(make()), tag)]
        except ProtocolError as error:
            log.warning("report-lost id=%s cause=%s", tag.id, error)
            return []

    def _recall(self, id: str, known: Execution | None) -> None:
        self._next.pop(id, None)
        if known is not None and not known.ended and not known.on_trial:
            self._course.recalled = id

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
        self._executions.save_if_possible()
        self._report(Advanced())
        self._work.set()

    # -- the thread's ---------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._course.tidy()
            trial = self._course.on_trial
            for name in self._kinds:
                if name != trial:  # which is told once it is proved
                    self._changed(name)
            while not self._course.stopping.is_set():
                current = self._executions.current
                if current is not None:
                    self._course.carry_out(current)
                elif not self._take_next():
                    self._work.wait()
                    self._work.clear()
        except Stopped:
            pass

    def _take_next(self) -> bool:
        with self._executions.lock:
            if self._executions.current is None and self._next:
                self._begin(self._next.pop(next(iter(self._next))))
            return self._executions.current is not None

    def _changed(self, name: str | None) -> None:
        """There is something to tell: what the device runs of the kind ``name``, or how a deployment goes."""
        deployed = None if name is None else self._kinds[name].current()
        if deployed is not None:
            with self._executions.lock:
                self._running[deployed.kind] = _Saying(deployed)
        self._report(Advanced())
