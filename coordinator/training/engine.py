"""The engine of one run: what a device trains next, what happens to its update, when the model moves.

Pure: it reads no clock, no socket and no database. :meth:`Engine.handle` is the only door, and the same inputs in
the same order give the same model, bit for bit, whether they come from a fleet, a simulation or the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from attrs import evolve, frozen

from coordinator.strategies import events
from coordinator.strategies.base import Context, Contribution, Cost, Explanation, Model, Retry, Step
from coordinator.training import effects
from coordinator.training.admission import Refusal, difference_of
from coordinator.training.core import Core, base_of
from coordinator.training.inputs import (
    Answered,
    Asked,
    Changed,
    CheckedIn,
    Deferred,
    Delivered,
    Departed,
    Effect,
    Evaluated,
    Input,
    Operated,
    Quarantined,
    Rejected,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.members import Members
from coordinator.training.recipe import Recipe
from coordinator.training.state import freeze, thaw
from coordinator.training.work import Work, contribution_of, effective_base, end_of, offer_of, reported
from protocol.messages import Plan, Update
from protocol.subnetwork import WIDTHS, Layout, Region, Subnetwork, nested
from protocol.weights import Weights, add, digest, finite, norm, zeros_like

GOING_ON = ("running", "paused")
MOVES = {("running", "pause"): "paused", ("paused", "resume"): "running"}


@frozen
class Setting:
    """What a run is made of: everything that never changes. ``cost`` says what a subnetwork of ``layout`` costs;
    ``measured``: versions are measured on a test set, ``control``: on a control set as well. What comes from the
    devices ``without`` counts as zero: to see what a model would lack, for no run that is going on."""

    run: str
    recipe: Recipe
    layout: Layout
    cost: Callable[[Subnetwork], Cost]
    seed: int
    target: float | None
    measured: bool = False
    control: bool = False
    without: frozenset[str] = frozenset()


class Engine:
    """One run. ``weights`` are the initial global weights, full size."""

    def __init__(self, setting: Setting, weights: Weights) -> None:
        self.setting = setting
        self.core = Core(weights, setting.layout)
        self._reshaped()
        self._members = Members(setting.recipe, self._model())
        self._fresh: dict[str, events.SendFresh] = {}

    # -- the door ------------------------------------------------------------------------------------------------

    def handle(self, given: Input, now: float) -> list[Effect]:
        """Take one input at time ``now`` (seconds) and say what follows from it."""
        self.core.inputs += 1
        if self.core.standing.began is None:
            self.core.standing.began = now
        return [*self._taken(given, now), *self._settle(now)]

    def _taken(self, given: Input, now: float) -> Iterator[Effect]:
        match given:
            case CheckedIn():
                return self._check_in(given, now)
            case Delivered():
                return self._deliver(given, now)
            case Rejected():
                return self._reject(given, now)
            case Asked():
                return self._asked(given, now)
            case Evaluated():
                return self._evaluated(given)
            case Answered():
                return self._answered(given, now)
            case Ticked():
                return self._expire(now)
            case Departed():
                return self._depart(given.device, now)
            case Operated():
                return self._operate(given)

    def _settle(self, now: float) -> Iterator[Effect]:
        """What comes after everything else: word that all is quiet, and fresh models, as new as they can be."""
        if self.core.barrier is not None and not self.core.open and not self.core.quiet:
            self.core.quiet = True
            yield from self._tell(events.Quiet(), now)
        if (reason := self.core.standing.over(self.setting.recipe.stop, now)) is not None:
            yield from self._stop(("stopped", reason))
        wishes, self._fresh = self._fresh, {}
        for wish in wishes.values():
            yield from effects.send_fresh(self.core, wish, self._keep)

    @property
    def deadline(self) -> float | None:
        """When a lease runs out or a member wants to be woken: the time by which a Ticked is due."""
        times = [work.expires_at for work in self.core.open.values()]
        times += [
            at for at in (self.core.wake_at, self.core.standing.deadline(self.setting.recipe.stop)) if at is not None
        ]
        return min(times, default=None)

    def region(self, plan: Plan) -> Region:
        """The part of the model that a plan trains."""
        key = plan.width, plan.roll
        if key not in self._regions:
            self._regions[key] = Region(self.core.layout, nested(self.core.layout, *key))
        return self._regions[key]

    def snapshot(self) -> bytes:
        """The whole state as bytes."""
        return freeze(self._members.snapshot_class(Core)(self.core, *self._members.states))

    def restore(self, data: bytes) -> None:
        """Become what :meth:`snapshot` wrote; the setting must be the same."""
        value = thaw(self._members.snapshot_class(Core), data)
        self.core = value.core
        self._members.states = [getattr(value, f"member{i}") for i in range(len(self._members))]
        self._reshaped()

    # -- check-ins -----------------------------------------------------------------------------------------------

    def _check_in(self, given: CheckedIn, now: float) -> Iterator[Effect]:
        device, check_in = given.device, given.check_in
        yield from self._drop_forgotten(device.id, {check_in.held, *check_in.unsent}, now)
        held = self.core.open.get(check_in.held or "")
        if self.core.state != "running":
            yield Deferred(device.id, check_in.id, None, f"the run is {self.core.state}")
        elif check_in.held and held and held.device.id == device.id:
            yield offer_of(check_in.held, held, check_in.id, {}, again=True)
        elif self.core.barrier is not None:
            yield Deferred(device.id, check_in.id, None, self.core.barrier)
        else:
            yield self._offer(given, now)

    def _offer(self, given: CheckedIn, now: float) -> Effect:
        device, check_in = given.device, given.check_in
        plan, explanation = self._members.shape(
            self.setting.recipe.plan.plan(), device, self._model(), self._context(now)
        )
        if isinstance(plan, Retry):
            return Deferred(device.id, check_in.id, plan.seconds, plan.reason)
        plan, kept = effects.held(self.core, device.id, plan)
        if kept:
            explanation["held"] = kept
        plan = plan.within(check_in.features)
        self.core.offers += 1
        number = f"{self.setting.run}.{self.core.offers}"
        expires_at = now + self.setting.recipe.plan.lease
        work = Work(device, self.core.version, plan, expires_at, check_in.features, plan.steps)
        self.core.begin(number, work)
        self._keep(plan)
        return offer_of(number, work, check_in.id, explanation, again=False)

    def _drop_forgotten(self, device: str, known: set[str | None], now: float) -> Iterator[Effect]:
        """Assignments that the device neither works on nor has to deliver never reached it."""
        for number, work in self.core.works(device):
            if number not in known:
                yield self.core.close(number, "cancelled", "the device does not hold it any more")
                yield from self._tell(events.Expired(work.device, work.version), now)

    # -- updates -------------------------------------------------------------------------------------------------

    def _deliver(self, given: Delivered, now: float) -> Iterator[Effect]:
        update = given.update
        work = self.core.open.get(update.assignment)
        if work is None or work.device.id != given.device:
            yield Settled(
                given.device, update, "expired", "the assignment was closed before the update came", None, None
            )
            return
        region = self.region(work.plan)
        try:
            difference, length = difference_of(update, given.body, work, region, self.core.shape_epoch)
        except Refusal as refusal:
            yield from self._refuse(work, update, str(refusal), now)
            return
        if given.device in self.setting.without:
            difference = zeros_like(difference)
        base = self._base(work, update)
        contribution = contribution_of(work, update, region, difference, base, self.core.version)
        scores, verdict = self._members.judge(contribution, self._model(), self._context(now))
        if verdict is not None:
            yield from self._refuse(work, update, verdict.refusal, now, scores)
            if verdict.quarantine:
                yield from self._quarantine(given.device, verdict.refusal)
            return
        self.core.standing.delivered(given.device, update)
        ends = self._came(work, update, end_of(base, difference), now)
        epoch = self.core.shape_epoch
        yield from self._tell(reported(work, update, region), now)
        if self.core.shape_epoch != epoch:  # at these news
            yield Settled(given.device, update, "expired", "the model changed its shape when it came", None, None)
            return
        staleness = self.core.version - update.lineage.newest  # the model may have moved at these news
        settled = Settled(given.device, update, "stored", "", staleness, length, ends, scores)
        if staleness > self.setting.recipe.aggregator.max_staleness:
            reason = f"{staleness} versions old, at most {self.setting.recipe.aggregator.max_staleness} are taken"
            yield evolve(settled, outcome="stale", reason=reason)
        else:
            yield settled
            yield from self._absorb(evolve(contribution, staleness=staleness), now)
        if update.holdout is not None and not self.setting.measured:
            devices = len({work.device.id for work in self.core.open.values()} | self.core.standing.local.keys())
            yield from self._stop(self.core.standing.locally(self.setting.recipe.stop, self.setting.target, devices))

    def _came(self, work: Work, update: Update, base: Weights | None, now: float) -> bool:
        """A sound commit came: whether its assignment ends with it, or its lease begins anew."""
        ends = update.last or update.commit >= work.plan.commits
        if ends:
            self.core.end(update.assignment)
        else:
            lease = now + self.setting.recipe.plan.lease
            self.core.put(update.assignment, work.continued(update, base, lease))
        return ends

    def _quarantine(self, device: str, reason: str) -> Iterator[Effect]:
        for number, _ in self.core.works(device):
            yield self.core.close(number, "cancelled", "the device was quarantined")
        yield Quarantined(device, reason)

    def _reject(self, given: Rejected, now: float) -> Iterator[Effect]:
        work = self.core.open.get(given.update.assignment)
        if work is not None and work.device.id == given.device:
            yield from self._refuse(work, given.update, given.reason, now)

    def _refuse(
        self, work: Work, update: Update, reason: str, now: float, scores: dict[str, Explanation] | None = None
    ) -> Iterator[Effect]:
        """An unsound update ends its assignment: what would come after it builds on it."""
        self.core.end(update.assignment)
        staleness = self.core.version - work.version
        yield Settled(work.device.id, update, "refused", reason, staleness, None, scores=scores or {})
        yield from self._tell(events.Refused(work.device, work.version), now)

    def _absorb(self, contribution: Contribution, now: float) -> Iterator[Effect]:
        step = self._members.absorb(contribution, self._model(), self._context(now))
        self.core.absorbed += 1
        if step is not None:
            yield from self._move(step, now)

    def _move(self, step: Step, now: float) -> Iterator[Effect]:
        """Take a step that the aggregator proposes, by way of the transforms."""
        step = self._members.transform(step, self._model(), self._context(now))
        moved = add(self.core.weights, step.difference)
        if not finite(moved):
            yield Changed("paused", f"version {self.core.version + 1} would not be finite: the step was dropped")
            self.core.state = "paused"
            yield from self._tell(events.Discarded(), now)
            return
        self.core.weights = moved
        self.core.version += 1
        yield Versioned(self.core.version, digest(moved), norm(step.difference), step.contributors)

    def _base(self, work: Work, update: Update) -> Weights | None:
        if not self.setting.recipe.aggregator.needs_base:
            return None
        return effective_base(work, update.lineage.merges, lambda version: self.core.kept[base_of(version, work.plan)])

    def _keep(self, plan: Plan) -> None:
        if self.setting.recipe.aggregator.needs_base:
            self.core.keep(plan, self.region(plan))

    # -- time, people, results -----------------------------------------------------------------------------------

    def _asked(self, given: Asked, now: float) -> Iterator[Effect]:
        work, ask = self.core.open.get(given.ask.assignment), given.ask
        if work is not None and work.device.id == given.device:
            # A device's word of what it builds on counts where that was sent to it.
            version = ask.version if ask.version in work.sent else work.version
            yield from self._tell(events.FreshAsked(work.device, work.plan, ask.step, version), now)

    def _expire(self, now: float) -> Iterator[Effect]:
        for number, work in list(self.core.open.items()):
            if work.expires_at <= now:
                yield self.core.close(number, "expired", "the lease ran out")
                yield from self._tell(events.Expired(work.device, work.version), now)
        if self.core.wake_at is not None and self.core.wake_at <= now:
            self.core.wake_at = None
            yield from self._tell(events.Tick(), now)

    def _depart(self, device: str, now: float) -> Iterator[Effect]:
        for number, _ in self.core.works(device):
            yield self.core.close(number, "cancelled", "the device was revoked")
        yield from self._tell(events.Left(device), now)

    def _evaluated(self, given: Evaluated) -> Iterator[Effect]:
        if self.core.state in GOING_ON:
            yield from self._stop(self.core.standing.measured(self.setting.recipe.stop, self.setting.target, given))

    def _stop(self, verdict: tuple[str, str] | None) -> Iterator[Effect]:
        if verdict is not None and self.core.state in GOING_ON:
            yield from self._end(*verdict)

    def _answered(self, given: Answered, now: float) -> Iterator[Effect]:
        question = self.core.questions.pop(given.number, None)
        if question is None:
            return
        result = given.result
        if question.computation == effects.EVALUATE and "failed" not in result:
            event: events.MemberEvent = events.Evaluated(
                int(result["version"]), float(result["accuracy"]), float(result["loss"])
            )
        else:
            event = events.Computed(self._members.kind(question.index), question.computation, result)
        yield from self._tell(event, now)

    def _operate(self, given: Operated) -> Iterator[Effect]:
        if given.action == "stop" and self.core.state in GOING_ON:
            yield from self._end("stopped", f"stopped by {given.by}")
        elif (state := MOVES.get((self.core.state, given.action))) is not None:
            self.core.state = state
            yield Changed(state, f"{given.action}d by {given.by}")

    def _end(self, state: str, reason: str) -> Iterator[Effect]:
        yield from effects.clear(self.core, f"the run is {state}")
        self.core.state, self.core.wake_at = state, None
        self.core.questions.clear()
        yield Changed(state, reason)

    # -- members -------------------------------------------------------------------------------------------------

    def _tell(self, event: events.MemberEvent, now: float) -> Iterator[Effect]:
        """Every member hears an event; what they want is done at once, in their order. After the end nothing moves."""
        for index in range(len(self._members)):
            if self.core.state not in GOING_ON:
                return
            for effect in self._members.tell(index, event, self._context(now)):
                yield from self._done(index, effect, now)

    def _done(self, index: int, effect: events.MemberEffect, now: float) -> Iterator[Effect]:
        core = self.core
        match effect:
            case events.Propose():
                yield from self._move(effect.step, now)
            case events.WakeAt():
                core.wake_at = effect.at if core.wake_at is None else min(effect.at, core.wake_at)
            case events.Amend():
                yield from effects.amend(core, effect)
            case events.SendFresh():
                self._fresh[effect.device] = effect
            case events.Evaluate():
                yield effects.ask(core, index, effects.EVALUATE, {})
            case events.Compute():
                yield effects.ask(core, index, effect.computation, effect.arguments)
            case events.Hold():
                effects.hold(core, index, effect.fields)
            case events.Barrier():
                core.barrier, core.quiet = effect.reason, False
            case events.Release():
                core.barrier, core.quiet = None, False
            case events.Adopt():
                yield effects.adopt(core, effect)
            case events.Reshape():
                yield from self._reshape(effect)

    def _reshape(self, wish: events.Reshape) -> Iterator[Effect]:
        kept = Region(self.core.layout, Subnetwork(dict(wish.channels)))
        yield from effects.cut_down(self.core, kept, wish.reason)
        self._members.reshape(kept)
        self._reshaped()

    def _reshaped(self) -> None:
        """What follows from the layout."""
        layout = self.core.layout
        self._regions: dict[tuple[float, int], Region] = {}
        # A count of channels means the same in the layout the run began with.
        self._costs = {width: self.setting.cost(nested(layout, width)) for width in WIDTHS}

    def _model(self) -> Model:
        return Model(self.core.weights, self.core.layout, self._costs)

    def _context(self, now: float) -> Context:
        core = self.core
        rng = np.random.default_rng([self.setting.seed, core.inputs])
        return Context(now, rng, core.version, core.absorbed, core.shape_epoch, self.setting.control)
