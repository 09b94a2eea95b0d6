"""The assignment in hand: from the offer to its last commit. Sans-IO, a part of the session.

| what happened                       | what follows                                                           |
|-------------------------------------|------------------------------------------------------------------------|
| both blobs fetched                  | train, from the checkpoint if there is one                             |
| there is room for one more update   | the next commit is allowed; the last one always is                     |
| a fresh model is offered            | fetch it beside training; of several only the newest waits its turn    |
| the fresh model is here             | merge it at the next batch                                             |
| no fresh model can be had           | tell why; training goes on                                             |
| training is at its refresh point    | ask for the fresh model; without a connection as soon as there is one  |
| training is checkpointed            | save it                                                                |
| the plan is amended                 | train by it from the next batch on; refuse what no training can change |
"""

from __future__ import annotations

import math

from attrs import define, evolve

from protocol.messages import (
    Amend,
    Ask,
    Assignment,
    DeviceEvent,
    Fresh,
    Lineage,
    Message,
    Plan,
    Progress,
    Timings,
    Update,
)
from protocol.transfer import described
from protocol.wire import encode

from .conversation import (
    Allow,
    Amended,
    Asked,
    Checkpointed,
    Event,
    Fetched,
    FetchFresh,
    FreshFailed,
    FreshFetched,
    Hold,
    Merged,
    Output,
    Progressed,
    Refused,
    Save,
    TakeFresh,
    Train,
    Trained,
)

PROGRESS = 2.0  # seconds between two progress messages
FIXED = ("width", "batch", "coding", "roll")


@define
class Work:
    """``state`` is held (not begun in this process), fetching or training; ``commits`` have been made."""

    assignment: Assignment
    state: str
    commits: int = 0
    step: int | None = None
    _told: float = -math.inf
    _version: int = -1  # the newest that is here
    _download: float = 0.0
    _bytes_down: int = 0
    _allowed: int = 0
    _amended: int = -1
    _fetching: Fresh | None = None
    _waiting: Fresh | None = None

    @property
    def id(self) -> str:
        return self.assignment.id

    @property
    def begun(self) -> str | None:
        """Its id if commits of it exist: then it must never begin anew."""
        return self.id if self.commits else None

    def handle(self, event: Event, now: float) -> list[Output | Message]:
        """What follows from something that happened to it: things to do, and messages to send."""
        match event:
            case Fetched() if self.state == "fetching":
                return [*self._fetched(event)]
            case _ if self.state != "training":
                return []
            case Progressed():
                return [*self._progressed(event, now)]
            case Asked(_, commit, step, version):
                return [Ask(assignment=self.id, commit=commit, step=step, version=version)]
            case FreshFetched(_, version, seconds, size):
                return [*self._fresh_fetched(version, seconds, size)]
            case FreshFailed(_, version, reason):
                told = f"assignment {self.id} goes on without version {version}: {reason}"
                return [*self._arrived(version)[1], DeviceEvent(kind="fresh-failed", text=told[:2000])]
            case Merged(_, merge):
                self._version = max(self._version, merge.version)
            case Refused():
                return [*self._refused(event)]
            case Checkpointed(_, checkpoint):
                return [Save(checkpoint)]
        return []

    def _progressed(self, event: Progressed, now: float) -> list[Message]:
        self.step = event.step
        if event.step > 0 and now - self._told < PROGRESS:
            return []
        self._told = now
        return [Progress(assignment=self.id, step=event.step, loss=event.loss)]

    def _fetched(self, event: Fetched) -> list[Output]:
        self.state = "training"
        self._down(event.seconds, event.size)
        return [Train(self.assignment, self.commits)]

    def allowance(self, room: bool) -> list[Output]:
        """Training may make its next commit, if there is room or it is the last."""
        following = self.commits + 1
        may = room or following >= self.assignment.plan.commits
        if self.state != "training" or self._allowed >= following or not may:
            return []
        self._allowed = following
        return [Allow(self.id, following)]

    # Plans.

    def outdated(self, amend: Amend) -> bool:
        if amend.number <= self._amended:
            return True
        self._amended = amend.number
        return False

    def amend(self, plan: Plan) -> list[Output | Message]:
        """Go on by ``plan``."""
        if self.state == "held":
            return []  # the plan comes with the assignment
        old = self.assignment.plan
        for name in FIXED:
            was, wanted = getattr(old, name), getattr(plan, name)
            if was != wanted:
                return [self._amend_refused(f"{name} cannot become {wanted} while training goes on, it is {was}")]
        self.assignment = evolve(self.assignment, plan=plan)
        return [Hold(self.assignment), Amended(self.id, plan)]

    def _refused(self, event: Refused) -> list[Output | Message]:
        """Training could not follow: what is held is what is trained."""
        told = self._amend_refused(event.reason)
        if self.assignment.plan is not event.plan:
            return [told]  # amended again since then
        self.assignment = evolve(self.assignment, plan=event.kept)
        return [Hold(self.assignment), told]

    def _amend_refused(self, reason: str) -> DeviceEvent:
        return DeviceEvent(kind="amend-refused", text=f"assignment {self.id}: {reason}"[:2000])

    # Fresh models.

    def offered(self, fresh: Fresh) -> list[Output]:
        """Fetch it, unless it is not newer than what is here or on its way."""
        known = (self._fetching, self._waiting)
        newest = max([self.assignment.version, self._version, *(other.version for other in known if other is not None)])
        if self.state == "held" or fresh.version <= newest:
            return []
        if self._fetching is not None:
            self._waiting = fresh
            return []
        self._fetching = fresh
        return [FetchFresh(self.assignment, fresh)]

    def _fresh_fetched(self, version: int, seconds: float, size: int) -> list[Output]:
        fresh, following = self._arrived(version)
        if fresh is None:
            return []
        self._down(seconds, size)
        self._version = fresh.version
        return [TakeFresh(self.id, fresh), *following]

    def _arrived(self, version: int) -> tuple[Fresh | None, list[Output]]:
        """The one that was being fetched, and what follows it."""
        fresh = self._fetching
        if fresh is None or fresh.version != version:
            return None, []
        self._fetching, self._waiting = self._waiting, None
        return fresh, [FetchFresh(self.assignment, self._fetching)] if self._fetching else []

    # Commits.

    def update(self, event: Trained, upload: float | None, goodput: float | None) -> Update:
        """What tells of a commit; ProtocolError if no message can carry it."""
        result = event.result
        update = Update(
            assignment=self.id,
            commit=result.commit,
            run=self.assignment.run,
            lineage=Lineage(version=result.version, shape_epoch=event.shape_epoch, merges=result.merges),
            samples=result.samples,
            steps=result.steps,
            loss=result.loss,
            accuracy=result.accuracy,
            squared_gradient=result.squared_gradient,
            squared_gradient_peak=result.squared_gradient_peak,
            timings=Timings(download=self._download, train=result.seconds, upload=upload),
            bytes_down=self._bytes_down,
            coding=self.assignment.plan.coding,
            size=len(event.body),
            sha256="0" * 64,
            chunk=0,
            holdout=result.holdout,
            # Training may not have seen an amended plan that ends with this commit.
            last=result.last or result.commit >= self.assignment.plan.commits,
        )
        update = described(update, event.body, goodput)
        encode(update)  # too long a message is found out now, not after it was committed
        return update

    def committed(self) -> None:
        self.commits += 1
        self._download, self._bytes_down = 0.0, 0

    def _down(self, seconds: float, size: int) -> None:
        self._download += seconds
        self._bytes_down += size
