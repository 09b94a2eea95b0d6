"""FedAsync: w ← (1 − α_t)w + α_t·w_i, α_t = α·s(staleness)."""

from __future__ import annotations

import pytest

from coordinator.strategies import FedAsync
from coordinator.strategies.base import Contributor, Expired

from .scene import context, contribution, device, model


@pytest.mark.parametrize(
    ("fedasync", "weights"),
    [
        # α = ½ throughout, for staleness 0, 3, 4, 5, 8
        (FedAsync(alpha=0.5, staleness="constant"), [1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2]),
        (FedAsync(alpha=0.5, staleness="polynomial", a=0.5), [1 / 2, 1 / 4, 0.5 / 5**0.5, 0.5 / 6**0.5, 1 / 6]),
        (FedAsync(alpha=0.5, staleness="polynomial", a=2), [1 / 2, 1 / 32, 1 / 50, 1 / 72, 1 / 162]),
        (FedAsync(alpha=0.5, staleness="polynomial", a=0), [1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2]),
        # 1 up to b = 4, then 1/(10·1 + 1) and 1/(10·4 + 1)
        (FedAsync(alpha=0.5, staleness="hinge", a=10, b=4), [1 / 2, 1 / 2, 1 / 2, 1 / 22, 1 / 82]),
        # b need not be whole: 1/(1·(3 − 2.5) + 1) = ⅔
        (FedAsync(alpha=0.5, staleness="hinge", a=1, b=2.5), [1 / 2, 1 / 3, 1 / 5, 1 / 7, 1 / 13]),
    ],
)
def test_the_staleness_functions(fedasync, weights):
    assert [fedasync.weight(staleness) for staleness in (0, 3, 4, 5, 8)] == pytest.approx(weights)


def test_every_weight_starts_from_the_same_alpha():
    """Not from the last one: weights do not multiply up over time."""
    fedasync, base = FedAsync(alpha=0.5, a=0.5), model(0, 0, 0, 0)
    given = contribution(8, 8, 8, 8, staleness=3, base=base.weights)
    for absorbed in (0, 1, 1000):
        _, step = fedasync.absorb(None, base, given, context(absorbed=absorbed))
        assert step.contributors == (Contributor("a/1", 0.25),)


def test_the_model_moves_towards_the_devices_weights_where_it_has_some():
    # The device ended at 1 + 3 = 4 and 1 + 7 = 8; ¼·(4 − 2) = ½, ¼·(8 − 0) = 2
    given = contribution(3, 7, width=0.5, base=model(1, 1, 1, 1).weights, staleness=3)
    state, step = FedAsync(alpha=0.5).absorb(None, model(2, 0, 5, 6), given, context())
    assert state is None
    assert step.difference["w"].tolist() == [0.5, 2, 0, 0]
    assert step.coverage["w"].tolist() == [1, 1, 0, 0]
    assert step.contributors == (Contributor("a/1", 0.25),)


def test_at_alpha_one_a_fresh_device_replaces_the_model():
    now = model(1, 2, 3, 4)
    _, step = FedAsync(alpha=1).absorb(None, now, contribution(5, 5, 5, 5, base=now.weights), context())
    assert step.difference["w"].tolist() == [5, 5, 5, 5]


def test_it_needs_bases_and_says_so():
    assert FedAsync.needs_base
    with pytest.raises(ValueError, match="needs the base"):
        FedAsync().absorb(None, model(0, 0, 0, 0), contribution(1, 1, 1, 1), context())


def test_it_remembers_nothing():
    assert FedAsync().on(None, Expired(device(), 0), context()) == (None, [])


def test_hyper_parameters_have_ranges():
    with pytest.raises(ValueError, match="staleness is 'linear', expected one of constant, polynomial, hinge"):
        FedAsync(staleness="linear")
    with pytest.raises(ValueError, match=r"alpha is 1\.5, expected a number from 0 to 1"):
        FedAsync(alpha=1.5)
