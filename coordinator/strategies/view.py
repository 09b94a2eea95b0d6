"""What members of a recipe see and make: the model, the devices, contributions and steps. Plain values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from attrs import field, frozen

from protocol.messages import Plan
from protocol.subnetwork import Layout, Region
from protocol.weights import Weights

Explanation = dict[str, float | int | str | None]


@frozen
class Cost:
    """What one nested width costs: parameters, and FLOPs to train on one sample."""

    parameters: int
    flops: int


@frozen
class Model:
    """The global model as members see it. ``costs`` has an entry for every width that policies may choose."""

    weights: Weights
    layout: Layout
    costs: Mapping[float, Cost]


@frozen
class Context:
    """What a decision may depend on besides its arguments. ``absorbed`` counts the updates aggregated so far.

    ``control``: the coordinator has a control set, so that :class:`Evaluate` is answered.
    """

    now: float
    rng: np.random.Generator
    version: int
    absorbed: int
    shape_epoch: int = 0
    control: bool = False


@frozen
class DeviceView:
    """What a policy may know about a device."""

    id: str
    group: str
    samples: int


@frozen
class Retry:
    """A policy has no work for a device now: it is to come back in ``seconds``."""

    seconds: float
    reason: str


@frozen
class Contribution:
    """An update as an aggregator sees it: ``difference`` over ``region``, cut tensors of the region's shapes.

    ``base`` is what the difference is relative to, cut likewise, for aggregators that need it, None for others: the
    weights of ``base_version``, or after a merge or an earlier commit the effective base. ``staleness`` ≥ 0 counts the
    versions the model advanced since ``base_version``. ``samples`` counts what was trained on, with repetitions; how
    many the device has stands in ``device``. ``plan`` is the one it trained by.
    """

    device: DeviceView
    key: str
    difference: Weights
    region: Region
    base: Weights | None
    base_version: int
    staleness: int
    samples: int
    steps: int
    loss: float
    plan: Plan


@frozen
class Contributor:
    """One update inside a step, and the weight it was taken with."""

    key: str
    weight: float


@frozen
class Step:
    """A change of the global model. ``coverage`` counts per coordinate the updates that cover it (full size)."""

    difference: Weights
    coverage: Weights
    contributors: tuple[Contributor, ...]


@frozen
class Verdict:
    """What a gate thinks of a contribution, and what it looked at. A ``refusal`` says why it is not admitted;
    ``quarantine``: nothing more is wanted of the device until an operator releases it."""

    scores: Explanation = field(factory=dict)
    refusal: str = ""
    quarantine: bool = False
