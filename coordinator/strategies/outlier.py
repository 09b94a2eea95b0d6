"""Outlier: turns away differences that are much longer than the fleet's, or point away from where it goes.

Two scores. *Norm*: the length of the difference, per √step, over the median of the other devices' (Sun et al.: Can You
Really Backdoor Federated Learning?, 2019, arXiv 1911.07963, bound norms likewise). Widths are not told apart: between
width 1 and 1/16 the usual lengths differ by less than a factor of two (measured).
*Cosine*: between the difference and a running mean of the directions that were admitted, over the coordinates that
the update covers (FLTrust, Cao et al., NDSS 2021, arXiv 2012.13995, takes the cosine to a server's own update, for
which it needs data). Devices with data of their own disagree, the more the better the model is, until their directions
say nothing any more: where the median cosine is below ``agreement``, nobody is judged by it. Else it must be nearer to
the opposite of the median than to zero, and below the median by more than ``cosine_limit`` spreads; both the update's
own and the device's smoothed one, since an honest device may point away once. One that points away a little, but all
the time, is told by the mean of its cosines over four updates or more: below the median by as many spreads, and below
zero by a quarter of the median. (Measured on digits and Fashion-MNIST split by Dirichlet(0.5), where the median is 0.2
to 0.4: these means lie from −0.49 to −0.18 where the sign is turned, and from 0 on where devices are honest.)

The first ``warm_up`` updates are measured and not admitted: one that is a hundred times too long would spoil a model
before anybody knows what is usual. In the running mean every update has the same length, so that a long one has no
more say than others. What is turned away is one strike; ``strikes`` of them are quarantine. Every update that is
admitted takes ``forgiveness`` strikes back.
"""

from __future__ import annotations

from statistics import median
from typing import ClassVar

from attrs import evolve, field, frozen

from protocol.subnetwork import Region
from protocol.weights import Weights, dot, norm, zeros_like

from .base import Context, Contribution, Left, MemberEffect, MemberEvent, Model, Verdict, option
from .peers import Usual, forget, remember, usual

FEW, ENOUGH = 2, 4
"""Other devices that a length, and a direction, is compared with at least."""
SMOOTHING = 0.4
NONE = 1e-30


@frozen
class Sighting:
    """A device's newest update: its length per √step, and its smoothed cosine once there is one (−1 … 1). ``mean`` is
    that of ``counted`` cosines, measured while the fleet agreed; of the newest, where there are many."""

    length: float
    cosine: float | None
    mean: float = 0.0
    counted: int = 0

    def with_(self, cosine: float, memory: int) -> Sighting:
        share = 1 / min(self.counted + 1, memory)
        return evolve(self, mean=(1 - share) * self.mean + share * cosine, counted=self.counted + 1)


@frozen
class Watch:
    """``direction`` is the running mean of ``heard`` directions, full size, each of length 1.

    ``seen`` are the devices' newest updates; ``strikes`` those that count against them.
    """

    direction: Weights
    heard: int = 0
    seen: dict[str, Sighting] = field(factory=dict)
    strikes: dict[str, float] = field(factory=dict)

    def without(self, device: str) -> Watch:
        return evolve(self, seen=forget(self.seen, device), strikes=forget(self.strikes, device))


