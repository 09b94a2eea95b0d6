"""What members of a recipe hear and what they may want done: events and effects. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from protocol.messages import Merge, Plan
from protocol.weights import Weights

from .view import DeviceView, Step


@frozen
class Reported:
    """Event: a device's update arrived and was found sound. Times in seconds, sizes in bytes.

    ``version`` is the newest that it builds on, ``merges`` are those since the commit before; ``last``: the assignment
    ends with it. ``squared_gradient`` and ``squared_gradient_peak`` are per tensor the mean and the largest squared
    norm of a step's mean-loss gradient; ``sizes`` the number of elements of each tensor in the subnetwork.
    """

    device: DeviceView
    plan: Plan
    version: int
    commit: int
    last: bool
    merges: tuple[Merge, ...]
    steps: int
    samples: int
    loss: float
    squared_gradient: Mapping[str, float]
    squared_gradient_peak: Mapping[str, float]
    sizes: Mapping[str, int]
    seconds_train: float
    seconds_link: float | None
    bytes_link: int


@frozen
class FreshAsked:
    """Event: a device asks for the fresh model at ``step`` of its assignment; it builds on ``version``."""

    device: DeviceView
    plan: Plan
    step: int
    version: int


@frozen
class Evaluated:
    """Event: ``version`` was measured on the control set, as :class:`Evaluate` asked."""

    version: int
    accuracy: float
    loss: float


@frozen
class Computed:
    """Event: a computation that a member of ``kind`` asked for is done."""

    kind: str
    computation: str
    result: Mapping[str, float]


@frozen
class Expired:
    """Event: no update will come of an assignment of ``version``: its lease ran out, or the device lost it."""

    device: DeviceView
    version: int


@frozen
class Refused:
    """Event: what came of an assignment of ``version`` was not sound, and nothing is made of it."""

    device: DeviceView
    version: int


@frozen
class Left:
    """Event: a device will not come back (it was revoked)."""

    device: str


@frozen
class Tick:
    """Event: the time that a member asked to be woken at has come."""


@frozen
class Discarded:
    """Event: the step that was proposed would have made the model not finite, and the version stays what it is."""


@frozen
class Quiet:
    """Event: a barrier stands, and no device is at work any more."""


MemberEvent = Reported | FreshAsked | Evaluated | Computed | Expired | Refused | Left | Tick | Discarded | Quiet


@frozen
class Propose:
    """Effect: move the model now. For aggregators that do not wait for one more contribution."""

    step: Step


@frozen
class WakeAt:
    """Effect: send a :class:`Tick` at ``at`` (seconds since 1970), or a little later.

    All members hear it, and only the earliest time is kept: whose time has not come yet asks again.
    """

    at: float


@frozen
class Amend:
    """Effect: change fields of the plan that ``device`` is training by. Those of :data:`AMENDABLE`, nothing else.

    Nothing happens where it trains by none, or where the agent cannot be told.
    """

    device: str
    changes: Mapping[str, Any]


AMENDABLE = frozenset({"steps", "seconds", "commits", "refresh", "learning_rate"})


@frozen
class SendFresh:
    """Effect: send ``device``, if it trains on an older one, the newest model there is when all else is done.

    ``merge`` β and ``keep`` κ: see :class:`protocol.messages.Fresh`.
    """

    device: str
    merge: float
    keep: float


@frozen
class Evaluate:
    """Effect: measure the model as it is on the control set; the answer is :class:`Evaluated`."""


@frozen
class Compute:
    """Effect: do ``computation`` (a name of the computations' registry) elsewhere; the answer is :class:`Computed`.

    For what takes longer than a message may wait: fits, searches. ``arguments`` are numbers and lists of them.
    """

    computation: str
    arguments: Mapping[str, float | tuple[float, ...]]


@frozen
class Hold:
    """Effect: from now on these fields of the plan stay for every device as they were in its last plan, whatever
    their policy says, until this member holds others, or none."""

    fields: tuple[str, ...]


@frozen
class Barrier:
    """Effect: no device gets work any more, for ``reason``; once none is at work, :class:`Quiet` follows."""

    reason: str


@frozen
class Release:
    """Effect: the barrier falls."""


@frozen
class Adopt:
    """Effect: these are the global weights now, for ``reason``; a version without contributors. Full size."""

    weights: Weights
    reason: str


@frozen
class Reshape:
    """Effect: the global model keeps only ``channels`` per group (ascending indices), for ``reason``.

    All members are reshaped, the shape epoch grows by one; work of the old shape ends.
    """

    channels: Mapping[str, tuple[int, ...]]
    reason: str


MemberEffect = Propose | WakeAt | Amend | SendFresh | Evaluate | Compute | Hold | Barrier | Release | Adopt | Reshape
