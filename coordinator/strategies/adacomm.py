"""AdaComm: devices average seldom at first and ever more often: every τ local steps, then all wait for each other.

Wang, Joshi: Adaptive Communication Strategies to Achieve the Best Error-Runtime Trade-off in Local-Update SGD, MLSys
2019 (arXiv 1810.08313). Every period

    τ' = √(L / L₀)·τ₀,   τ ← ⌈τ'⌉ if τ' < τ, otherwise ⌈τ / 2⌉

with L the loss now and L₀ that of the beginning. Fixed ADACOMM, as ADSP's authors compare with it, keeps τ = τ₀. This
policy sets the steps only; the barrier is another's: ``ssp`` with bound 0, or ``cohort``.

Choices: the loss is that of the control set, or without one the mean training loss of the updates of a period, and
of the first version's updates for L₀. τ₀ is given, or searched for among ``candidates``: ADSP's authors try eight of
them for a period each, put the model back every time, and take the one whose loss fell most. Putting it back would
throw away what a fleet has trained. Here candidates are tried one after the other, forth and back, so that no one is
judged worse for coming later, and the one wins under which the loss fell by the largest share, Σ ln(L before / after).
L₀ is then the loss at the end of the search.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from protocol.messages import Plan

from .base import (
    Context,
    DeviceView,
    Evaluate,
    Evaluated,
    Explanation,
    MemberEffect,
    MemberEvent,
    Model,
    Reported,
    Shapeless,
    Tick,
    Waiting,
    WakeAt,
    option,
)

MOST = 16
"""Candidates that may be tried."""
NOTHING = 1e-12
"""A loss that is as good as none."""


@define
class Frequency:
    """``tau`` τ steps now; ``first`` L₀ and ``loss`` L. The training losses of the period and of ``version``, the one
    that was trained first, are summed up in ``total`` and ``began`` with their counts.

    ``measuring`` is the version that is being measured; ``wake`` is when the period ends, None while nobody delivers.
    ``start`` is τ₀; ``tried`` counts the trials of the search that are over, ``gains`` has what each candidate earned.
    """

    tau: int
    start: int
    first: float | None = None
    loss: float | None = None
    total: float = 0.0
    count: int = 0
    version: int | None = None
    began: float = 0.0
    beginners: int = 0
    measuring: int | None = None
    wake: float | None = None
    tried: int = 0
    gains: dict[str, float] = field(factory=dict)


def _candidates(_: Any, attribute: Any, value: tuple[int, ...]) -> None:
    if (value and not 2 <= len(value) <= MOST) or len(set(value)) < len(value):
        raise ValueError(f"{attribute.name} are {value}, expected 2 to {MOST} different numbers of steps, or none")
    if not all(1 <= steps <= 1_000_000 for steps in value):
        raise ValueError(f"{attribute.name} are {value}, expected numbers of steps from 1 to 1000000")


@frozen
class AdaComm(Shapeless):
    """``tau`` τ₀ local steps between averages; ``adaptive``: τ follows the loss, every ``period`` seconds. τ₀ is
    searched for among ``candidates``, if there are any: two periods for each."""

    kind: ClassVar[str] = "adacomm"
    writes: ClassVar[frozenset[str]] = frozenset({"steps"})
    waiting: ClassVar[Waiting] = "none"
    tau: int = option(20, 1, 1_000_000)
    adaptive: bool = True
    period: float = option(60.0, 0.1, 86_400)
    candidates: tuple[int, ...] = field(default=(), validator=_candidates)

    @property
    def trials(self) -> tuple[int, ...]:
        """The candidates in the order in which they are tried."""
        return (*self.candidates, *reversed(self.candidates))

    def init(self, model: Model) -> Frequency:
        first = self.trials[0] if self.trials else self.tau
        return Frequency(first, first)

    def shape(
        self, state: Frequency, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Frequency, Plan, Explanation]:
        said: Explanation = {"steps": state.tau, "first": state.start, "loss": state.loss, "first_loss": state.first}
        if state.tried < len(self.trials):
            said["trial"] = f"{state.tried + 1} of {len(self.trials)}"
        return state, evolve(plan, steps=state.tau), said

    def on(self, state: Frequency, event: MemberEvent, ctx: Context) -> tuple[Frequency, list[MemberEffect]]:
        if not self.adaptive and state.tried == len(self.trials):
            return state, []
        match event:
            case Reported():
                return state, self._reported(state, event, ctx)
            case Evaluated() if event.version == state.measuring:
                state.measuring = None
                self._measured(state, event.loss)
            case Tick() if state.wake is not None:
                if ctx.now < state.wake:
                    return state, [WakeAt(state.wake)]
                return state, self._period(state, ctx)
        return state, []

    @staticmethod
    def next(tau: int, loss: float, first: float, start: int) -> int:
        """τ after a period with loss L, at the beginning L₀ > 0 and τ₀."""
        wanted = math.sqrt(max(loss, 0.0) / first) * start
        return max(1, math.ceil(wanted) if wanted < tau else math.ceil(tau / 2))

    def _reported(self, state: Frequency, event: Reported, ctx: Context) -> list[MemberEffect]:
        state.total, state.count = state.total + event.loss, state.count + 1
        wanted: list[MemberEffect] = []
        if state.version is None:
            state.version = event.version
            if ctx.control:  # nothing has moved yet
                state.measuring = ctx.version
                wanted.append(Evaluate())
        if event.version == state.version:
            state.began, state.beginners = state.began + event.loss, state.beginners + 1
        if state.wake is None:
            state.wake = ctx.now + self.period
            wanted.append(WakeAt(state.wake))
        return wanted

    def _period(self, state: Frequency, ctx: Context) -> list[MemberEffect]:
        if not state.count:  # nobody is at work: the next update begins a period
            state.wake = None
            return []
        loss, state.total, state.count = state.total / state.count, 0.0, 0
        state.wake = ctx.now + self.period
        if ctx.control:
            state.measuring = ctx.version
            return [Evaluate(), WakeAt(state.wake)]
        if state.first is None:
            state.first = state.began / state.beginners
        self._measured(state, loss)
        return [WakeAt(state.wake)]

    def _measured(self, state: Frequency, loss: float) -> None:
        before, state.loss = state.first if state.loss is None else state.loss, loss
        if state.first is None:
            state.first = loss
        elif state.tried < len(self.trials):
            self._tried(state, before or 0.0, loss)
        elif self.adaptive and state.first > 0:
            state.tau = self.next(state.tau, loss, state.first, state.start)

    def _tried(self, state: Frequency, before: float, loss: float) -> None:
        """A trial is over, in which the loss fell from ``before``: on to the next, or to what was best."""
        earned = math.log(max(before, NOTHING) / max(loss, NOTHING))
        state.gains[str(state.tau)] = state.gains.get(str(state.tau), 0.0) + earned
        state.tried += 1
        if state.tried < len(self.trials):
            state.tau = self.trials[state.tried]
            return
        best = max(self.candidates, key=lambda steps: state.gains[str(steps)])
        state.tau = state.start = best
        state.first = loss
