"""FedASMU: every update is mixed in at once, with a weight that each device's own progress controls.

Liu, Jia, Che et al.: FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-aware Model Update,
AAAI 2024 (arXiv 2312.05770), Equations 1 to 3; its merges of fresh models are :mod:`.fresh_model`:

    w_t = (1 − α) w_{t−1} + α w_i,   α = μξ / (1 + μξ),   ξ = λ / (√t · τ^σ) + ι,   τ = t − o + 1

with w_i the device's weights and o the version they started from. λ, σ and ι belong to the device and follow the
gradient of its loss F at the model that its last update led to. That is told from the difference d of its next
training, ∇F ≈ −d/(ηL); with v = w_i − w_{t−1} at that last update, and t, τ, ξ as they were then:

    ∂F/∂λ = −μ⟨d, v⟩ / (ηL √t τ^σ (1 + μξ)²),   ∂F/∂σ = −λ ln τ · ∂F/∂λ,   ∂F/∂ι = √t τ^σ · ∂F/∂λ

A device that goes on in the direction it was mixed in with gets more weight.

Choices: σ stands outside the root (``xi_root = "joint"``: √(t·τ^σ)). Inner products are divided by the lengths of both
vectors instead of ηL, so that the rates do not depend on the model, and come from sketches: 20 KiB a device instead of
a model. The next training counts from whatever version it starts (``control_gate = "exact"``: only from the version
that the last update made, which is rare). t counts the absorbed updates, not the versions, for each coverage band on
its own: channels that few devices train are not frozen by what happens to the others. At ι = 0 the weight falls as
1/√t before any control, hence ι begins at 0.1. A coordinate that the subnetwork does not hold keeps its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import ClassVar

from attrs import evolve, field, frozen

from protocol.subnetwork import Region
from protocol.weights import zeros_like

from .base import Context, Contribution, Contributor, Left, MemberEffect, MemberEvent, Model, Step, choice, option
from .fedasync import pull
from .sketch import Bands, Sketch, products

LAMBDA, SIGMA, IOTA = (0.0, 100.0), (0.0, 3.0), (0.0, 1.0)


@frozen
class Mixed:
    """A device's last update: the sketch of v, t by band, τ, and the version it made."""

    sketch: Sketch
    absorbed: dict[int, int]
    age: int
    version: int


@frozen
class Controls:
    """λ, σ and ι of one device, and the update that their next gradient is taken at."""

    lambda_: float
    sigma: float
    iota: float
    last: Mixed | None = None


@frozen
class Fleet:
    """All devices, and the updates absorbed so far by band."""

    controls: dict[str, Controls] = field(factory=dict)
    absorbed: dict[int, int] = field(factory=dict)


@frozen
class FedASMU:
    """``mu`` μ ≥ 0; ``lambda_`` λ in [0, 100], ``sigma`` σ in [0, 3] and ``iota`` ι in [0, 1] to begin with; the rates
    are those of their gradients; with ``control`` off they stay. ``max_staleness`` τ_max in versions."""

    kind: ClassVar[str] = "fedasmu"
    needs_base: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False
    mu: float = option(1.0, 0, 100)
    lambda_: float = option(1.0, *LAMBDA)
    sigma: float = option(0.5, *SIGMA)
    iota: float = option(0.1, *IOTA)
    max_staleness: int = option(99, 0, 1_000_000)
    control: bool = True
    control_gate: str = choice("relaxed", "exact")
    rate_lambda: float = option(1.0, 0, 1000)
    rate_sigma: float = option(0.1, 0, 1000)
    rate_iota: float = option(0.01, 0, 1000)
    xi_root: str = choice("separate", "joint")

    def init(self, model: Model) -> Fleet:
        return Fleet()

    def on(self, state: Fleet, event: MemberEvent, ctx: Context) -> tuple[Fleet, list[MemberEffect]]:
        if isinstance(event, Left):
            controls = {name: value for name, value in state.controls.items() if name != event.device}
            return evolve(state, controls=controls), []
        return state, []

    def reshape(self, state: Fleet, kept: Region) -> Fleet:
        """Sketches of another shape tell nothing about this one."""
        return evolve(state, controls={name: evolve(value, last=None) for name, value in state.controls.items()})

    def absorb(self, state: Fleet, model: Model, contribution: Contribution, ctx: Context) -> tuple[Fleet, Step | None]:
        name, bands = contribution.device.id, Bands.of(contribution.region)
        sizes, toward = bands.sizes, pull(model, contribution)
        controls = state.controls.get(name) or Controls(self.lambda_, self.sigma, self.iota)
        absorbed = state.absorbed | {band: state.absorbed.get(band, 0) + 1 for band in sizes}
        age = contribution.staleness + 1
        if self.control:
            controls = self._controlled(controls, bands.sketch(contribution.difference), contribution.base_version)
            times = {band: absorbed[band] for band in sizes}
            controls = evolve(controls, last=Mixed(bands.sketch(toward), times, age, ctx.version + 1))
        alphas = {band: self.alpha(controls, absorbed[band], age) for band in sizes}
        shares = bands.spread(alphas)
        coverage = zeros_like(model.weights)
        contribution.region.fill(coverage, 1)
        difference = contribution.region.lift({name: shares[name] * value for name, value in toward.items()})
        weight = sum(alphas[band] * size for band, size in sizes.items()) / sum(sizes.values())
        state = Fleet(state.controls | {name: controls}, absorbed)
        return state, Step(difference, coverage, (Contributor(contribution.key, weight),))

    def alpha(self, controls: Controls, absorbed: int, age: int) -> float:
        """Mixing weight in [0, 1) of the ``absorbed``-th update (from 1) of τ = ``age`` ≥ 1."""
        xi = self.mu * self.xi(controls, absorbed, age)
        return xi / (1 + xi)

    def xi(self, controls: Controls, absorbed: int, age: int) -> float:
        """Equation 2."""
        return controls.lambda_ / self._damping(controls, absorbed, age) + controls.iota

    def _damping(self, controls: Controls, absorbed: int, age: int) -> float:
        return float(absorbed**0.5 * age ** (controls.sigma * self._root))

    @property
    def _root(self) -> float:
        return 0.5 if self.xi_root == "joint" else 1.0

    def gradients(self, controls: Controls, last: Mixed, found: Mapping[int, float]) -> tuple[float, float, float]:
        """∂F/∂λ, ∂F/∂σ and ∂F/∂ι; ``found`` has ⟨d, v⟩ by band, divided by what the gradient is to be divided by."""
        by_lambda, by_iota = 0.0, 0.0
        for band, product in found.items():
            xi = self.xi(controls, last.absorbed[band], last.age)
            slope = -self.mu * product / (1 + self.mu * xi) ** 2
            by_iota += slope
            by_lambda += slope / self._damping(controls, last.absorbed[band], last.age)
        return by_lambda, -controls.lambda_ * self._root * log(last.age) * by_lambda, by_iota

    def _controlled(self, controls: Controls, found: Sketch, version: int) -> Controls:
        """Equation 3."""
        last = controls.last
        if last is None or (self.control_gate == "exact" and version != last.version):
            return controls
        slopes = self.gradients(controls, last, products(found, last.sketch))
        return evolve(
            controls,
            lambda_=_within(controls.lambda_ - self.rate_lambda * slopes[0], LAMBDA),
            sigma=_within(controls.sigma - self.rate_sigma * slopes[1], SIGMA),
            iota=_within(controls.iota - self.rate_iota * slopes[2], IOTA),
        )


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
