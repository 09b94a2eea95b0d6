"""The parts of a recipe at work: each with its state, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import define

from coordinator.strategies.base import (
    Context,
    Contribution,
    DeviceView,
    Explanation,
    Member,
    MemberEffect,
    MemberEvent,
    Model,
    Retry,
    Step,
    Verdict,
)
from coordinator.training.recipe import Recipe
from protocol.messages import Plan
from protocol.subnetwork import Region


class Members:
    """Policies, then the aggregator, transforms and gates. ``states`` stand in the same order."""

    def __init__(self, recipe: Recipe, model: Model) -> None:
        self._recipe = recipe
        self._members: tuple[Member, ...] = (*recipe.policies, recipe.aggregator, *recipe.transforms, *recipe.gates)
        self.states: list[Any] = [member.init(model) for member in self._members]
        self._classes = [type(state) for state in self.states]

    def __len__(self) -> int:
        return len(self._members)

    def kind(self, index: int) -> str:
        return self._members[index].kind

    def shape(
        self, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Plan | Retry, dict[str, Explanation]]:
        """The plan that the policies make of the base plan, or the first Retry; and their explanations by kind."""
        shaped: Plan | Retry = plan
        explanations: dict[str, Explanation] = {}
        for index, policy in enumerate(self._recipe.policies):
            assert isinstance(shaped, Plan)
            self.states[index], shaped, explanations[policy.kind] = policy.shape(
                self.states[index], shaped, device, model, ctx
            )
            if isinstance(shaped, Retry):
                break
        return shaped, explanations

    def judge(
        self, contribution: Contribution, model: Model, ctx: Context
    ) -> tuple[dict[str, Explanation], Verdict | None]:
        """What the gates looked at, by kind, and the first verdict that refuses; the gates behind it are not asked."""
        scores: dict[str, Explanation] = {}
        at = len(self._members) - len(self._recipe.gates)
        for index, gate in enumerate(self._recipe.gates, at):
            self.states[index], verdict = gate.judge(self.states[index], contribution, model, ctx)
            scores[gate.kind] = verdict.scores
            if verdict.refusal:
                return scores, verdict
        return scores, None

    def absorb(self, contribution: Contribution, model: Model, ctx: Context) -> Step | None:
        at = len(self._recipe.policies)
        self.states[at], step = self._recipe.aggregator.absorb(self.states[at], model, contribution, ctx)
        return step

    def transform(self, step: Step, model: Model, ctx: Context) -> Step:
        for index, transform in enumerate(self._recipe.transforms, len(self._recipe.policies) + 1):
            self.states[index], step = transform.apply(self.states[index], step, model, ctx)
        return step

    def tell(self, index: int, event: MemberEvent, ctx: Context) -> Iterator[MemberEffect]:
        """One member hears an event; what it wants."""
        self.states[index], effects = self._members[index].on(self.states[index], event, ctx)
        yield from effects

    def reshape(self, kept: Region) -> None:
        """The model was cut down to ``kept``."""
        self.states = [m.reshape(s, kept) for m, s in zip(self._members, self.states, strict=True)]

    def snapshot_class(self, core: type[Any]) -> type[Any]:
        """A class whose fields are the core and each member's state, so that its types are known when it is read."""
        kinds = {f"member{index}": kind for index, kind in enumerate(self._classes)}
        return define(type("Snapshot", (), {"__annotations__": {"core": core, **kinds}}))
