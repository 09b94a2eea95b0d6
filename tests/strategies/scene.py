"""What the strategies' tests share: a model of four coordinates in one channel group, and what members are given."""

from __future__ import annotations

import numpy as np
from attrs import evolve

from coordinator.strategies.base import Context, Contribution, Cost, DeviceView, Model, Reported
from protocol.messages import Plan
from protocol.subnetwork import WIDTHS, Axis, Region, nested

LAYOUT = {"w": (Axis(4, "hidden"),)}
COSTS = {width: Cost(parameters=round(1000 * width), flops=round(4096 * width * width)) for width in WIDTHS}
PLAN = Plan(width=1.0, batch=4, steps=10, learning_rate=0.1, coding="float32")


def vector(*values):
    return {"w": np.array(values, np.float32)}


def model(*values, layout=LAYOUT):
    return Model(vector(*values), layout, COSTS)


def context(absorbed=0, now=1000.0, version=0):
    return Context(now, np.random.default_rng(0), version, absorbed)


def device(name="pi", group="", samples=100):
    return DeviceView(name, group, samples)


def contribution(*values, width=1.0, staleness=0, base=None, key="a/1", view=None):
    """An update of the first coordinates; ``base`` is the full-size vector it is relative to, ``view`` its device."""
    region = Region(LAYOUT, nested(LAYOUT, width))
    return Contribution(
        device=view or device(),
        key=key,
        difference=vector(*values),
        region=region,
        base=None if base is None else region.cut(base),
        base_version=0,
        staleness=staleness,
        samples=40,
        steps=10,
        loss=1.0,
        plan=evolve(PLAN, width=width),
    )


def report(view=None, *, width=1.0, peak=1.0, seconds=8.0, link=None, sent=0):
    """A sound update of 10 steps of 4 samples; ``peak`` is the squared gradient of its one tensor of one element."""
    return Reported(
        device=view or device(),
        plan=evolve(PLAN, width=width),
        version=0,
        commit=1,
        last=True,
        merges=(),
        steps=10,
        samples=40,
        loss=1.0,
        squared_gradient={"w": peak},
        squared_gradient_peak={"w": peak},
        sizes={"w": 1},
        seconds_train=seconds,
        seconds_link=link,
        bytes_link=sent,
    )
