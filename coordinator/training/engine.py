"""The engine of one run: what a device trains next, what happens to its update, when the model moves.

Pure: it reads no clock, no socket and no database. :meth:`Engine.handle` is the only door, and the same inputs in
the same order give the same model, bit for bit, whether they come from a fleet, a simulation or the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attrs import define, evolve, frozen

from coordinator.strategies.base import (
    Context,
    Contribution,
    Cost,
    DeviceView,
    Discarded,
    Expired,
    Explanation,
    Left,
    Member,
    MemberEvent,
    Model,
    Propose,
    Refused,
    Reported,
    Retry,
    Step,
    Tick,
    WakeAt,
)
from coordinator.training.admission import Refusal, difference_of
from coordinator.training.inputs import (
    Changed,
    CheckedIn,
    Closed,
    Deferred,
    Delivered,
    Departed,
    Effect,
    Evaluated,
    Input,
    Offered,
    Operated,
    Rejected,
    Settled,
    Ticked,
    Versioned,
)
from coordinator.training.recipe import Recipe
from coordinator.training.state import freeze, thaw
from protocol.messages import Plan
from protocol.subnetwork import Layout, Region, nested
from protocol.weights import Weights, add, digest, finite, norm

GOING_ON = ("running", "paused")
MOVES = {("running", "pause"): "paused", ("paused", "resume"): "running"}


@frozen
class Setting:
    """What a run is made of: everything that never changes."""

    run: str
    recipe: Recipe
    layout: Layout
    costs: Mapping[float, Cost]
    seed: int
    target: float | None


@frozen
class Open:
    """An assignment that waits for its update."""

    device: DeviceView
    version: int
    plan: Plan
    expires_at: float


@define
class Core:
    """Everything that changes, but for the members' states. ``wake_at`` is when the next Tick is due."""

    weights: Weights
    version: int
    absorbed: int
    inputs: int
    offers: int
    state: str
    open: dict[str, Open]
    bases: dict[int, Weights]
    wake_at: float | None = None


