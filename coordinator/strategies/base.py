"""The seams of a recipe: policies shape a plan before training, an aggregator takes what comes back, transforms act
on the step it proposes. All are pure: state goes in and comes out as a value, ``now`` and randomness are arguments.

A member is a frozen attrs class whose fields are its hyper-parameters. Its state is an attrs class (or None) made of
numbers, strings, tuples, dicts and float32 arrays, so that it can be stored and restored bit for bit. ``absorb``,
``apply``, ``shape`` and ``on`` own the state they are given and may reuse its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from attrs import field, frozen

from protocol.messages import Plan, Retry
from protocol.subnetwork import Layout, Region
from protocol.weights import Weights

Explanation = dict[str, float | int | str | None]
Number = float | int


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
class Contribution:
    """An update as an aggregator sees it: ``difference`` over ``region``, cut tensors of the region's shapes.

    ``base`` is the full-size base for aggregators that need it, None for others. ``staleness`` ≥ 0 counts the
    versions the model advanced since the base.
    """

    device: str
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
    """Event: a device's lease ran out before its update came."""

    device: DeviceView


@frozen
class Left:
    """Event: a device will not come back (it was revoked)."""

    device: str


MemberEvent = Reported | Expired | Left


class Member(Protocol):
    """A part of a recipe. Every member has a ``kind``, its name in recipes."""

    def init(self, model: Model) -> Any:
        """The state before the first event."""

    def on(self, state: Any, event: MemberEvent, ctx: Context) -> Any:
        """The state after an event."""


class Policy(Member, Protocol):
    """Decides before training. ``writes`` names the fields of the plan that it sets."""

    kind: ClassVar[str]
    writes: ClassVar[frozenset[str]]

    def shape(
        self, state: Any, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Any, Plan | Retry, Explanation]:
        """The plan with this policy's fields set (or a Retry), and what the decision was made of."""


class Aggregator(Member, Protocol):
    """Takes contributions, and proposes a step now and then. Updates staler than ``max_staleness`` are not absorbed."""

    kind: ClassVar[str]
    needs_base: ClassVar[bool]
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

    def on(self, state: None, event: MemberEvent, ctx: Context) -> None:
        return None


def between(low: float, high: float) -> Any:
    """An attrs field validator: a number from ``low`` to ``high``."""

    def validate(_: Any, attribute: Any, value: Number) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}, expected a number from {low:g} to {high:g}")

    return validate


def option(default: Number, low: float, high: float) -> Any:
    """A numeric hyper-parameter with its default and range."""
    return field(default=default, validator=between(low, high))
