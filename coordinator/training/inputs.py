"""What goes into an engine and what comes out. Inputs are stored in one total order; effects follow from them."""

from __future__ import annotations

from attrs import field, frozen

from coordinator.strategies.base import Contributor, DeviceView, Explanation
from protocol.messages import Ask, CheckIn, Plan, Update


@frozen
class CheckedIn:
    """A device offers itself for work."""

    device: DeviceView
    check_in: CheckIn


@frozen
class Delivered:
    """An update is here, completely; ``body`` holds its tensors."""

    device: str
    update: Update
    body: bytes = field(repr=False)


@frozen
class Rejected:
    """An update that could not even be received, e.g. because it is too large."""

    device: str
    update: Update
    reason: str


@frozen
class Asked:
    """A device asks for the fresh model."""

    device: str
    ask: Ask


@frozen
class Evaluated:
    """A version was measured on the test set, and on the control set if there is one."""

    version: int
    accuracy: float
    loss: float
    control_accuracy: float | None = None
    control_loss: float | None = None


@frozen
class Answered:
    """What was asked by :class:`Requested` is done, or ``failed`` is 1. Evaluations have version, accuracy and loss."""

    number: int
    result: dict[str, float]


@frozen
class Ticked:
    """Time has passed: a lease may have run out, or a member wanted to be woken."""


@frozen
class Departed:
    """A device was revoked."""

    device: str


@frozen
class Operated:
    """An operator's command: ``pause``, ``resume`` or ``stop``."""

    action: str
    by: str


Input = CheckedIn | Asked | Delivered | Rejected | Evaluated | Answered | Ticked | Departed | Operated


@frozen
class Offered:
    """Work for a device. ``again``: it was offered before, and explained then; the device still holds it."""

    assignment: str
    device: str
    check_in: str
    version: int
    plan: Plan
    expires_at: float
    explanation: dict[str, Explanation]
    again: bool


@frozen
class Deferred:
    """No work now; ``seconds`` None leaves the pace to the caller."""

    device: str
    check_in: str
    seconds: float | None
    reason: str


@frozen
class Settled:
    """An update's outcome: stored, stale, refused or expired. ``norm`` is the length of its difference.

    ``ends``: its assignment is closed by it. ``scores`` are what the gates looked at.
    """

    device: str
    update: Update
    outcome: str
    reason: str
    staleness: int | None
    norm: float | None
    ends: bool = True
    scores: dict[str, Explanation] = field(factory=dict)


@frozen
class Amended:
    """The plan of an open assignment changed, for the ``number``-th time."""

    assignment: str
    device: str
    number: int
    plan: Plan


@frozen
class Refreshed:
    """A device is to merge the newest model into its training."""

    assignment: str
    device: str
    version: int
    plan: Plan
    merge: float
    keep: float


@frozen
class Requested:
    """A computation is to be done elsewhere; "evaluate" measures the newest model on the control set."""

    number: int
    computation: str
    arguments: dict[str, tuple[float, ...]]


@frozen
class Closed:
    """An assignment ended without an update: ``state`` expired or cancelled. ``tell``: its agent wants to know."""

    assignment: str
    device: str
    state: str
    reason: str
    tell: bool = False


@frozen
class Versioned:
    """The model moved. ``contributors`` are the updates that are now applied; ``reason`` says why if there are none."""

    version: int
    sha256: str
    step_norm: float
    contributors: tuple[Contributor, ...]
    reason: str = ""


@frozen
class Changed:
    """The run's state changed: running, paused, stopped or finished."""

    state: str
    reason: str


@frozen
class Reshaped:
    """The model was cut down: from version ``version`` on it has these channels per group."""

    version: int
    shape_epoch: int
    channels: dict[str, int]
    reason: str


@frozen
class Quarantined:
    """A device gets no more work until an operator releases it."""

    device: str
    reason: str


Decision = Offered | Deferred | Amended | Refreshed | Settled | Closed | Quarantined
"""What concerns a device."""
Effect = Decision | Requested | Versioned | Reshaped | Changed
