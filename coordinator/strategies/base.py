"""The seams of a recipe: policies shape a plan before training, gates judge what comes back, an aggregator takes it,
transforms act on the step it proposes. All are pure: state goes in and comes out as a value, ``now`` and randomness
are arguments.

A member is a frozen attrs class whose fields are its hyper-parameters. Its state is an attrs class (or None) made of
numbers, strings, tuples, dicts and float32 arrays, so that it can be stored and restored bit for bit. ``absorb``,
``apply``, ``shape``, ``on`` and ``reshape`` own the state they are given and may reuse its arrays.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from attrs import field

from protocol.messages import Plan
from protocol.subnetwork import Region

from .events import (
    AMENDABLE,
    Adopt,
    Amend,
    Barrier,
    Compute,
    Computed,
    Discarded,
    Evaluate,
    Evaluated,
    Expired,
    FreshAsked,
    Hold,
    Left,
    MemberEffect,
    MemberEvent,
    Propose,
    Quiet,
    Refused,
    Release,
    Reported,
    Reshape,
    SendFresh,
    Tick,
    WakeAt,
)
from .view import Context, Contribution, Contributor, Cost, DeviceView, Explanation, Model, Retry, Step, Verdict

Number = float | int
Waiting = Literal["none", "bound", "rounds"]
"""Whether a policy makes devices wait for each other: never, when they run too far ahead, or until a round is over."""

__all__ = [
    "AMENDABLE",
    "Adopt",
    "Aggregator",
    "Amend",
    "Barrier",
    "Compute",
    "Computed",
    "Context",
    "Contribution",
    "Contributor",
    "Cost",
    "DeviceView",
    "Discarded",
    "Evaluate",
    "Evaluated",
    "Expired",
    "Explanation",
    "FreshAsked",
    "Gate",
    "Hold",
    "Left",
    "Member",
    "MemberEffect",
    "MemberEvent",
    "Model",
    "Number",
    "Policy",
    "Propose",
    "Quiet",
    "Refused",
    "Release",
    "Reported",
    "Reshape",
    "Retry",
    "SendFresh",
    "Shapeless",
    "Stateless",
    "Step",
    "Tick",
    "Transform",
    "Verdict",
    "Waiting",
    "WakeAt",
    "between",
    "choice",
    "option",
]


class Member(Protocol):
    """A part of a recipe. ``kind`` is its name in recipes."""

    kind: ClassVar[str]

    def init(self, model: Model) -> Any:
        """The state before the first event."""

    def on(self, state: Any, event: MemberEvent, ctx: Context) -> tuple[Any, list[MemberEffect]]:
        """The state after an event, and what shall follow from it."""

    def reshape(self, state: Any, kept: Region) -> Any:
        """The state after the model was cut down to ``kept``, a region of its old layout."""


class Policy(Member, Protocol):
    """Decides before training. ``writes`` names the fields of the plan that it sets.

    A policy that makes devices wait counts whom it lets pass: it must be the first of its recipe and the only one.
    """

    kind: ClassVar[str]
    writes: ClassVar[frozenset[str]]

    @property
    def waiting(self) -> Waiting: ...

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
    max_staleness: int

    @property
    def synchronous(self) -> bool: ...

    def absorb(self, state: Any, model: Model, contribution: Contribution, ctx: Context) -> tuple[Any, Step | None]: ...


class Gate(Member, Protocol):
    """Judges a contribution before anybody else sees it."""

    kind: ClassVar[str]

    def judge(self, state: Any, contribution: Contribution, model: Model, ctx: Context) -> tuple[Any, Verdict]: ...


class Transform(Member, Protocol):
    """Changes a step before it moves the model."""

    kind: ClassVar[str]

    def apply(self, state: Any, step: Step, model: Model, ctx: Context) -> tuple[Any, Step]: ...


class Shapeless:
    """For members whose state has nothing to do with the model's channels."""

    def reshape(self, state: Any, kept: Region) -> Any:
        return state


class Stateless(Shapeless):
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


def choice(default: str, *others: str) -> Any:
    """A hyper-parameter that is one of some names, with its default."""
    names = (default, *others)

    def validate(_: Any, attribute: Any, value: str) -> None:
        if value not in names:
            raise ValueError(f"{attribute.name} is {value!r}, expected one of {', '.join(names)}")

    return field(default=default, validator=validate)
