"""What happens to a :class:`~device_agent.session.Session`, and what it wants done: plain values."""

from __future__ import annotations

from attrs import field, frozen

from protocol.messages import Assignment, DeviceEvent, Message, Update

from .outbox import Tag
from .trainer import LocalResult


@frozen
class Saved:
    """What the spool remembers of earlier processes. ``events`` by number, ``finished`` oldest first."""

    held: Assignment | None = None
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
    """Training is over and encoded: ``body`` carries it, ``region`` and ``residual`` are for the spool.

    ``residual`` is the run's residual from now on, None if nothing is left over.
    """

    assignment: str
    result: LocalResult
    shape_epoch: int
    body: bytes = field(repr=False)
    region: str = field(repr=False)
    residual: bytes | None = field(repr=False)


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
class Steered:
    """From now on no new work is wanted, or it is again."""

    paused: bool


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
    assignment: Assignment


@frozen
class Hold:
    """Spool: this is the assignment the device works on."""

    assignment: Assignment


@frozen
class Drop:
    """Spool: it no longer works on any."""


@frozen
class Commit:
    """Spool, in one transaction: the update, the run's new residual, and no assignment any more."""

    update: Update
    body: bytes = field(repr=False)
    region: str = field(repr=False)
    residual: bytes | None = field(repr=False)


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
    """Send telemetry. ``spool``: bytes without a receipt; ``since``: seconds since the first assignment."""

    state: str
    assignment: str | None
    step: int | None
    spool: int
    since: float


Event = (
    Connected
    | Disconnected
    | Received
    | Acknowledged
    | Fetched
    | Progressed
    | Trained
    | Failed
    | Noticed
    | Steered
    | Tick
)
Output = Publish | Fetch | Train | Hold | Drop | Commit | Settle | Keep | Discard | Beat
