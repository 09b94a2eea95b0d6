"""What goes into an engine and what comes out. Inputs are stored in one total order; effects follow from them."""

from __future__ import annotations

from attrs import field, frozen

from coordinator.strategies.base import Contributor, DeviceView, Explanation
from protocol.messages import CheckIn, Plan, Update


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
class Evaluated:
    """A version was measured on the test set."""

    version: int
    accuracy: float
    loss: float


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


Input = CheckedIn | Delivered | Rejected | Evaluated | Ticked | Departed | Operated


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
    """An update's outcome: stored, stale, refused or expired. ``norm`` is the length of its difference."""

    device: str
    update: Update
    outcome: str
    reason: str
    staleness: int | None
    norm: float | None


@frozen
class Closed:
    """An assignment ended without an update: ``state`` expired or cancelled."""

    assignment: str
    device: str
    state: str
    reason: str


@frozen
class Versioned:
    """The model moved. ``contributors`` are the updates that are now applied."""

    version: int
    sha256: str
    step_norm: float
    contributors: tuple[Contributor, ...]


@frozen
class Changed:
    """The run's state changed: running, paused, stopped or finished."""

    state: str
    reason: str


Effect = Offered | Deferred | Settled | Closed | Versioned | Changed
