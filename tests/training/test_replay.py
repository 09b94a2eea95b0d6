"""A run is what its ledger says: once more from all inputs, version by version."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import delete, update

from coordinator.errors import ShoalError
from coordinator.store import models
from coordinator.training.replay import replay
from protocol.weights import digest

from .house import FEDASMU, RECIPE, WHALE


def played(house, recipe, turns=7):
    """A run to which three devices have contributed."""
    run = house.start_run(recipe)
    devices, rng = house.enrol("a", "b", "c"), np.random.default_rng(5)
    for turn in range(turns):
        devices[turn % 3].work(rng)
    return run


def again(house, run, without=(), **given):
    with house.database.read() as session:
        return replay(session, house.blobs, house.segments.read, run, frozenset(without), **given)


@pytest.mark.parametrize("recipe", [RECIPE, FEDASMU, WHALE], ids=["fedbuff", "fedasmu", "whale-fl"])
def test_every_version_is_the_same(house, recipe):
    run = played(house, recipe)
    core = house.engines()[run].core
    steps = []
    found = again(house, run, progress=lambda done, total: steps.append((done, total)))
    assert (found.version, found.sha256) == (core.version, digest(core.weights))
    assert (found.compared, found.differs) == (core.version, None)
    assert steps == [(n + 1, found.inputs) for n in range(found.inputs)]


def test_a_version_that_differs_is_named(house):
    run = played(house, RECIPE)
    house.steward.write(
        lambda session: session.execute(
            update(models.ModelVersion).where(models.ModelVersion.version == 2).values(sha256="0" * 64)
        )
    )
    assert again(house, run).differs == 2


def test_a_re_sum_counts_a_device_as_zero(house):
    """FedBuff adds up means: without one of two devices, half of every step is left."""
    run = house.start_run()
    a, b = house.enrol("a", "b")
    start = house.engines()[run].core.weights["dense1.bias"].copy()
    for _ in range(3):
        first, second = a.check_in(), b.check_in()
        a.deliver(first, 1.0)
        b.deliver(second, 3.0)
    found, other = again(house, run), again(house, run, ["b"])
    assert np.allclose(found.weights["dense1.bias"] - start, 3 * 2.0)
    assert np.allclose(other.weights["dense1.bias"] - start, 3 * 0.5)
    assert (other.version, other.compared, other.differs) == (3, 0, None)


def test_what_was_pruned_cannot_be_replayed(house):
    run = played(house, RECIPE)
    house.steward.write(lambda session: session.execute(delete(models.Input).where(models.Input.seq > 8)))
    with pytest.raises(ShoalError, match=r"its inputs lead to version \d, the ledger has 3: some may have been pruned"):
        again(house, run)
    with pytest.raises(ShoalError, match="There is no run 'nothing'"):
        again(house, "nothing")
