"""WHALE-FL: the width follows a utility that weighs what a device can teach against how long it takes.

Su et al.: WHALE-FL: Wireless and Heterogeneity Aware Latency Efficient Federated Learning over Mobile Devices via
Adaptive Subnetwork Scheduling, AAAI 2025 (arXiv 2405.00885 v3):

    U_n = D_n · √F̄_n · (T_set / T_n)^β,   s = U_n / A,   width = the highest of L levels whose threshold i/L ≤ s

with D_n samples, F̄_n the Fisher proxy averaged over a window of the device's reports (delay δ, half window h), T_n
its time for one assignment. The Fisher proxy is the authors': the largest mean squared gradient of any tensor and
step, divided by the batch.

Choices, where the published code is silent or wrong, and how to have it as published:

* The window is uniform and indexed by a device's own reports. In the code every record is the newest one and the
  division stands inside the sum, which gives F·(1/m + 1/m² + … + 1/m^m) with m = 2h + 1: ``window_mode = "authors"``.
* T_n is predicted for the *full width*, because on the basis of the last width small subnetworks look fast for ever
  and no device passes 1/4: ``t_basis = "last_width"``.
* A subnetwork that has nothing left to learn shows no gradients, although the whole model would: with the proxy as it
  is, devices stay narrow for ever. So proxies are taken relative to the fleet's usual one at their width;
  ``per_width = false`` takes them as they are.
* T_set is the median of those times and A the largest utility divided by 0.9, taken when the first window of at least
  half of the devices is full. T_set is kept. From then on A follows the geometric mean of the utilities at check-ins,
  divided by 0.9: training starts narrow, and devices that are worth as much as usual train the whole model to its end.
  (A scale that follows the largest utility keeps all devices narrow for one that has much data.)
  ``scale_mode = "once"`` keeps A; with ``per_width = false`` the widths then rise and fall again as in the paper, for
  all gradients shrink.
* A width moves one level per assignment, and only past the threshold by 0.02. Until calibration, and until a
  device's own window is full, it trains the smallest width.
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
    choice,
    option,
)
from .conditions import SMOOTHING, Conditions, clamped, followed

MARGIN = 0.02
HEADROOM = 0.9
PROXY = 0.0, 1e12
"""What a device may claim of squared gradients. Beyond lies a lie or a bug."""


@frozen
class Record:
    """What is known of one device. ``fisher`` holds its newest reports' proxies, oldest first.

    ``level`` is the index of its width now (0 is the smallest).
    """

    samples: int
    reports: int = 0
    fisher: tuple[float, ...] = ()
    conditions: Conditions = field(factory=Conditions)
    level: int = 0


@frozen
class Fleet:
    """All devices; ``scale`` A and ``reference`` T_set once they are calibrated; the usual ``fisher`` proxy of each
    width."""

    records: dict[str, Record]
    scale: float | None = None
    reference: float | None = None
    fisher: dict[float, float] = field(factory=dict)


def _descending(instance: Any, attribute: Any, value: tuple[float, ...]) -> None:
    if not value or list(value) != sorted(set(value), reverse=True) or not set(value) <= set(WIDTHS):
        raise ValueError(f"widths are {value}, expected some of {WIDTHS}, largest first")


@frozen
class WhaleFL(Shapeless):
    """``beta`` β, ``delay`` δ and ``half_window`` h in reports; ``scale`` A and ``reference`` T_set (seconds), 0 for
    automatic; ``widths`` the levels, largest first; ``longest``, seconds that an assignment may be predicted to take,
    0 for any."""

    kind: ClassVar[str] = "whale_fl"
    writes: ClassVar[frozenset[str]] = frozenset({"width"})
    waiting: ClassVar[Waiting] = "none"
    beta: float = option(1.0, 0, 10)
    delay: int = option(5, 0, 1000)
    half_window: int = option(2, 0, 100)
    scale: float = option(0.0, 0, 1e12)
    reference: float = option(0.0, 0, 1e9)
    widths: tuple[float, ...] = field(default=WIDTHS, validator=_descending)
    scale_mode: str = choice("running", "once")
    window_mode: str = choice("uniform", "authors")
    fisher_stat: str = choice("max_tensor_mean_sq", "trace")
    t_basis: str = choice("full_width", "last_width")
    per_width: bool = True
    longest: float = option(0.0, 0, 1e9)

    def init(self, model: Model) -> Fleet:
        return Fleet({}, self.scale or None, self.reference or None)

    def on(self, state: Fleet, event: MemberEvent, ctx: Context) -> tuple[Fleet, list[MemberEffect]]:
        if isinstance(event, Left):
            state = evolve(state, records={k: v for k, v in state.records.items() if k != event.device})
        elif isinstance(event, Reported):
            state = self._learned(state, event)
        return state, []

    def shape(
        self, state: Fleet, plan: Plan, device: DeviceView, model: Model, ctx: Context
    ) -> tuple[Fleet, Plan, Explanation]:
        record = evolve(state.records.get(device.id) or Record(device.samples), samples=device.samples)
        fleet = self._calibrated(_with(state, device.id, record), plan, model)
        utility = self._utility(fleet, record, plan, model)
        fleet = self._rescaled(fleet, utility)
        share = utility / fleet.scale if utility is not None and fleet.scale else None
        level = self._affordable(self._level(record.level, share), record, plan, model)
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
        elif level < self._level(record.level, share):
            explanation["longest"] = self.longest
        return _with(fleet, device.id, evolve(record, level=level)), evolve(plan, width=width), explanation

    @property
    def _window(self) -> int:
        """Reports until the first window is full."""
        return self.delay + 2 * self.half_window + 1

    # -- what reports tell ---------------------------------------------------------------------------------------

    def _learned(self, fleet: Fleet, event: Reported) -> Fleet:
        record, width = fleet.records.get(event.device.id) or Record(event.device.samples), event.plan.width
        proxy = clamped(self._proxy(event) / event.plan.batch, PROXY)
        if self.per_width:
            usual = followed(fleet.fisher.get(width), proxy)
            fleet = evolve(fleet, fisher={**fleet.fisher, width: usual})
            proxy = clamped(proxy / usual, PROXY) if usual else 0.0
        record = evolve(
            record,
            samples=event.device.samples,
            reports=record.reports + 1,
            fisher=(*record.fisher, proxy)[-self._window :],
            conditions=record.conditions.after(event),
        )
        return _with(fleet, event.device.id, record)

    def _proxy(self, event: Reported) -> float:
        if self.fisher_stat == "trace":
            return sum(event.squared_gradient.values())
        return max((peak / event.sizes[name] for name, peak in event.squared_gradient_peak.items()), default=0.0)

    def _fisher(self, record: Record) -> float | None:
        """F̄: the mean over the 2h+1 reports that end δ reports before the newest; None until they are there."""
        if len(record.fisher) < self._window:
            return None
        size = 2 * self.half_window + 1
        if self.window_mode == "authors":
            return sum((record.fisher[-1] / size**power for power in range(1, size + 1)), 0.0)
        return sum(record.fisher[:size]) / size

    def _time(self, record: Record, plan: Plan, model: Model) -> float | None:
        """T: predicted seconds of one assignment."""
        width = self.widths[-1 - record.level] if self.t_basis == "last_width" else 1.0
        return record.conditions.time(width, plan, model)

    # -- utility and scale ---------------------------------------------------------------------------------------

    def _utility(self, fleet: Fleet, record: Record, plan: Plan, model: Model) -> float | None:
        fisher, seconds = self._fisher(record), self._time(record, plan, model)
        if fisher is None or not seconds or not fleet.reference:
            return None
        return float(record.samples * fisher**0.5 * (fleet.reference / seconds) ** self.beta)

    def _calibrated(self, fleet: Fleet, plan: Plan, model: Model) -> Fleet:
        if fleet.scale and fleet.reference:
            return fleet
        ready = [r for r in fleet.records.values() if self._fisher(r) is not None]
        if not ready or 2 * len(ready) < len(fleet.records):
            return fleet
        times = [seconds for r in ready if (seconds := self._time(r, plan, model))]
        if not times:
            return fleet
        fleet = evolve(fleet, reference=fleet.reference or median(times))
        utilities = [u for r in ready if (u := self._utility(fleet, r, plan, model))]
        return evolve(fleet, scale=fleet.scale or (max(utilities) / HEADROOM if utilities else None))

    def _rescaled(self, fleet: Fleet, utility: float | None) -> Fleet:
        """The scale follows the geometric mean of utilities at check-ins, about as fast as a device's estimates."""
        if self.scale or self.scale_mode == "once" or not fleet.scale or not utility:
            return fleet
        pace = SMOOTHING / len(fleet.records)
        return evolve(fleet, scale=fleet.scale ** (1 - pace) * (utility / HEADROOM) ** pace)

    # -- levels --------------------------------------------------------------------------------------------------

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

    def _affordable(self, level: int, record: Record, plan: Plan, model: Model) -> int:
        """The highest level up to ``level`` that is predicted to end in time, the smallest if none is."""
        while self.longest and level:
            seconds = record.conditions.time(self.widths[-1 - level], plan, model)
            if seconds is None or seconds <= self.longest:
                break
            level -= 1
        return level


def _with(fleet: Fleet, device: str, record: Record) -> Fleet:
    return evolve(fleet, records={**fleet.records, device: record})
