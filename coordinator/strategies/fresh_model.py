"""FedASMU's other half: while a device trains it asks for the fresh model once, and merges it.

Liu, Jia, Che et al.: FedASMU, AAAI 2024 (arXiv 2312.05770), Algorithm 2 and Equations 7 to 9. A device that trains from
version o and is sent version g goes on from

    w' = (1 − β) w + β w_g,   β = μφ / (1 + μφ),   φ = γ/√g · (1 − υ/√(g − o + 1))

γ and υ belong to the device and follow the gradient of its loss F at w'. With G = ⟨∇F(w'), w_g − w⟩:

    ∂F/∂γ = Gμ/(1 + μφ)² · (1 − υ/√(g − o + 1))/√g,   ∂F/∂υ = −Gμ/(1 + μφ)² · γ/(√g √(g − o + 1))

When to ask is learned as well: see :mod:`.slots`. The reward is the loss before the merge less the loss after it.

Choices: everything is decided here, the device merges as it is told and reports both losses of the same batch. G is
taken from them, (after − before)/β. Training is divided into ``slots``; rewards count up to 1 and G up to 10 either
way, for they are a device's word. υ stays in [0, 1] and γ above 0, so that every merge moves something and can be
learned from.
The gradients of the paper's Equation 9 are not published; these follow from Equations 7 and 8 by the chain rule.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import evolve, field, frozen

from protocol.messages import Merge, Plan
from protocol.weights import Array, Weights

from .base import (
    Context,
    DeviceView,
    Explanation,
    FreshAsked,
    Left,
    MemberEffect,
    MemberEvent,
    Model,
    Reported,
    SendFresh,
    Shapeless,
    Waiting,
    choice,
    option,
)
from .slots import ACTIONS, chances, learned, meta_model, reinforced

GAMMA, UPSILON = (0.01, 100.0), (0.0, 1.0)
REWARD, SLOPE = 1.0, 10.0


@frozen
class Sent:
    """The fresh model that was sent: version g, for one that trained from o, at β."""

    version: int
    base: int
    merge: float

    def is_(self, merge: Merge) -> bool:
        """Another policy may have had the same version merged, e.g. with a commit."""
        return merge.version == self.version and merge.merge == self.merge


@frozen
class Asker:
    """What is known of one device. ``slot`` (from 0) is the one it asks in, ``action`` and ``left`` how its table came
    to it from another; None as long as the meta model has chosen."""

    gamma: float
    upsilon: float
    table: Array
    slot: int | None = None
    left: int = 0
    action: int | None = None
    sent: Sent | None = None


@frozen
class Askers:
    """All devices, the meta model (empty before the first device), and the mean reward of what it proposed."""

    devices: dict[str, Asker] = field(factory=dict)
    meta: Weights = field(factory=dict)
    baseline: float = 0.0


@frozen
class FreshModel(Shapeless):
    """``gamma`` γ and ``upsilon`` υ to begin with, and the rates of their gradients; with ``control`` off they stay.
    ``slot`` "fixed" asks in the middle always. ``epsilon`` of the table's choices are by chance."""

    kind: ClassVar[str] = "fresh_model"
    writes: ClassVar[frozenset[str]] = frozenset({"refresh"})
    waiting: ClassVar[Waiting] = "none"
    mu: float = option(1.0, 0, 100)
    gamma: float = option(1.0, *GAMMA)
    upsilon: float = option(0.5, *UPSILON)
    control: bool = True
    rate_gamma: float = option(0.1, 0, 1000)
    rate_upsilon: float = option(0.1, 0, 1000)
    slot: str = choice("learned", "fixed")
    slots: int = option(10, 2, 100)
    epsilon: float = option(0.1, 0, 1)
    rate_table: float = option(0.1, 0, 1)
    discount: float = option(0.9, 0, 1)
    hidden: int = option(8, 1, 64)
    rate_meta: float = option(0.3, 0, 100)

    def init(self, model: Model) -> Askers:
        return Askers()

    def on(self, state: Askers, event: MemberEvent, ctx: Context) -> tuple[Askers, list[MemberEffect]]:
        match event:
            case Left():
                devices = {name: asker for name, asker in state.devices.items() if name != event.device}
                return evolve(state, devices=devices), []
            case FreshAsked():
                return self._asked(state, event, ctx.version)
            case Reported():
                return self._merged(state, event), []
        return state, []

    def shape(
        self, state: Askers, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Askers, Plan, Explanation]:
        if self.slot == "learned" and not state.meta:
            state = evolve(state, meta=meta_model(self.hidden, self.slots, ctx.rng))
        asker, how = self._chosen(state, self._asker(state, device.id), ctx.rng)
        assert asker.slot is not None
        refresh = max(1, round((asker.slot + 1) * plan.steps / (self.slots + 1)))
        explanation: Explanation = {"refresh": refresh, "slot": asker.slot + 1, "slots": self.slots, **how}
        return _with(state, device.id, asker), evolve(plan, refresh=refresh), explanation

    def _asker(self, state: Askers, device: str) -> Asker:
        new = Asker(self.gamma, self.upsilon, np.zeros((self.slots, len(ACTIONS)), np.float32))
        return state.devices.get(device, new)

    # -- when to ask ---------------------------------------------------------------------------------------------

    def _chosen(self, state: Askers, asker: Asker, rng: np.random.Generator) -> tuple[Asker, Explanation]:
        """The asker in its next slot, and how it came there."""
        if self.slot == "fixed":
            return evolve(asker, slot=self.slots // 2, sent=None), {"by": "fixed"}
        if asker.slot is None:
            odds = chances(state.meta, self.slots)
            slot = int(rng.choice(self.slots, p=odds / odds.sum()))
            return evolve(asker, slot=slot, sent=None), {"by": "meta model", "chance": float(odds[slot])}
        row, tried = asker.table[asker.slot], rng.random() < self.epsilon
        action = int(rng.integers(len(ACTIONS))) if tried else int(row.argmax())
        name, move = ACTIONS[action]
        slot = min(max(asker.slot + move, 0), self.slots - 1)
        how: Explanation = {"by": "chance" if tried else "table", "action": name, "value": float(row[action])}
        return evolve(asker, slot=slot, left=asker.slot, action=action, sent=None), how

    def _rewarded(self, state: Askers, asker: Asker, reward: float) -> tuple[Askers, Asker]:
        """What the merge was worth goes to who chose its slot."""
        if self.slot == "fixed" or asker.slot is None:
            return state, asker
        if asker.action is None:
            amount = self.rate_meta * (reward - state.baseline)
            meta = reinforced(state.meta, self.slots, asker.slot, amount)
            return evolve(state, meta=meta, baseline=0.9 * state.baseline + 0.1 * reward), asker
        given = {"rate": self.rate_table, "discount": self.discount}
        table = learned(asker.table, asker.left, asker.action, asker.slot, reward, **given)
        return state, evolve(asker, table=table)

    # -- how much of it ------------------------------------------------------------------------------------------

    def _asked(self, state: Askers, event: FreshAsked, version: int) -> tuple[Askers, list[MemberEffect]]:
        asker = self._asker(state, event.device.id)
        merge = self.beta(asker, version, event.version) if version > event.version else 0.0
        if not merge:
            return state, []
        asker = evolve(asker, sent=Sent(version, event.version, merge))
        return _with(state, event.device.id, asker), [SendFresh(event.device.id, merge, 0.0)]

    def beta(self, asker: Asker, version: int, base: int) -> float:
        """Equation 8, in [0, 1)."""
        phi = self.mu * self._phi(asker, version, base)
        return float(phi / (1 + phi))

    def _phi(self, asker: Asker, version: int, base: int) -> float:
        return float(asker.gamma / version**0.5 * (1 - asker.upsilon / (version - base + 1) ** 0.5))

    def gradients(self, asker: Asker, sent: Sent, slope: float) -> tuple[float, float]:
        """∂F/∂γ and ∂F/∂υ, with ``slope`` G."""
        root, gap = sent.version**0.5, (sent.version - sent.base + 1) ** 0.5
        outer = slope * self.mu / (1 + self.mu * self._phi(asker, sent.version, sent.base)) ** 2
        return outer * (1 - asker.upsilon / gap) / root, -outer * asker.gamma / (root * gap)

    def _merged(self, state: Askers, event: Reported) -> Askers:
        asker = self._asker(state, event.device.id)
        sent = asker.sent
        losses = next((_losses(merge) for merge in event.merges if sent is not None and sent.is_(merge)), None)
        if sent is None or losses is None:
            return state
        before, after = losses
        asker = evolve(asker, sent=None)
        if self.control:
            by_gamma, by_upsilon = self.gradients(asker, sent, _within((after - before) / sent.merge, (-SLOPE, SLOPE)))
            asker = evolve(
                asker,
                gamma=_within(asker.gamma - self.rate_gamma * by_gamma, GAMMA),
                upsilon=_within(asker.upsilon - self.rate_upsilon * by_upsilon, UPSILON),
            )
        state, asker = self._rewarded(state, asker, _within(before - after, (-REWARD, REWARD)))
        return _with(state, event.device.id, asker)


def _losses(merge: Merge) -> tuple[float, float] | None:
    if merge.loss_before is None or merge.loss_after is None:
        return None
    return merge.loss_before, merge.loss_after


def _with(state: Askers, device: str, asker: Asker) -> Askers:
    return evolve(state, devices=state.devices | {device: asker})


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
