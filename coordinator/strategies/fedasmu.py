"""FedASMU: every update is mixed in at once, with a weight that falls with staleness and with time.

Liu, Jia, Che et al.: FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-aware Model Update,
AAAI 2024 (arXiv 2312.05770), Equations 1 and 2:

    w_t = (1 − α) w_{t−1} + α w_i,   α = μξ / (1 + μξ),   ξ = λ / (√t · τ^σ) + ι,   τ = t − o + 1

with w_i the device's weights and o the version they started from. Choices: σ stands outside the root; t counts the
absorbed updates (from 1), not the versions. λ, σ and ι are the same for all devices and constant here. At ι = 0 the
weight falls as 1/√t and freezes the model, hence the floor by default. A coordinate that the subnetwork does not
hold keeps its value.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from .base import Context, Contribution, Model, Stateless, Step, option
from .fedasync import mixed


@frozen
class FedASMU(Stateless):
    """``mu`` μ ≥ 0, ``lambda_`` λ in [0, 100], ``sigma`` σ in [0, 3], ``iota`` ι in [0, 1], ``max_staleness`` τ_max."""

    kind: ClassVar[str] = "fedasmu"
    needs_base: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False
    mu: float = option(1.0, 0, 100)
    lambda_: float = option(1.0, 0, 100)
    sigma: float = option(0.5, 0, 3)
    iota: float = option(0.1, 0, 1)
    max_staleness: int = option(99, 0, 1_000_000)

    def alpha(self, absorbed: int, staleness: int) -> float:
        """Mixing weight in [0, 1) of the ``absorbed``-th update (from 1), ``staleness`` ≥ 0 versions old."""
        xi = self.lambda_ / (absorbed**0.5 * (staleness + 1) ** self.sigma) + self.iota
        return float(self.mu * xi / (1 + self.mu * xi))

    def absorb(self, state: None, model: Model, contribution: Contribution, ctx: Context) -> tuple[None, Step | None]:
        alpha = self.alpha(ctx.absorbed + 1, contribution.staleness)
        return None, mixed(model, contribution, alpha)
