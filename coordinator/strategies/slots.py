"""When in its training a device asks for the fresh model: what is learned about slots, for :mod:`.fresh_model`.

A *meta model* proposes the slot of a device's first training: an LSTM that goes through the slots, with a softmax over
"wait" and "ask" at each, P(a_l | a_1 … a_{l−1}); who has waited to the end asks in the last. It learns by REINFORCE
(Williams, Machine Learning 8, 1992). Afterwards a *table* of the device's own says what it was worth to ask earlier, at
the same slot or later (Q-learning: Watkins, Dayan, Machine Learning 8, 1992).
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array, Weights

Floats = NDArray[np.float64]

ACTIONS = (("the same", 0), ("earlier", -1), ("later", 1))
"""What a table chooses from; among equals the first."""


def meta_model(hidden: int, slots: int, rng: np.random.Generator) -> Weights:
    """A new meta model that asks at each slot with a chance of about 2 / ``slots``."""

    def drawn(rows: int, columns: int) -> Array:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    weights: Weights = {
        "input": drawn(4 * hidden, 2),
        "recurrent": drawn(4 * hidden, hidden),
        "bias": np.zeros(4 * hidden, np.float32),
        "out": np.float32(0.1) * drawn(2, hidden),
        "out_bias": np.array([0.0, -np.log(max(1.0, slots / 2 - 1))], np.float32),
    }
    weights["bias"][hidden : 2 * hidden] = 1  # the forget gate begins open
    return weights


def chances(weights: Weights, slots: int) -> Floats:
    """The probability of each slot; they add up to 1."""
    ask = _asking([step.chances for step in _forward(weights, slots)])
    odds: Floats = ask * np.concatenate([[1.0], np.cumprod(1 - ask)[:-1]])
    return odds


def reinforced(weights: Weights, slots: int, slot: int, amount: float) -> Weights:
    """The meta model after a step of ``amount`` up the gradient of log P(slot), no longer than ``amount`` itself:
    longer ones were seen to end in the last slot for good."""
    slopes = gradient(weights, slots, slot)
    amount /= max(1.0, sum(float(np.sum(slope**2)) for slope in slopes.values()) ** 0.5)
    return {name: (value + amount * slopes[name]).astype(np.float32) for name, value in weights.items()}


def gradient(weights: Weights, slots: int, slot: int) -> dict[str, Floats]:
    """∇ log P(slot), by backpropagation through time."""
    steps = _forward(weights, slots)
    slopes = {name: np.zeros(value.shape) for name, value in weights.items()}
    hidden, cell = np.zeros(weights["recurrent"].shape[1]), np.zeros(weights["recurrent"].shape[1])
    for at in range(min(slot, slots - 2), -1, -1):  # in the last slot there is no choice
        step = steps[at]
        logits = np.eye(2)[int(at == slot)] - step.chances
        slopes["out"] += np.outer(logits, step.hidden)
        slopes["out_bias"] += logits
        hidden = hidden + weights["out"].T @ logits
        hidden, cell = _backward(weights, step, hidden, cell, slopes)
    return slopes


def learned(
    table: Array, slot: int, action: int, reached: int, reward: float, *, rate: float, discount: float
) -> Array:
    """The [slots, actions] table after ``action`` at ``slot`` led to ``reached`` and earned ``reward``."""
    table = table.copy()
    table[slot, action] += np.float32(rate * (reward + discount * float(table[reached].max()) - table[slot, action]))
    return table


@frozen(eq=False)
class _Step:
    """One slot: what went in, the gates, and what came out; ``chances`` of waiting and asking."""

    x: Floats
    before: Floats
    cell_before: Floats
    gates: Floats
    cell: Floats
    hidden: Floats
    chances: Floats


def _asking(pairs: list[Floats]) -> Floats:
    return np.array([pair[1] for pair in pairs[:-1]] + [1.0])


def _forward(weights: Weights, slots: int) -> list[_Step]:
    size = weights["recurrent"].shape[1]
    hidden, cell, steps = np.zeros(size), np.zeros(size), []
    for at in range(slots):
        x = np.array([float(at > 0), (at + 1) / slots])  # it has waited before, and how far it is
        sums = weights["input"] @ x + weights["recurrent"] @ hidden + weights["bias"]
        gates = np.concatenate([1 / (1 + np.exp(-sums[: 3 * size])), np.tanh(sums[3 * size :])])
        take, keep, show, new = np.split(gates, 4)
        now = keep * cell + take * new
        out = show * np.tanh(now)
        logits = weights["out"] @ out + weights["out_bias"]
        powers = np.exp(logits - logits.max())
        steps.append(_Step(x, hidden, cell, gates, now, out, powers / powers.sum()))
        hidden, cell = out, now
    return steps


def _backward(
    weights: Weights, step: _Step, hidden: Floats, cell: Floats, slopes: dict[str, Floats]
) -> tuple[Floats, Floats]:
    """Adds one step's share to ``slopes``; the gradients of the hidden and cell values before it."""
    take, keep, show, new = np.split(step.gates, 4)
    shown = np.tanh(step.cell)
    cell = cell + hidden * show * (1 - shown**2)
    sums = np.concatenate(
        [
            cell * new * take * (1 - take),
            cell * step.cell_before * keep * (1 - keep),
            hidden * shown * show * (1 - show),
            cell * take * (1 - new**2),
        ]
    )
    slopes["input"] += np.outer(sums, step.x)
    slopes["recurrent"] += np.outer(sums, step.before)
    slopes["bias"] += sums
    return weights["recurrent"].T @ sums, cell * keep
