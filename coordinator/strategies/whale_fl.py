"""WHALE-FL: the width follows a utility that weighs what a device can teach against how long it takes.

Su et al.: WHALE-FL: Wireless and Heterogeneity Aware Latency Efficient Federated Learning over Mobile Devices via
Adaptive Subnetwork Scheduling, AAAI 2025 (arXiv 2405.00885 v3):

    U_n = D_n · √F̄_n · (T_set / T_n)^β,   s = U_n / A,   width = the highest of L levels whose threshold i/L ≤ s

with D_n samples, F̄_n the Fisher proxy averaged over a window of the device's reports (delay δ, half window h), T_n
its time for one assignment. The Fisher proxy is the authors': the largest mean squared gradient of any tensor and
step, divided by the batch.

Choices, where the published code is silent or wrong: the window is uniform and indexed by a device's own reports;
T_n is predicted for the *full width* (compute scaled by FLOPs from the widest width measured, transfer by
parameters), because on the last width's basis small subnetworks look fast for ever and no device passes 1/4; T_set is
the median of those times and A the largest utility divided by 0.9, both taken once, when the first window of
at least half of the devices is full, and kept; a width moves one level per assignment, and only past the threshold
by 0.02. Until calibration, and until a device's own window is full, it trains the smallest width.
"""

from __future__ import annotations

from statistics import median
from typing import Any, ClassVar

from attrs import evolve, field, frozen

from protocol.messages import Plan
from protocol.subnetwork import WIDTHS

from .base import (
    Context,
    DeviceView,
    Explanation,
    Left,
    MemberEffect,
    MemberEvent,
    Model,
    Reported,
    Shapeless,
    Waiting,
    option,
)

SMOOTHING = 0.3
MARGIN = 0.02
HEADROOM = 0.9
SECONDS, GOODPUT, PROXY = (1e-9, 1e6), (1.0, 1e12), (0.0, 1e12)
"""What a device may claim: seconds per sample, bytes per second, squared gradients. Beyond lies a lie or a bug."""


@frozen
class Record:
    """What is known of one device. ``fisher`` holds its newest reports' proxies, oldest first.

    ``seconds`` is the smoothed training time per sample at each width, ``goodput`` bytes/s, ``level`` the index of
    its width now (0 is the smallest).
    """

    samples: int
    reports: int = 0
    fisher: tuple[float, ...] = ()
    seconds: dict[float, float] = field(factory=dict)
    goodput: float | None = None
    level: int = 0


@frozen
class Fleet:
    """All devices; ``scale`` A and ``reference`` T_set once they are calibrated."""

    records: dict[str, Record]
    scale: float | None = None
    reference: float | None = None


def _descending(instance: Any, attribute: Any, value: tuple[float, ...]) -> None:
    if not value or list(value) != sorted(set(value), reverse=True) or not set(value) <= set(WIDTHS):
        raise ValueError(f"widths are {value}, expected some of {WIDTHS}, largest first")