class Engine:
    """One run. ``weights`` are the initial global weights, full size."""

    def __init__(self, setting: Setting, weights: Weights) -> None:
        self.setting = setting
        self.core = Core(weights, 0, 0, 0, 0, "running", {}, {})
        recipe = setting.recipe
        self._members: tuple[Member, ...] = (*recipe.policies, recipe.aggregator, *recipe.transforms)
        self._states: list[Any] = [member.init(self._model()) for member in self._members]
        self._regions: dict[float, Region] = {}

    # -- the door ------------------------------------------------------------------------------------------------

    def handle(self, given: Input, now: float) -> list[Effect]:
        """Take one input at time ``now`` (seconds) and say what follows from it."""
        self.core.inputs += 1
        match given:
            case CheckedIn():
                return list(self._check_in(given, now))
            case Delivered():
                return list(self._deliver(given, now))
            case Rejected():
                return list(self._reject(given, now))
            case Evaluated():
                return list(self._evaluated(given))
            case Ticked():
                return list(self._expire(now))
            case Departed():
                return list(self._depart(given.device, now))
            case Operated():
                return list(self._operate(given))

    @property
    def deadline(self) -> float | None:
        """When a lease runs out or a member wants to be woken: the time by which a Ticked is due."""
        times = [work.expires_at for work in self.core.open.values()]
        if self.core.wake_at is not None:
            times.append(self.core.wake_at)
        return min(times, default=None)

    def region(self, width: float) -> Region:
        """The part of the model that a nested width keeps."""
        if width not in self._regions:
            self._regions[width] = Region(self.setting.layout, nested(self.setting.layout, width))
        return self._regions[width]

    def snapshot(self) -> bytes:
        """The whole state as bytes."""
        return freeze(self._snapshot_class()(self.core, *self._states))

    def restore(self, data: bytes) -> None:
        """Become what :meth:`snapshot` wrote; the setting must be the same."""
        value = thaw(self._snapshot_class(), data)
        self.core = value.core
        self._states = [getattr(value, f"member{i}") for i in range(len(self._members))]

    # -- check-ins -----------------------------------------------------------------------------------------------

    def _check_in(self, given: CheckedIn, now: float) -> Iterator[Effect]:
        device, check_in = given.device, given.check_in
        yield from self._drop_forgotten(device.id, {check_in.held, *check_in.unsent}, now)
        if self.core.state != "running":
            yield Deferred(device.id, check_in.id, None, f"the run is {self.core.state}")
            return
        held = self.core.open.get(check_in.held or "")
        if check_in.held and held and held.device.id == device.id:
            yield _offered(check_in.held, held, check_in.id, {}, again=True)
            return
        plan, explanation = self._shaped(device, now)
        if isinstance(plan, Plan) and plan.coding != "float32" and plan.coding not in check_in.features:
            plan = evolve(plan, coding="float32")  # an older agent: it gets what it can do
        if isinstance(plan, Retry):
            yield Deferred(device.id, check_in.id, plan.seconds, plan.reason)
            return
        self.core.offers += 1
        number = f"{self.setting.run}.{self.core.offers}"
        work = Open(device, self.core.version, plan, now + self.setting.recipe.plan.lease)
        self.core.open[number] = work
        if self.setting.recipe.aggregator.needs_base:
            self.core.bases[work.version] = self.core.weights
        yield _offered(number, work, check_in.id, explanation, again=False)

    def _drop_forgotten(self, device: str, known: set[str | None], now: float) -> Iterator[Effect]:
        """Assignments that the device neither works on nor has to deliver never reached it."""
        for number, work in list(self.core.open.items()):
            if work.device.id == device and number not in known:
                yield self._close(number, "cancelled", "the device does not hold it any more")
                yield from self._tell(Expired(work.device, work.version), now)

    def _shaped(self, device: DeviceView, now: float) -> tuple[Plan | Retry, dict[str, Explanation]]:
        plan: Plan | Retry = self.setting.recipe.plan.plan()
        explanations: dict[str, Explanation] = {}
        for index, policy in enumerate(self.setting.recipe.policies):
            assert isinstance(plan, Plan)
            self._states[index], plan, explanation = policy.shape(
                self._states[index], plan, device, self._model(), self._context(now)
            )
            explanations[policy.kind] = explanation
            if isinstance(plan, Retry):
                break
        return plan, explanations

    # -- updates -------------------------------------------------------------------------------------------------

    def _deliver(self, given: Delivered, now: float) -> Iterator[Effect]:
        update = given.update
        work = self.core.open.get(update.assignment)
        if work is None or work.device.id != given.device:
            yield Settled(
                given.device, update, "expired", "the assignment was closed before the update came", None, None
            )
            return
        del self.core.open[update.assignment]
        staleness = self.core.version - work.version
        try:
            region = self.region(work.plan.width)
            difference = difference_of(update, given.body, work.version, work.plan, region)
        except Refusal as refusal:
            yield Settled(given.device, update, "refused", str(refusal), staleness, None)
            yield from self._tell(Refused(work.device, work.version), now)
            self._forget_bases()
            return
        yield from self._tell(self._reported(work, given, region), now)
        staleness = self.core.version - work.version  # the model may have moved at these news
        length = norm(difference)
        if staleness > self.setting.recipe.aggregator.max_staleness:
            reason = f"{staleness} versions old, at most {self.setting.recipe.aggregator.max_staleness} are taken"
            yield Settled(given.device, update, "stale", reason, staleness, length)
        else:
            yield Settled(given.device, update, "stored", "", staleness, length)
            yield from self._absorb(work, given, region, difference, staleness, now)
        self._forget_bases()

    def _reject(self, given: Rejected, now: float) -> Iterator[Effect]:
        work = self.core.open.get(given.update.assignment)
        if work is not None and work.device.id == given.device:
            del self.core.open[given.update.assignment]
            staleness = self.core.version - work.version
            yield Settled(given.device, given.update, "refused", given.reason, staleness, None)
            yield from self._tell(Refused(work.device, work.version), now)
            self._forget_bases()

    def _absorb(
        self, work: Open, given: Delivered, region: Region, difference: Weights, staleness: int, now: float
    ) -> Iterator[Effect]:
        contribution = Contribution(
            device=work.device,
            key=f"{given.update.assignment}/{given.update.commit}",
            difference=difference,
            region=region,
            base=self.core.bases.get(work.version),
            base_version=work.version,
            staleness=staleness,
            samples=given.update.samples,
            steps=given.update.steps,
            loss=given.update.loss,
        )
        recipe, context, model = self.setting.recipe, self._context(now), self._model()
        at = len(recipe.policies)
        self._states[at], step = recipe.aggregator.absorb(self._states[at], model, contribution, context)
        self.core.absorbed += 1
        if step is not None:
            yield from self._move(step, now)

    def _move(self, step: Step, now: float) -> Iterator[Effect]:
        """Take a step that the aggregator proposes, by way of the transforms."""
        recipe, context, model = self.setting.recipe, self._context(now), self._model()
        for index, transform in enumerate(recipe.transforms, len(recipe.policies) + 1):
            self._states[index], step = transform.apply(self._states[index], step, model, context)
        moved = add(self.core.weights, step.difference)
        if not finite(moved):
            yield Changed("paused", f"version {self.core.version + 1} would not be finite: the step was dropped")
            self.core.state = "paused"
            yield from self._tell(Discarded(), now)
            return
        self.core.weights = moved
        self.core.version += 1
        yield Versioned(self.core.version, digest(moved), norm(step.difference), step.contributors)

    def _reported(self, work: Open, given: Delivered, region: Region) -> Reported:
        update = given.update
        sizes = {name: int(np.prod(shape)) for name, shape in region.shapes.items()}
        known = {n: v for n, v in update.squared_gradient.items() if n in sizes}
        peaks = {n: v for n, v in update.squared_gradient_peak.items() if n in sizes}
        timings = update.timings
        return Reported(
            device=work.device,
            plan=work.plan,
            steps=update.steps,
            loss=update.loss,
            squared_gradient=known,
            squared_gradient_peak=peaks,
            sizes=sizes,
            seconds_train=timings.train,
            seconds_link=timings.download + (timings.upload or 0.0),
            bytes_link=update.bytes_down + (update.size if timings.upload is not None else 0),
        )

    # -- time, people, results -----------------------------------------------------------------------------------

    def _expire(self, now: float) -> Iterator[Effect]:
        for number, work in list(self.core.open.items()):
            if work.expires_at <= now:
                yield self._close(number, "expired", "the lease ran out")
                yield from self._tell(Expired(work.device, work.version), now)
        if self.core.wake_at is not None and self.core.wake_at <= now:
            self.core.wake_at = None
            yield from self._tell(Tick(), now)

    def _depart(self, device: str, now: float) -> Iterator[Effect]:
        for number, work in list(self.core.open.items()):
            if work.device.id == device:
                yield self._close(number, "cancelled", "the device was revoked")
        yield from self._tell(Left(device), now)

    def _evaluated(self, given: Evaluated) -> Iterator[Effect]:
        target = self.setting.target
        if target is not None and given.accuracy >= target and self.core.state in GOING_ON:
            yield from self._end(
                "finished", f"version {given.version} reached {given.accuracy:.4f}, the target is {target:g}"
            )

    def _operate(self, given: Operated) -> Iterator[Effect]:
        if given.action == "stop" and self.core.state in GOING_ON:
            yield from self._end("stopped", f"stopped by {given.by}")
        elif (state := MOVES.get((self.core.state, given.action))) is not None:
            self.core.state = state
            yield Changed(state, f"{given.action}d by {given.by}")

    def _end(self, state: str, reason: str) -> Iterator[Effect]:
        for number in list(self.core.open):
            yield self._close(number, "cancelled", f"the run is {state}")
        self.core.state, self.core.wake_at = state, None
        yield Changed(state, reason)

    def _close(self, number: str, state: str, reason: str) -> Closed:
        work = self.core.open.pop(number)
        self._forget_bases()
        return Closed(number, work.device.id, state, reason)

    # -- members -------------------------------------------------------------------------------------------------

    def _tell(self, event: MemberEvent, now: float) -> Iterator[Effect]:
        """Every member hears an event; what they want is done at once, in their order. After the end nothing moves."""
        if self.core.state not in GOING_ON:
            return
        for index, member in enumerate(self._members):
            self._states[index], effects = member.on(self._states[index], event, self._context(now))
            for effect in effects:
                match effect:
                    case Propose():
                        yield from self._move(effect.step, now)
                    case WakeAt():
                        due = self.core.wake_at
                        self.core.wake_at = effect.at if due is None else min(effect.at, due)

    def _model(self) -> Model:
        return Model(self.core.weights, self.setting.layout, self.setting.costs)

    def _context(self, now: float) -> Context:
        rng = np.random.default_rng([self.setting.seed, self.core.inputs])
        return Context(now, rng, self.core.version, self.core.absorbed)

    def _forget_bases(self) -> None:
        wanted = {work.version for work in self.core.open.values()}
        self.core.bases = {v: w for v, w in self.core.bases.items() if v in wanted}

    def _snapshot_class(self) -> type[Any]:
        """A class whose fields are the core and each member's state, so that its types are known when it is read."""
        kinds = {f"member{i}": type(m.init(self._model())) for i, m in enumerate(self._members)}
        return define(type("Snapshot", (), {"__annotations__": {"core": Core, **kinds}}))


def _offered(number: str, work: Open, check_in: str, explanation: dict[str, Explanation], again: bool) -> Offered:
    return Offered(number, work.device.id, check_in, work.version, work.plan, work.expires_at, explanation, again)
