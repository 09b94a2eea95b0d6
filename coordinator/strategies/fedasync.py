"""FedAsync: every update is mixed in at once, with a weight that falls with its staleness.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization, 2019 (arXiv 1903.03934):

    w_t = (1 − α_t) w_{t−1} + α_t w_i,   α_t = α·s(t − τ)

with s constant: 1; polynomial: (t − τ + 1)^−a; hinge: 1 up to b versions, then 1 / (a(t − τ − b) + 1); t − τ is 0 for a
fresh update. The paper takes a = 0.5 for the polynomial, a = 10 and b = 4 for the hinge. Its proximal term on the
device is left out. A coordinate that the subnetwork does not hold keeps its value.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from protocol.weights import Weights, scale, zeros_like

from .base import Context, Contribution, Contributor, Model, Stateless, Step, option

FUNCTIONS = ("constant", "polynomial", "hinge")


def _function(_: Any, attribute: Any, value: str) -> None:
    if value not in FUNCTIONS:
        raise ValueError(f"{attribute.name} is {value!r}, expected one of {', '.join(FUNCTIONS)}")


@frozen
class FedAsync(Stateless):
    """``alpha`` α in [0, 1]; ``staleness`` names s, with ``a`` and ``b``; ``max_staleness`` in versions."""

    kind: ClassVar[str] = "fedasync"
    needs_base: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False
    alpha: float = option(0.6, 0, 1)
    staleness: str = field(default="polynomial", validator=_function)
    a: float = option(0.5, 0, 1000)
    b: float = option(4.0, 0, 1e6)
    max_staleness: int = option(100, 0, 1_000_000)

    def weight(self, staleness: int) -> float:
        """α_t of an update ``staleness`` ≥ 0 versions old."""
        if self.staleness == "polynomial":
            return float(self.alpha * (staleness + 1) ** -self.a)
        if self.staleness == "hinge" and staleness > self.b:
            return float(self.alpha / (self.a * (staleness - self.b) + 1))
        return self.alpha

    def absorb(self, state: None, model: Model, contribution: Contribution, ctx: Context) -> tuple[None, Step | None]:
        return None, mixed(model, contribution, self.weight(contribution.staleness))


def mixed(model: Model, contribution: Contribution, weight: float) -> Step:
    """The step that mixes a device's weights into the model: weight·(base + difference − model) over the region."""
    region = contribution.region
    coverage = zeros_like(model.weights)
    region.fill(coverage, 1)
    step = scale(pull(model, contribution), weight)
    return Step(region.lift(step), coverage, (Contributor(contribution.key, weight),))


def pull(model: Model, contribution: Contribution) -> Weights:
    """How far a device's weights are from the model's: base + difference − model, over the region."""
    if contribution.base is None:
        raise ValueError("mixing weights needs the base of the contribution")
    now, base = contribution.region.cut(model.weights), contribution.base
    return {name: base[name] + difference - now[name] for name, difference in contribution.difference.items()}
