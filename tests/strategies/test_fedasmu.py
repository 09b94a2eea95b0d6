"""FedASMU, Equations 1 and 2: w ← (1 − α)w + αw_i, α = μξ/(1 + μξ), ξ = λ/(√t · τ^σ) + ι, τ = staleness + 1."""

from __future__ import annotations

import pytest

from coordinator.strategies import FedASMU
from coordinator.strategies.base import Contributor, Expired

from .scene import context, contribution, device, model, vector

BARE = FedASMU(lambda_=1, iota=0, mu=1)


@pytest.mark.parametrize(
    ("t", "alpha"),
    # ξ = 1/√t: 1/(1+1), 1/(√10+1), 1/(10+1), 1/(√1000+1), 1/(100+1)
    [(1, 0.5), (10, 0.2403), (100, 0.0909), (1000, 0.0307), (10_000, 0.0099)],
)
def test_a_fresh_update_weighs_less_as_time_passes(t, alpha):
    assert BARE.alpha(t, staleness=0) == pytest.approx(alpha, abs=5e-5)


def test_sigma_does_not_matter_for_a_fresh_update():
    assert FedASMU(sigma=3, iota=0).alpha(7, 0) == FedASMU(sigma=0, iota=0).alpha(7, 0)


@pytest.mark.parametrize(
    ("fedasmu", "t", "staleness", "alpha"),
    [
        (FedASMU(sigma=0.5, iota=0), 100, 19, 0.0219),  # ξ = 1/(10·√20) = .02236
        (FedASMU(sigma=1, iota=0), 4, 4, 1 / 11),  # ξ = 1/(2·5) = .1
        (FedASMU(lambda_=3, sigma=2, iota=0), 1, 2, 0.25),  # ξ = 3/9
        (FedASMU(mu=2, iota=0), 1, 0, 2 / 3),  # μξ = 2
        (FedASMU(iota=0.1), 10**12, 0, 0.0909),  # only the floor is left: .1/1.1
        (FedASMU(lambda_=0, iota=0), 1, 0, 0.0),
    ],
)
def test_alpha_by_hand(fedasmu, t, staleness, alpha):
    assert fedasmu.alpha(t, staleness) == pytest.approx(alpha, abs=5e-5)


def test_the_model_moves_towards_the_devices_weights_where_it_has_some():
    # t = 1, τ = 1: α = ½. The device ended at 1 + 3 = 4 and 1 + 7 = 8; ½·(4 − 2) = 1, ½·(8 − 0) = 4
    given = contribution(3, 7, width=0.5, base=vector(1, 1, 1, 1))
    state, step = BARE.absorb(None, model(2, 0, 5, 6), given, context(absorbed=0))
    assert state is None
    assert step.difference["w"].tolist() == [1, 4, 0, 0]
    assert step.coverage["w"].tolist() == [1, 1, 0, 0]
    assert step.contributors == (Contributor("a/1", 0.5),)


def test_time_counts_absorbed_updates_and_not_versions():
    given = contribution(11, 11, 11, 11, base=vector(0, 0, 0, 0))
    # the 100th update, whatever the version is: α = 1/11
    _, step = BARE.absorb(None, model(0, 0, 0, 0), given, context(absorbed=99, version=3))
    assert step.difference["w"] == pytest.approx([1, 1, 1, 1])


def test_progress_the_model_has_made_meanwhile_is_taken_back_in_part():
    # An update without any difference pulls towards its old base: that is what mixing weights means.
    given = contribution(0, 0, 0, 0, base=vector(0, 0, 0, 0))
    _, step = BARE.absorb(None, model(2, 2, 2, 2), given, context())
    assert step.difference["w"].tolist() == [-1, -1, -1, -1]


def test_it_needs_bases_and_says_so():
    assert FedASMU.needs_base
    with pytest.raises(ValueError, match="needs the base"):
        BARE.absorb(None, model(0, 0, 0, 0), contribution(1, 1, 1, 1), context())


def test_it_remembers_nothing():
    assert BARE.init(model(0, 0, 0, 0)) is None
    assert BARE.on(None, Expired(device()), context()) is None
