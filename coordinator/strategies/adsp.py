"""ADSP: devices train without ever waiting, and commit so often that all have committed equally often.

Hu, Wang, Wu: Distributed Machine Learning through Heterogeneous Edge Systems, AAAI 2020 (arXiv 1911.06949). A device
commits what it has learned every

    Γ / ΔC_i − O_i seconds,   ΔC_i = C_target − c_i in [1, 2C],   C_target += C every period Γ

with c_i its commits so far and O_i what a commit takes from its training, and pulls the new model. C is searched for
while training goes on (:mod:`.adsp_search`): C + 1 is taken as long as it makes the loss fall faster, anew every epoch
and when the loss has risen by 30 %.

Choices, where the published code is silent or wrong: C_target runs on smoothly, a commit is due against where it will
be one period later, and it never runs more than one commit ahead of the furthest device, so that a fleet that slept has
nothing to catch up with. A newcomer, and one that comes back after three silent periods, starts at the smallest c_i.
Devices here go on training while a commit travels: O_i is the time between two commits less what was trained in it.
The first commit comes after the base plan's steps, as in the authors' code; an agent that cannot commit by time gets
as many steps as fit into its interval. One rate wins over its neighbour where the joint fit says that it is 5 %
faster, by more than a standard error; where C + 1 does not win, C − 1 is tried. Widths are held during a trial. The
loss is that of the control set, or without one the mean of the devices' newest training losses, whose weight halves
every period.

The explanation has the implicit momentum of n devices (their §4; Mitliagkas et al. 2016),

    μ = 1 − 1 / (1 + (1 − 1/n) Σ_i Γ / (ΔC_i v_i))

with v_i steps per period and Γ = 1, the one unit of time in which the authors' figures come out.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from attrs import define, evolve, field, frozen

from protocol.messages import Plan

from .adsp_search import REST, UP, Search, Trial
from .base import (
    Amend,
    Compute,
    Computed,
    Context,
    DeviceView,
    Evaluate,
    Evaluated,
    Explanation,
    Hold,
    Left,
    MemberEffect,
    MemberEvent,
    Model,
    Reported,
    SendFresh,
    Shapeless,
    Tick,
    Waiting,
    WakeAt,
    option,
)

FIT = "adsp.fit"
SMOOTHING = 0.3
TOLERANCE = 0.1
"""An interval that changes by less is not worth a message."""
SLACK = 4
"""Steps until a commit are limited to so many times what fits into the interval."""
SILENT_PERIODS = 3
MOST_STEPS = 1_000_000


@frozen
class Pace:
    """A device at work: ``commits`` c_i; ``rate`` the C and ``due`` the ΔC_i that its ``seconds`` until a commit are
    made of, ``steps`` their limit; ``speed`` v_i in steps/s; ``overhead`` O_i in seconds.

    ``seen`` is when it was last heard of (seconds since 1970), ``loss`` its newest training loss. ``timed``: its agent
    commits by time.
    """

    commits: int
    seen: float
    rate: int
    due: float
    seconds: float
    steps: int
    speed: float | None = None
    overhead: float = 0.0
    loss: float | None = None
    timed: bool = True

    def burden(self, period: float) -> float:
        """Its term Γ / (ΔC_i v_i) of the implicit momentum."""
        return 0.0 if self.speed is None else 1 / (self.due * self.speed * period)


@define
class Fleet:
    """``paces`` of the devices at work, the one silent for longest first, how many train by each C (``rates``), the
    smallest c_i at the last beat (``least``), the largest ever (``furthest``), and the sum of their burdens.

    ``target`` is C_target of the moment ``at``. ``wake`` is when the next beat is due, None where nobody is at work.
    """

    search: Search
    paces: dict[str, Pace] = field(factory=dict)
    rates: dict[int, int] = field(factory=dict)
    burden: float = 0.0
    least: int = 0
    furthest: int = 0
    target: float = 0.0
    at: float | None = None
    wake: float | None = None

    def put(self, device: str, pace: Pace, period: float) -> None:
        self.drop(device, period)
        self.paces[device] = pace
        self.rates[pace.rate] = self.rates.get(pace.rate, 0) + 1
        self.burden += pace.burden(period)

    def drop(self, device: str, period: float) -> None:
        pace = self.paces.pop(device, None)
        if pace is None:
            return
        self.rates[pace.rate] -= 1
        if not self.rates[pace.rate]:
            del self.rates[pace.rate]
        self.burden = max(0.0, self.burden - pace.burden(period)) if self.paces else 0.0

    def momentum(self) -> float:
        """The implicit momentum μ in [0, 1)."""
        live = len(self.paces)
        return 1 - 1 / (1 + (1 - 1 / live) * self.burden) if live else 0.0

    def loss(self, now: float, period: float) -> float | None:
        """Mean of the devices' newest training losses; a weight halves every period."""
        heard = [(0.5 ** ((now - p.seen) / period), p.loss) for p in self.paces.values() if p.loss is not None]
        weight = sum(share for share, _ in heard)
        return sum(share * loss for share, loss in heard) / weight if weight > 0 else None