@frozen
class Outlier:
    """``norm_limit`` in medians, ``cosine_limit`` in spreads; ``agreement`` is the median cosine that it takes to judge
    directions; ``warm_up`` and ``memory`` in updates, the latter of the running mean."""

    kind: ClassVar[str] = "outlier"
    norm_limit: float = option(6.0, 1, 1e6)
    cosine_limit: float = option(3.0, 0, 1e6)
    agreement: float = option(0.2, 0, 1)
    warm_up: int = option(10, 0, 100_000)
    memory: int = option(20, 1, 100_000)
    strikes: int = option(3, 1, 1000)
    forgiveness: float = option(0.5, 0, 1000)

    def init(self, model: Model) -> Watch:
        return Watch(zeros_like(model.weights))

    def on(self, state: Watch, event: MemberEvent, ctx: Context) -> tuple[Watch, list[MemberEffect]]:
        return (state.without(event.device) if isinstance(event, Left) else state), []

    def reshape(self, state: Watch, kept: Region) -> Watch:
        return evolve(state, direction=kept.cut(state.direction))

    def judge(self, state: Watch, contribution: Contribution, model: Model, ctx: Context) -> tuple[Watch, Verdict]:
        device, length = contribution.device.id, norm(contribution.difference) / contribution.steps**0.5
        others, before = list(forget(state.seen, device).values()), state.seen.get(device)
        ratio = length / max(median(o.length for o in others), NONE) if len(others) >= FEW else None
        cosine = self._cosine(state, contribution)
        cosines = [other.cosine for other in others if other.cosine is not None]
        expected = usual(cosines) if len(cosines) >= ENOUGH else None
        sight = evolve(before or Sighting(length, None), length=length, cosine=_smoothed(before, cosine))
        if cosine is not None and expected is not None and expected.middle >= self.agreement:
            sight = sight.with_(cosine, self.memory)
        state = evolve(state, seen=remember(state.seen, device, sight))
        mean = sight.mean if sight.counted else None
        told = {"norm": ratio, "cosine": cosine, "smoothed_cosine": sight.cosine, "mean_cosine": mean}
        verdict = Verdict({**told, **_named(expected)})
        if state.heard < self.warm_up:
            learnt = f"update {state.heard + 1} of the {self.warm_up} by which admission learns what is usual"
            return self._taught(state, contribution), evolve(verdict, refusal=f"{learnt}; it is not used")
        if complaint := self._too_long(ratio) or self._astray(cosine, sight, expected):
            return self._struck(state, device, verdict, complaint)
        left = max(0.0, state.strikes.get(device, 0.0) - self.forgiveness)
        strikes = {**state.strikes, device: left} if left else forget(state.strikes, device)
        verdict.scores["strikes"] = left
        return self._taught(evolve(state, strikes=strikes), contribution), verdict

    def _cosine(self, state: Watch, contribution: Contribution) -> float | None:
        """With the running mean; None while that is not ready, or of a difference of zero."""
        length = norm(contribution.difference)
        if state.heard < self.warm_up or not length:
            return None
        direction = contribution.region.cut(state.direction)
        return dot(contribution.difference, direction) / max(length * norm(direction), NONE)

    def _too_long(self, ratio: float | None) -> str:
        if ratio is None or ratio <= self.norm_limit:
            return ""
        return f"its difference is {ratio:.3g} times as long as is usual, {self.norm_limit:g} times is the limit"

    def _astray(self, cosine: float | None, sight: Sighting, expected: Usual | None) -> str:
        if cosine is None or sight.cosine is None or expected is None or expected.middle < self.agreement:
            return ""
        others = f"the other devices' {expected.middle:.2f} ± {expected.spread:.2f}"
        limit = expected.opposite(self.agreement, self.cosine_limit)
        if limit is not None and max(cosine, sight.cosine) < limit:
            own = f"its cosine is {cosine:.2f}, smoothed {sight.cosine:.2f}"
            return f"its difference points away from the fleet's: {own}; {others}, {limit:.2f} is the limit"
        limit = min(-expected.middle / 4, expected.middle - self.cosine_limit * expected.spread)
        if sight.counted < ENOUGH or sight.mean >= limit:
            return ""
        own = f"the mean of its last {min(sight.counted, self.memory)} cosines is {sight.mean:.2f}"
        return f"its differences keep pointing away from the fleet's: {own}; {others}, {limit:.2f} is the limit"

    def _struck(self, state: Watch, device: str, verdict: Verdict, complaint: str) -> tuple[Watch, Verdict]:
        count = state.strikes.get(device, 0.0) + 1
        verdict.scores["strikes"] = count
        refusal = f"{complaint} (strike {count:g} of {self.strikes})"
        if count >= self.strikes:  # a device that is released begins anew
            return state.without(device), evolve(verdict, refusal=refusal, quarantine=True)
        return evolve(state, strikes={**state.strikes, device: count}), evolve(verdict, refusal=refusal)

    def _taught(self, state: Watch, contribution: Contribution) -> Watch:
        """The running mean with this update's direction in it: at first the mean of all, then of the newest."""
        if length := norm(contribution.difference):
            region, share = contribution.region, 1 / min(state.heard + 1, self.memory)
            before = region.cut(state.direction)
            region.add(state.direction, before, -share)
            region.add(state.direction, contribution.difference, share / length)
        return evolve(state, heard=state.heard + 1)


def _smoothed(before: Sighting | None, cosine: float | None) -> float | None:
    if cosine is None:
        return before.cosine if before is not None else None
    if before is None or before.cosine is None:
        return cosine
    return (1 - SMOOTHING) * before.cosine + SMOOTHING * cosine


def _named(expected: Usual | None) -> dict[str, float | None]:
    if expected is None:
        return {"usual_cosine": None, "spread": None}
    return {"usual_cosine": expected.middle, "spread": expected.spread}
