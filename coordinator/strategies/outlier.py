"""Outlier: turns away differences that are much longer than the fleet's, or point away from where it goes.

Two scores. *Norm*: the length of the difference, per coordinate and √step, over the median of the other devices at the
same width (Sun et al.: Can You Really Backdoor Federated Learning?, 2019, arXiv 1911.07963, bound norms likewise).
*Cosine*: between the difference and a running mean of the directions that were admitted, over the coordinates that
the update covers (FLTrust, Cao et al., NDSS 2021, arXiv 2012.13995, takes the cosine to a server's own update, for
which it needs data). Devices with data of their own disagree, the more the better the model is; so a cosine is judged
by how the other devices' spread: it must be below 0, and below their median by more than ``cosine_limit`` spreads.

The first ``warm_up`` updates are measured and not admitted: one that is a hundred times too long would spoil a model
before anybody knows what is usual. In the running mean every update has the same length, so that a long one has no
more say than others. What is turned away is one strike; ``strikes`` of them are quarantine. Every update that is
admitted takes ``forgiveness`` strikes back.
"""

from __future__ import annotations

from itertools import chain
from statistics import median
from typing import ClassVar

from attrs import evolve, field, frozen

from protocol.subnetwork import Region
from protocol.weights import Weights, dot, norm, zeros_like

from .base import Context, Contribution, Left, MemberEffect, MemberEvent, Model, Verdict, option
from .peers import Usual, forget, remember, usual

FEW, ENOUGH = 2, 4
"""Other devices that a length, and a direction, is compared with at least; at its own width where there are."""
LEAST_SPREAD = 0.05
"""Of cosines: three devices that happen to agree are no reason to turn the fourth away."""
NONE = 1e-30


@frozen
class Sighting:
    """A device's newest update at a width: its length per coordinate and √step, and its cosine once there is one."""

    length: float
    cosine: float | None


@frozen
class Watch:
    """``direction`` is the running mean of ``heard`` directions, full size, each of length 1 per coordinate.

    ``bands`` hold by width what was seen of each device; ``strikes`` those that count against devices.
    """

    direction: Weights
    heard: int = 0
    bands: dict[float, dict[str, Sighting]] = field(factory=dict)
    strikes: dict[str, float] = field(factory=dict)

    def others(self, device: str, width: float, least: int) -> list[Sighting]:
        """What was seen of other devices at this width, or at all widths where that is less than ``least``."""
        here = list(forget(self.bands.get(width, {}), device).values())
        if len(here) >= least:
            return here
        return list(chain.from_iterable(forget(band, device).values() for band in self.bands.values()))

    def without(self, device: str) -> Watch:
        bands = {width: forget(band, device) for width, band in self.bands.items()}
        return evolve(self, bands=bands, strikes=forget(self.strikes, device))


@frozen
class Outlier:
    """``norm_limit`` in medians, ``cosine_limit`` in spreads; ``memory`` in updates, of the running mean."""

    kind: ClassVar[str] = "outlier"
    norm_limit: float = option(6.0, 1, 1e6)
    cosine_limit: float = option(3.0, 0, 1e6)
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
        device, width = contribution.device.id, contribution.plan.width
        seen = self._seen(state, contribution)
        peers = state.others(device, width, FEW)
        ratio = seen.length / max(median(peer.length for peer in peers), NONE) if len(peers) >= FEW else None
        cosines = [c for peer in state.others(device, width, ENOUGH) if (c := peer.cosine) is not None]
        expected = usual(cosines, LEAST_SPREAD) if len(cosines) >= ENOUGH else None
        state = evolve(state, bands={**state.bands, width: remember(state.bands.get(width, {}), device, seen)})
        verdict = Verdict({"norm": ratio, "cosine": seen.cosine, **_named(expected)})
        if state.heard < self.warm_up:
            learnt = f"update {state.heard + 1} of the {self.warm_up} by which admission learns what is usual"
            return self._taught(state, contribution, seen), evolve(verdict, refusal=f"{learnt}; it is not used")
        if complaint := self._complaint(ratio, seen.cosine, expected):
            return self._struck(state, device, verdict, complaint)
        left = max(0.0, state.strikes.get(device, 0.0) - self.forgiveness)
        strikes = {**state.strikes, device: left} if left else forget(state.strikes, device)
        verdict.scores["strikes"] = left
        return self._taught(evolve(state, strikes=strikes), contribution, seen), verdict

    def _seen(self, state: Watch, contribution: Contribution) -> Sighting:
        region, length = contribution.region, norm(contribution.difference)
        size = (region.parameters * contribution.steps) ** 0.5
        if state.heard < self.warm_up or not length:
            return Sighting(length / size, None)
        direction = region.cut(state.direction)
        cosine = dot(contribution.difference, direction) / max(length * norm(direction), NONE)
        return Sighting(length / size, cosine)

    def _complaint(self, ratio: float | None, cosine: float | None, expected: Usual | None) -> str:
        if ratio is not None and ratio > self.norm_limit:
            return f"its difference is {ratio:.3g} times as long as is usual, {self.norm_limit:g} times is the limit"
        if cosine is None or expected is None:
            return ""
        limit = min(0.0, expected.middle - self.cosine_limit * expected.spread)
        if cosine >= limit:
            return ""
        others = f"the other devices' {expected.middle:.2f} ± {expected.spread:.2f}, {limit:.2f} is the limit"
        return f"its difference points away from the fleet's: its cosine is {cosine:.2f}, {others}"

    def _struck(self, state: Watch, device: str, verdict: Verdict, complaint: str) -> tuple[Watch, Verdict]:
        count = state.strikes.get(device, 0.0) + 1
        verdict.scores["strikes"] = count
        refusal = f"{complaint} (strike {count:g} of {self.strikes})"
        if count >= self.strikes:  # a device that is released begins anew
            return state.without(device), evolve(verdict, refusal=refusal, quarantine=True)
        return evolve(state, strikes={**state.strikes, device: count}), evolve(verdict, refusal=refusal)

    def _taught(self, state: Watch, contribution: Contribution, seen: Sighting) -> Watch:
        """The running mean with this update's direction in it: at first the mean of all, then of the newest."""
        if seen.length:
            region, share = contribution.region, 1 / min(state.heard + 1, self.memory)
            unit = share / (seen.length * contribution.steps**0.5)
            before = region.cut(state.direction)
            region.add(state.direction, before, -share)
            region.add(state.direction, contribution.difference, unit)
        return evolve(state, heard=state.heard + 1)


def _named(expected: Usual | None) -> dict[str, float | None]:
    if expected is None:
        return {"usual_cosine": None, "spread": None}
    return {"usual_cosine": expected.middle, "spread": expected.spread}
