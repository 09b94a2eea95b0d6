"""A run whose model is cut down: its rows, what devices fetch from then on, its measurements, its survival."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
from attrs import frozen

from coordinator.compiler.export import export, read_weights
from coordinator.compiler.shapes import layout
from coordinator.store import models, segments
from coordinator.strategies import POLICIES
from coordinator.strategies.base import Reported, Reshape, Stateless
from coordinator.training import live
from protocol import coding, tensors
from protocol.messages import Lineage
from protocol.subnetwork import Region
from protocol.weights import digest, zeros_like

from .house import RECIPE, TOY, trained

KEPT = (0, 2, 3, 5, 6)
ONE = RECIPE.replace("goal = 2", "goal = 1") + '[[policy]]\nkind = "cut"\n'
NORMED = TOY.replace('"relu"', '{"batch_norm": {}}, "relu"')


@frozen
class Cut(Stateless):
    """A policy that cuts the model down when the second update comes."""

    kind: ClassVar[str] = "cut"
    writes: ClassVar[frozenset[str]] = frozenset()
    waiting: ClassVar[str] = "none"

    def on(self, state, event, ctx):
        due = isinstance(event, Reported) and ctx.absorbed == 1 and not ctx.shape_epoch
        return None, [Reshape({"dense1": KEPT}, "five channels are enough")] if due else []

    def shape(self, state, plan, device, model, ctx):
        return None, plan, {}


@pytest.fixture
def run(house, monkeypatch, tmp_path, request):
    """A run with a test set whose model is cut down when the second update comes."""
    monkeypatch.setitem(POLICIES, "cut", Cut)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=rng.normal(size=(12, 4)), y=rng.integers(0, 3, 12))
    return house.start_run(ONE, getattr(request, "param", TOY), dataset=str(tmp_path / "test.npz"))


def fetched(house, assignment) -> tuple[dict[str, Any], dict[str, str]]:
    """The weights that an assignment names, and what is said about them."""
    return tensors.decode(house.blobs.get(assignment.weights.sha256))


def delivered(house, device):
    """Check in, fetch the weights, deliver: what the receipt says."""
    return answered(house, device, device.check_in())


def answered(house, device, assignment):
    """Deliver an update of the shapes that were fetched."""
    weights, said = fetched(house, assignment)
    difference = {name: np.full(part.shape, 0.1, np.float32) for name, part in weights.items()}
    body = tensors.encode(coding.encode(difference, assignment.plan.coding, zeros_like(difference))[0])
    named = dict.fromkeys(weights, 0.5)
    lineage = Lineage(version=assignment.version, shape_epoch=int(said["shape_epoch"]))
    given = {"lineage": lineage, "squared_gradient": named, "squared_gradient_peak": named}
    return device.announce(*trained(assignment, body=body, **given))


def test_work_of_the_old_shape_ends_and_work_of_the_new_one_goes_on(house, run):
    a, b = house.enrol("a", "b")
    late = b.check_in()
    a.work()
    receipt = a.work()
    assert (receipt.state, receipt.reason) == ("expired", "the model changed its shape when it came")
    assert b.deliver(late).state == "expired"
    assert house.events("model-changed") == ["version 2: five channels are enough"]
    assignment = a.check_in()
    assert assignment.artifact != late.artifact
    weights, said = fetched(house, assignment)
    assert {name: value.shape for name, value in weights.items()} == {
        "dense1.weight": (4, 5), "dense1.bias": (5,), "dense2.weight": (5, 3), "dense2.bias": (3,)
    }  # fmt: skip
    assert (said["shape_epoch"], json.loads(said["layout"])["dense1.bias"]) == ("1", [[5, "dense1", 1]])
    assert answered(house, a, assignment).state == "stored"
    assert house.row(models.Run).version == 3


@pytest.mark.parametrize("run", [TOY, NORMED], ids=["toy", "batch norm"], indirect=True)
def test_its_versions_are_measured(house, run):
    (a,) = house.enrol("a")
    assert [delivered(house, a).state for _ in range(3)] == ["stored", "expired", "stored"]
    house.until(lambda: {m.version for m in house.rows(models.Metric)} >= {3})
    found = {m.name: m.value for m in house.rows(models.Metric, version=3)}
    assert 0 <= found["accuracy"] <= 1
    assert 0 < found["loss"] < 10


@pytest.mark.parametrize("inputs", [1, 1000], ids=["from a snapshot", "from its inputs"])
def test_it_survives_a_crash(house, run, tmp_path, monkeypatch, inputs):
    monkeypatch.setattr(live, "SNAPSHOT_INPUTS", inputs)
    (a,) = house.enrol("a")
    a.work(), a.work(), delivered(house, a)
    held = a.check_in()
    house.until(lambda: house.rows(models.Metric, version=3))  # what is measured later would tell the two apart
    before = house.engines()[run].snapshot()
    other = house.crashed(tmp_path / "after")
    try:
        assert other.engines()[run].snapshot() == before
        device = type(a)(other, "a")
        again = device.check_in(held=held.id)
        assert (again.id, again.weights) == (held.id, held.weights)
        assert answered(other, device, again).state == "stored"
    finally:
        other.close()


def test_it_goes_out_as_a_model_of_its_own(house, run):
    (a,) = house.enrol("a")
    a.work(), a.work(), delivered(house, a)
    with house.database.read() as session:
        spec, weights, version = live.weights_of(
            session, house.blobs, lambda *place: segments.read(house.home / "segments", *place), run
        )
    assert (version, digest(weights)) == (3, digest(house.engines()[run].core.weights))
    assert Region(layout(spec)).shapes == {name: value.shape for name, value in weights.items()}
    assert spec.layers[0].units == 5
    again, found, _ = read_weights(export(spec, weights, form="safetensors"))
    assert (again, digest(found)) == (spec, digest(weights))
