"""What the engine's tests share: a small model of two layers, recipes, and devices that speak to an engine."""

from __future__ import annotations

import hashlib

import numpy as np
from attrs import evolve

from coordinator.strategies.base import Cost, DeviceView
from coordinator.training.engine import Engine, Setting
from coordinator.training.inputs import CheckedIn, Delivered, Offered
from coordinator.training.recipe import Recipe, parse
from protocol import tensors
from protocol.coding import encode
from protocol.messages import CheckIn, Lineage, Timings, Update
from protocol.subnetwork import CLASSES, Axis, Region, nested
from protocol.weights import zeros_like

LAYOUT = {
    "hidden.weight": (Axis(3), Axis(8, "hidden")),
    "hidden.bias": (Axis(8, "hidden"),),
    "out.weight": (Axis(8, "hidden"), Axis(2, CLASSES)),
}
WHOLE = Region(LAYOUT)
def cost(part):
    """What a part of the model costs: as many operations as parameters, times thirty."""
    parameters = Region(LAYOUT, part).parameters
    return Cost(parameters, 30 * parameters)


NOW = 1_700_000_000.0

FEDBUFF = """
[plan]
batch = 4
steps = 5
learning_rate = 0.1
lease = 60

[aggregator]
kind = "fedbuff"
goal = 2
max_staleness = 1
"""
FEDASMU = FEDBUFF.replace('"fedbuff"\ngoal = 2', '"fedasmu"')
INT8 = FEDBUFF.replace("lease = 60", 'lease = 60\ncoding = "int8"')
HALF = FEDBUFF + '[[policy]]\nkind = "fixed"\nwidth = 0.5\n'
WHALE = INT8 + '[[policy]]\nkind = "whale_fl"\ndelay = 0\nhalf_window = 0\n[[transform]]\nkind = "clip"\nnorm = 0.5\n'
FEDAVG = (
    FEDBUFF.replace('"fedbuff"\ngoal = 2\nmax_staleness = 1', '"fedavg"\ngoal = 2\ntimeout = 30')
    + '[[policy]]\nkind = "cohort"\ngoal = 2\nover_selection = 0.5\n'
)
BSP = FEDAVG.replace('"cohort"\ngoal = 2\nover_selection = 0.5', '"ssp"\nbound = 0\npatience = 100')
FEDASYNC = FEDBUFF.replace('"fedbuff"\ngoal = 2', '"fedasync"')
SSP = FEDASYNC + '[[policy]]\nkind = "ssp"\nbound = 1\npatience = 50\n[[policy]]\nkind = "fixed"\nwidth = 0.5\n'
FRESH = FEDASMU + '[[policy]]\nkind = "fresh_model"\n[[policy]]\nkind = "fedrolex"\nwidth = 0.5\n'
DRAWN = FEDBUFF + '[[policy]]\nkind = "heterofl_dynamic"\n'
GUARDED = HALF + "".join(f'[[admission]]\nkind = "{kind}"\n' for kind in ("rate", "label_flip"))
GUARDED += '[[admission]]\nkind = "outlier"\nwarm_up = 3\n'
KRUM = FEDBUFF.replace('"fedbuff"', '"multi_krum"')
MIXED = FEDASMU + '[[policy]]\nkind = "heterofl"\nwidths = { a = 0.25, b = 0.5 }\n'


def start() -> dict[str, np.ndarray]:
    """The initial weights: small whole numbers, so that sums stay exact."""
    return {name: np.arange(np.prod(s), dtype=np.float32).reshape(s) for name, s in WHOLE.shapes.items()}


def engine(recipe: str | Recipe = FEDBUFF, *, target: float | None = None, seed: int = 3) -> Engine:
    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    return Engine(Setting("run-1", recipe, LAYOUT, cost, seed, target), start())


def check_in(device="pi", *, held=None, unsent=(), features=("train", "int8"), group="", samples=50, number=0):
    return CheckedIn(
        DeviceView(device, group, samples),
        CheckIn(
            id=f"{device}.{number}",
            protocol=1,
            agent="0.1.0",
            runtime="tflite-2.14",
            features=features,
            samples=samples,
            input=(3,),
            classes=2,
            held=held,
            unsent=unsent,
        ),
    )


def offer(engine: Engine, device="pi", now=NOW, **said) -> Offered:
    """What a device is offered when it checks in; it must be the last effect."""
    effect = engine.handle(check_in(device, **said), now)[-1]
    assert isinstance(effect, Offered)
    return effect


def trained(offer: Offered, value=1.0, **given) -> Delivered:
    """The update of an offer: every element of the difference is ``value``, or drawn if that is a generator."""
    shapes = Region(LAYOUT, nested(LAYOUT, offer.plan.width)).shapes
    if isinstance(value, np.random.Generator):
        difference = {name: value.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    else:
        difference = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
    return delivered(offer, difference, **given)


def delivered(offer: Offered, difference, *, device=None, tensor=None, body=None, **changes) -> Delivered:
    """A sound update with this difference, from the device the work was offered to.

    Wrong on purpose: ``device`` is another sender, ``tensor`` replaces some tensors, ``body`` all bytes, and
    ``changes`` fields of the update.
    """
    encoded = difference | tensor if tensor else encode(difference, offer.plan.coding, zeros_like(difference))[0]
    body = body or tensors.encode(encoded)
    update = Update(
        assignment=offer.assignment,
        commit=1,
        run=offer.assignment.rpartition(".")[0],
        lineage=Lineage(version=offer.version, shape_epoch=0),
        samples=offer.plan.steps * offer.plan.batch,
        steps=offer.plan.steps,
        loss=0.5,
        accuracy=0.5,
        squared_gradient=dict.fromkeys(difference, 0.25),
        squared_gradient_peak=dict.fromkeys(difference, 0.5),
        timings=Timings(download=1.0, train=2.0, upload=None),
        bytes_down=1000,
        coding=offer.plan.coding,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        chunk=0,
    )
    return Delivered(device or offer.device, evolve(update, **changes), body)
