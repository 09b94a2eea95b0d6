"""What happens to a :class:`~device_agent.session.Session`, and what it wants done: plain values."""

from __future__ import annotations

from attrs import field, frozen

from protocol.messages import Assignment, DeviceEvent, Fresh, Merge, Message, Plan, Update

from .outbox import Tag
from .position import Checkpoint
from .trainer import LocalResult


@frozen
class Saved:
    """What the spool remembers of earlier processes. ``events`` by number, ``finished`` oldest first.

    Of the assignment held ``commits`` commits have been made.
    """

    held: Assignment | None = None
    commits: int = 0
    updates: tuple[tuple[Update, bytes], ...] = ()
    events: dict[int, DeviceEvent] = field(factory=dict)
    finished: tuple[str, ...] = ()


# What happens to a session.


@frozen
class Connected:
    """The link is up and the subscriptions are granted."""


@frozen
class Disconnected:
    pass


@frozen
class Received:
    """``retained``: the broker had kept it from before we were connected."""

    message: Message
    retained: bool = False


@frozen
class Acknowledged:
    """The broker has the publish that carried this tag."""

    tag: Tag | int


@frozen
class Fetched:
    """Both blobs are here: ``size`` bytes came over the wire in ``seconds``."""

    assignment: str
    seconds: float
    size: int


@frozen
class Progressed:
    assignment: str
    step: int
    loss: float | None


@frozen
class Trained:
    """A commit is encoded: ``body`` carries it, ``region``, ``residual`` and ``checkpoint`` are for the spool.

    ``residual`` is the run's residual from now on, None if nothing is left over. ``checkpoint`` is where training
    stands after the commit, None after the last one.
    """

    assignment: str
    result: LocalResult
    shape_epoch: int
    body: bytes = field(repr=False)
    region: str = field(repr=False)
    residual: bytes | None = field(repr=False)
    checkpoint: Checkpoint | None = None


@frozen
class Checkpointed:
    """The files of a checkpoint are written."""

    assignment: str
    checkpoint: Checkpoint


@frozen
class Asked:
    """Training has come to the plan's refresh point, at ``step`` within commit ``commit``."""

    assignment: str
    commit: int
    step: int
    version: int


@frozen
class FreshFetched:
    """The fresh model is here: ``size`` bytes came over the wire in ``seconds``."""

    assignment: str
    version: int
    seconds: float
    size: int


@frozen
class FreshFailed:
    """The fresh model cannot be had or is of no use; training goes on without it."""

    assignment: str
    version: int
    reason: str


@frozen
class Merged:
    """A fresh model became part of training; the next commit tells of it."""

    assignment: str
    merge: Merge


@frozen
class Refused:
    """Training cannot follow the amended ``plan``: it ``kept`` to the one it had."""

    assignment: str
    plan: Plan
    kept: Plan
    reason: str


@frozen
class Failed:
    """Fetching or training this assignment is hopeless."""

    assignment: str
    kind: str
    reason: str


@frozen
class Noticed:
    """Something outside the session that a person should read later."""

    event: DeviceEvent


@frozen
class Tick:
    pass


# What a session wants done.


@frozen
class Publish:
    """``tag``: report Acknowledged with it when the broker has the message."""

    leaf: str
    payload: bytes
    tag: Tag | int | None = None


@frozen
class Fetch:
    assignment: Assignment


@frozen
class Train:
    """Train from where the spool's checkpoint is, which ``commits`` commits have told of, or from the start."""

    assignment: Assignment
    commits: int


@frozen
class Allow:
    """Commits up to number ``commit`` may be made."""

    assignment: str
    commit: int


@frozen
class Amended:
    """From the next batch on this is the plan."""

    assignment: str
    plan: Plan


@frozen
class FetchFresh:
    assignment: Assignment
    fresh: Fresh


@frozen
class TakeFresh:
    """It is in the cache: merge it at the next batch."""

    assignment: str
    fresh: Fresh


@frozen
class Stop:
    """Nothing more is wanted of this assignment: fetch and train no further."""

    assignment: str
    reason: str


@frozen
class Hold:
    """Spool: this is the assignment the device works on."""

    assignment: Assignment


@frozen
class Drop:
    """Spool: it no longer works on any. ``finished``: one that must never be trained again, for commits of it exist."""

    finished: str | None = None


@frozen
class Commit:
    """Spool, in one transaction: the update, the run's new residual, and where training stands.

    With the last commit (``checkpoint`` None) there is no assignment any more.
    """

    update: Update
    body: bytes = field(repr=False)
    region: str = field(repr=False)
    residual: bytes | None = field(repr=False)
    checkpoint: Checkpoint | None = None


@frozen
class Save:
    """Spool: where training stands."""

    checkpoint: Checkpoint


@frozen
class Settle:
    """Spool: forget the update; ``give_back``: what it carried returns to its run's residual."""

    update: Update
    give_back: bool


@frozen
class Keep:
    """Spool: an event to tell."""

    number: int
    event: DeviceEvent


@frozen
class Discard:
    """Spool: this event has been told."""

    number: int


@frozen
class Beat:
    """Send telemetry. ``spool``: bytes without a receipt; ``since``: seconds since the first assignment.

    ``goodput`` of uploads in bytes/s, ``upload``: seconds the last one took.
    """

    state: str
    assignment: str | None
    step: int | None
    spool: int
    since: float
    goodput: float | None = None
    upload: float | None = None


Event = (
    Connected
    | Disconnected
    | Received
    | Acknowledged
    | Fetched
    | Progressed
    | Asked
    | FreshFetched
    | FreshFailed
    | Merged
    | Refused
    | Checkpointed
    | Trained
    | Failed
    | Noticed
    | Tick
)
Lasting = Hold | Drop | Commit | Save | Settle | Keep | Discard
Output = Publish | Fetch | FetchFresh | Train | Allow | Amended | TakeFresh | Stop | Beat | Lasting