@frozen
class Adsp(Shapeless):
    """``period`` Γ in seconds; ``rate`` the first C, ``top`` the largest; ``shortest`` seconds between commits.

    Searches begin ``warm_up`` periods after the first update, every ``epoch`` seconds (0: never, C stays ``rate``), and
    when the loss has risen by the share ``rise`` within a period; a rate must be ``gain`` times as fast. One assignment
    lasts ``periods`` periods. ``pull``: a device gets the fresh model with every commit.
    """

    kind: ClassVar[str] = "adsp"
    writes: ClassVar[frozenset[str]] = frozenset({"seconds", "commits", "steps"})
    waiting: ClassVar[Waiting] = "none"
    period: float = option(60.0, 0.1, 86_400)
    rate: int = option(1, 1, 1000)
    top: int = option(16, 1, 1000)
    shortest: float = option(10.0, 0.01, 86_400)
    warm_up: float = option(1.0, 0, 1e6)
    epoch: float = option(1000.0, 0, 1e7)
    rise: float = option(0.3, 0.01, 100)
    gain: float = option(1.05, 1, 10)
    periods: int = option(10, 1, 1000)
    pull: bool = True

    def __attrs_post_init__(self) -> None:
        if self.rate > self.top:
            raise ValueError(f"rate is {self.rate}, more than top, {self.top}")

    def init(self, model: Model) -> Fleet:
        return Fleet(Search(self.rate, math.inf))

    # -- how often a device commits -------------------------------------------------------------------------------

    def shape(
        self, state: Fleet, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Fleet, Plan, Explanation]:
        self._elapse(state, ctx.now)
        known = state.paces.get(device.id)
        pace = known or Pace(state.least, ctx.now, 0, 1.0, 0.0, plan.steps)
        pace = self._paced(state, evolve(pace, seen=ctx.now), plan.steps, ctx.now)
        state.put(device.id, pace, self.period)
        commits = max(1, self.periods * state.search.settled) if pace.timed else 1
        plan = evolve(plan, seconds=pace.seconds, commits=commits, steps=pace.steps)
        return state, plan, {"commits": commits, **self._explained(state, pace, ctx.now)}

    def interval(self, due: float, overhead: float) -> float:
        """Seconds until a commit: Γ/ΔC − O, and never less than ``shortest``."""
        return min(max(self.period / due - overhead, self.shortest), 1e6)

    def _paced(self, state: Fleet, pace: Pace, steps: int, now: float) -> Pace:
        """When its next commit is due; ``steps`` until the first one."""
        rate = state.search.rate(now)
        due = min(max(state.target + rate - pace.commits, 1.0), 2.0 * rate)
        seconds = self.interval(due, pace.overhead)
        if pace.speed is not None:
            fitting = pace.speed * seconds * (SLACK if pace.timed else 1)
            steps = min(max(round(fitting), 1), MOST_STEPS)
        return evolve(pace, rate=rate, due=due, seconds=seconds, steps=steps)

    def _elapse(self, state: Fleet, now: float) -> None:
        """Time passes: the target grows, and what is spent at the rates of a trial."""
        trial = state.search.trial
        if trial is not None:
            high = sum(count for rate, count in state.rates.items() if rate > trial.low)
            share = high / len(state.paces) if state.paces else 0.0
            state.search = evolve(state.search, trial=trial.until(now, share))
        if state.at is not None:
            grown = state.target + state.search.rate(now) * (now - state.at) / self.period
            state.target = max(state.target, min(grown, state.furthest + 1.0))
        state.at = now

    def _explained(self, state: Fleet, pace: Pace, now: float) -> Explanation:
        search = state.search
        said: Explanation = {
            "seconds": pace.seconds,
            "steps": pace.steps,
            "rate": pace.rate,
            "committed": pace.commits,
            "target": state.target + pace.rate,
            "due": pace.due,
            "overhead": pace.overhead,
            "speed": pace.speed,
            "devices": len(state.paces),
            "implicit_momentum": state.momentum(),
        }
        if (trial := search.trial) is not None:
            said["trial"] = f"{trial.low} against {trial.low + 1} commits per period, segment {trial.number(now) + 1}"
        return said

    # -- what is heard -------------------------------------------------------------------------------------------

    def on(self, state: Fleet, event: MemberEvent, ctx: Context) -> tuple[Fleet, list[MemberEffect]]:
        match event:
            case Reported():
                return state, self._reported(state, event, ctx)
            case Left():
                self._elapse(state, ctx.now)
                state.drop(event.device, self.period)
            case Tick() if state.wake is not None:
                if ctx.now < state.wake:
                    return state, [WakeAt(state.wake)]
                return state, self._beat(state, ctx)
            case Evaluated():
                self._measured(state, event.loss, event.version, ctx.now)
            case Computed(kind=self.kind, computation=computation) if computation == FIT:
                return state, self._fitted(state, event.result, ctx.now)
        return state, []

    def _reported(self, state: Fleet, event: Reported, ctx: Context) -> list[MemberEffect]:
        self._elapse(state, ctx.now)
        told = state.paces.get(event.device.id) or Pace(state.least, ctx.now, 0, 1.0, 0.0, event.plan.steps)
        commits = told.commits + 1
        state.furthest = max(state.furthest, commits)
        pace = self._paced(state, self._learned(told, event, commits, ctx.now), event.plan.steps, ctx.now)
        wanted: list[MemberEffect] = []
        if not event.last:
            changed = abs(pace.seconds - told.seconds) > TOLERANCE * told.seconds
            if pace.rate != told.rate or changed or 2 * told.steps < pace.steps:
                wanted.append(Amend(event.device.id, {"seconds": pace.seconds, "steps": pace.steps}))
            else:
                pace = evolve(pace, seconds=told.seconds, steps=told.steps)
            if self.pull:
                wanted.append(SendFresh(event.device.id, merge=1.0, keep=1.0))
        state.put(event.device.id, pace, self.period)
        if state.wake is None:
            if math.isinf(state.search.due) and self.epoch:
                state.search = evolve(state.search, due=ctx.now + self.warm_up * self.period)
            wanted += self._wake(state, ctx.now + self.period)
        return wanted

    def _learned(self, pace: Pace, event: Reported, commits: int, now: float) -> Pace:
        overhead = pace.overhead
        if event.commit > 1:  # the first of an assignment has waited for its start
            lost = min(max(now - pace.seen - event.seconds_train, 0.0), self.period)
            overhead = (1 - SMOOTHING) * overhead + SMOOTHING * lost
        speed = pace.speed
        if event.seconds_train > 0:
            measured = min(max(event.steps / event.seconds_train, 1e-6), 1e6)
            speed = measured if speed is None else (1 - SMOOTHING) * speed + SMOOTHING * measured
        timed = event.plan.seconds is not None
        return evolve(
            pace, commits=commits, seen=now, overhead=overhead, speed=speed, loss=event.loss, timed=timed
        )

    # -- the search ----------------------------------------------------------------------------------------------

    def _wake(self, state: Fleet, at: float) -> list[MemberEffect]:
        state.wake = at
        return [WakeAt(at)]

    def _beat(self, state: Fleet, ctx: Context) -> list[MemberEffect]:
        """Once a period, during a trial four times a segment: see who is gone, measure, and go on with the search."""
        now, search = ctx.now, state.search
        self._elapse(state, now)
        for device, pace in list(state.paces.items()):
            if now - pace.seen <= SILENT_PERIODS * self.period:
                break
            state.drop(device, self.period)
        if not state.paces:
            state.wake = None
            state.search = evolve(state.search, trial=None, way=REST, checked=None)
            return [Hold(())] if search.trial else []
        state.least = min(pace.commits for pace in state.paces.values())
        if state.search.trial is not None:
            return self._try_on(state, state.search.trial, ctx)
        return self._look_out(state, ctx)

    def _look_out(self, state: Fleet, ctx: Context) -> list[MemberEffect]:
        """Between trials: begin one if it is time, otherwise see whether the loss has risen."""
        if state.search.way == REST and ctx.now >= state.search.due:
            state.search = state.search.start(self.top)
        wanted: list[MemberEffect] = []
        if state.search.way != REST:
            state.search = state.search.trying(ctx.now, self.period)
            wanted.append(Hold(("width",)))
        elif self.epoch:
            wanted += self._measure(state, ctx)
        trial = state.search.trial
        return [*wanted, *self._wake(state, trial.next(ctx.now) if trial else ctx.now + self.period)]

    def _try_on(self, state: Fleet, trial: Trial, ctx: Context) -> list[MemberEffect]:
        """In a trial: measure; after the last segment, and a beat for what is still being measured, have it fitted."""
        if ctx.now < trial.ends + trial.beat / 2:
            wanted = self._measure(state, ctx)
            return [*wanted, *self._wake(state, trial.next(ctx.now))]
        if trial.fitting:
            return self._wake(state, ctx.now + self.period)
        state.search = evolve(state.search, trial=evolve(trial, fitting=True))
        return [Compute(FIT, trial.columns()), *self._wake(state, ctx.now + self.period)]

    def _measure(self, state: Fleet, ctx: Context) -> list[MemberEffect]:
        if not ctx.control:
            loss = state.loss(ctx.now, self.period)
            if loss is not None:
                self._measured(state, loss, None, ctx.now)
            return []
        search = state.search
        if search.trial is None:
            state.search = evolve(search, checking=ctx.version)
        else:
            asked = {**search.trial.asked, ctx.version: search.trial.spent}
            state.search = evolve(search, trial=evolve(search.trial, asked=asked))
        return [Evaluate()]

    def _measured(self, state: Fleet, loss: float, version: int | None, now: float) -> None:
        """A loss of now, or of a version that was sent to be measured."""
        search = state.search
        if search.trial is not None:
            state.search = evolve(search, trial=search.trial.sampled(loss, version))
        elif version is None or version == search.checking:
            search, rose = search.rose(loss, self.rise)
            state.search = evolve(search, due=min(search.due, now)) if rose else search

    def _fitted(self, state: Fleet, result: Any, now: float) -> list[MemberEffect]:
        """The trial is over. A fit that failed says that neither rate is better."""
        search = state.search
        if search.trial is None or not search.trial.fitting:
            return []
        self._elapse(state, now)
        ratio, error = result.get("ratio", 1.0), result.get("error", 1.0)
        if search.way == UP:
            better = ratio > self.gain and ratio - error > 1
        else:
            better = ratio < 1 / self.gain and ratio + error < 1
        search = state.search.decided(better, self.top)
        state.search = evolve(search, due=now + self.epoch) if search.way == REST else search
        return [Hold(()), *self._wake(state, now + self.period)]