@frozen
class WhaleFL(Shapeless):
    """``beta`` β, ``delay`` δ and ``half_window`` h in reports; ``scale`` A and ``reference`` T_set (seconds), 0 for
    automatic; ``widths`` the levels, largest first."""

    kind: ClassVar[str] = "whale_fl"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    beta: float = option(1.0, 0, 10)
    delay: int = option(5, 0, 1000)
    half_window: int = option(2, 0, 100)
    scale: float = option(0.0, 0, 1e12)
    reference: float = option(0.0, 0, 1e9)
    widths: tuple[float, ...] = field(default=WIDTHS, validator=_descending)

    def init(self, model: Model) -> Fleet:
        return Fleet({}, self.scale or None, self.reference or None)

    def on(self, state: Fleet, event: MemberEvent, ctx: Context) -> tuple[Fleet, list[MemberEffect]]:
        if isinstance(event, Left):
            state = evolve(state, records={k: v for k, v in state.records.items() if k != event.device})
        elif isinstance(event, Reported):
            learned = self._learn(state.records.get(event.device.id), event)
            state = evolve(state, records={**state.records, event.device.id: learned})
        return state, []

    def shape(
        self, state: Fleet, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Fleet, Plan, Explanation]:
        record = state.records.get(device.id) or Record(device.samples)
        record = evolve(record, samples=device.samples)
        fleet = self._calibrated(evolve(state, records={**state.records, device.id: record}), plan, model)
        utility = self._utility(fleet, record, plan, model)
        share = utility / fleet.scale if utility is not None and fleet.scale else None
        level = self._level(record.level, share)
        record = evolve(record, level=level)
        width = self.widths[-1 - level]
        explanation: Explanation = {
            "width": width,
            "samples": record.samples,
            "fisher": self._fisher(record),
            "seconds": self._time(record, plan, model),
            "reference": fleet.reference,
            "utility": utility,
            "scale": fleet.scale,
            "share": share,
        }
        if share is None:
            explanation["warm_up"] = f"report {record.reports} of {self._window}, or the fleet is not calibrated yet"
        return evolve(fleet, records={**fleet.records, device.id: record}), evolve(plan, width=width), explanation

    @property
    def _window(self) -> int:
        """Reports until the first window is full."""
        return self.delay + 2 * self.half_window + 1

    def _learn(self, record: Record | None, event: Reported) -> Record:
        record = record or Record(event.device.samples)
        proxy = max((peak / event.sizes[name] for name, peak in event.squared_gradient_peak.items()), default=0.0)
        trained = event.steps * event.plan.batch
        seconds = dict(record.seconds)
        if trained and event.seconds_train > 0:
            measured = _clamp(event.seconds_train / trained, SECONDS)
            seconds[event.plan.width] = _smooth(seconds.get(event.plan.width), measured)
        goodput = record.goodput
        if event.seconds_link and event.bytes_link:
            goodput = _smooth(goodput, _clamp(event.bytes_link / event.seconds_link, GOODPUT))
        return evolve(
            record,
            samples=event.device.samples,
            reports=record.reports + 1,
            fisher=(*record.fisher, _clamp(proxy / event.plan.batch, PROXY))[-self._window :],
            seconds=seconds,
            goodput=goodput,
        )

    def _fisher(self, record: Record) -> float | None:
        """F̄: the mean over the 2h+1 reports that end δ reports before the newest; None until they are there."""
        if len(record.fisher) < self._window:
            return None
        window = record.fisher[: 2 * self.half_window + 1]
        return sum(window) / len(window)

    def _time(self, record: Record, plan: Plan, model: Model) -> float | None:
        """Predicted seconds of one assignment at full width: training, and the weights down and up."""
        if not record.seconds:
            return None
        widest = max(record.seconds)
        full = model.costs[1.0]
        seconds = record.seconds[widest] * full.flops / model.costs[widest].flops * plan.steps * plan.batch
        if record.goodput:
            seconds += 8 * full.parameters / record.goodput
        return seconds

    def _utility(self, fleet: Fleet, record: Record, plan: Plan, model: Model) -> float | None:
        fisher, seconds = self._fisher(record), self._time(record, plan, model)
        if fisher is None or not seconds or not fleet.reference:
            return None
        return float(record.samples * fisher**0.5 * (fleet.reference / seconds) ** self.beta)

    def _calibrated(self, fleet: Fleet, plan: Plan, model: Model) -> Fleet:
        ready = [r for r in fleet.records.values() if self._fisher(r) is not None]
        if (fleet.scale and fleet.reference) or not ready or 2 * len(ready) < len(fleet.records):
            return fleet
        times = [seconds for r in ready if (seconds := self._time(r, plan, model))]
        if not times:
            return fleet
        fleet = evolve(fleet, reference=fleet.reference or median(times))
        utilities = [u for r in ready if (u := self._utility(fleet, r, plan, model))]
        return evolve(fleet, scale=fleet.scale or (max(utilities) / HEADROOM if utilities else None))

    def _level(self, level: int, share: float | None) -> int:
        """At most one level up or down, and only with a margin past its threshold."""
        if share is None:
            return level
        levels = len(self.widths)
        if level + 1 < levels and share >= (level + 1) / levels + MARGIN:
            return level + 1
        if level > 0 and share < level / levels - MARGIN:
            return level - 1
        return level


def _clamp(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else (1 - SMOOTHING) * old + SMOOTHING * new
