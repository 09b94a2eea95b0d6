"""The seams of a recipe: policies shape a plan before training, an aggregator takes what comes back, transforms act
on the step it proposes. All are pure: state goes in and comes out as a value, ``now`` and randomness are arguments.

A member is a frozen attrs class whose fields are its hyper-parameters. Its state is an attrs class (or None) made of
numbers, strings, tuples, dicts and float32 arrays, so that it can be stored and restored bit for bit. ``absorb``,
``apply``, ``shape`` and ``on`` own the state they are given and may reuse its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from attrs import field, frozen

from protocol.messages import Plan
from protocol.subnetwork import Layout, Region
from protocol.weights import Weights

Explanation = dict[str, float | int | str | None]
Number = float | int
Barrier = Literal["none", "bound", "rounds"]
"""Whether a policy makes devices wait for each other: never, when they run too far ahead, or until a round is over."""


@frozen
class Cost:
    """What one nested width costs: parameters, and FLOPs to train on one sample."""

    parameters: int
    flops: int


@frozen
class Model:
    """The global model as members see it. ``costs`` has an entry for every width that policies may choose."""

    weights: Weights
    layout: Layout
    costs: Mapping[float, Cost]


@frozen
class Context:
    """What a decision may depend on besides its arguments. ``absorbed`` counts the updates aggregated so far."""

    now: float
    rng: np.random.Generator
    version: int
    absorbed: int
    shape_epoch: int = 0


@frozen
class DeviceView:
    """What a policy may know about a device."""

    id: str
    group: str
    samples: int


@frozen
class Retry:
    """A policy has no work for a device now: it is to come back in ``seconds``."""

    seconds: float
    reason: str


@frozen
class Contribution:
    """An update as an aggregator sees it: ``difference`` over ``region``, cut tensors of the region's shapes.

    ``base`` is the full-size base for aggregators that need it, None for others. ``staleness`` ≥ 0 counts the
    versions the model advanced since the base. ``samples`` counts what was trained on, with repetitions; how many the
    device has stands in ``device``.
    """

    device: DeviceView
    key: str
    difference: Weights
    region: Region
    base: Weights | None
    base_version: int
    staleness: int
    samples: int
    steps: int
    loss: float


@frozen
class Contributor:
    """One update inside a step, and the weight it was taken with."""

    key: str
    weight: float


@frozen
class Step:
    """A change of the global model. ``coverage`` counts per coordinate the updates that cover it (full size)."""

    difference: Weights
    coverage: Weights
    contributors: tuple[Contributor, ...]


@frozen
class Reported:
    """Event: a device's update arrived and was found sound. Times in seconds, sizes in bytes.

    ``squared_gradient`` and ``squared_gradient_peak`` are per tensor the mean and the largest squared norm of a
    step's mean-loss gradient; ``sizes`` the number of elements of each tensor in the subnetwork.
    """

    device: DeviceView
    plan: Plan
    steps: int
    loss: float
    squared_gradient: Mapping[str, float]
    squared_gradient_peak: Mapping[str, float]
    sizes: Mapping[str, int]
    seconds_train: float
    seconds_link: float | None
    bytes_link: int


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


MemberEvent = Reported | Expired | Refused | Left | Tick | Discarded


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


MemberEffect = Propose | WakeAt


class Member(Protocol):
    """A part of a recipe. Every member has a ``kind``, its name in recipes."""

    def init(self, model: Model) -> Any:
        """The state before the first event."""

    def on(self, state: Any, event: MemberEvent, ctx: Context) -> tuple[Any, list[MemberEffect]]:
        """The state after an event, and what shall follow from it."""


class Policy(Member, Protocol):
    """Decides before training. ``writes`` names the fields of the plan that it sets.

    A policy with a barrier counts whom it lets pass: it must be the first of its recipe and the only one of the kind.
    """

    kind: ClassVar[str]
    writes: ClassVar[frozenset[str]]

    @property
    def barrier(self) -> Barrier: ...

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan | Retry, Explanation]:
        """The plan with this policy's fields set (or a Retry), and what the decision was made of."""


class Aggregator(Member, Protocol):
    """Takes contributions, and proposes a step now and then. Updates staler than ``max_staleness`` are not absorbed.

    A ``synchronous`` one closes rounds: it is of use behind a policy that lets devices train in rounds, and vice versa.
    """

    kind: ClassVar[str]
    needs_base: ClassVar[bool]
    synchronous: ClassVar[bool]
    max_staleness: int

    def absorb(self, state: Any, model: Model, contribution: Contribution, ctx: Context) -> tuple[Any, Step | None]: ...


class Transform(Member, Protocol):
    """Changes a step before it moves the model."""

    kind: ClassVar[str]

    def apply(self, state: Any, step: Step, model: Model, ctx: Context) -> tuple[Any, Step]: ...


class Stateless:
    """For members that remember nothing."""

    def init(self, model: Model) -> None:
        return None

    def on(self, state: None, event: MemberEvent, ctx: Context) -> tuple[None, list[MemberEffect]]:
        return None, []


def between(low: float, high: float) -> Any:
    """An attrs field validator: a number from ``low`` to ``high``."""

    def validate(_: Any, attribute: Any, value: Number) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}, expected a number from {low:g} to {high:g}")

    return validate


def option(default: Number, low: float, high: float) -> Any:
    """A numeric hyper-parameter with its default and range."""
    return field(default=default, validator=between(low, high))
