"""The outbox on links that change their speed ten times a second, in virtual time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.modelled_link import ModelledLink
from benchmarks.shaped_link import Outage, Rates, ShapedLink, outages


def wandering(mean: float, seed: int) -> Rates:
    """Bytes/s that wander as a cellular link's do: by a tenth from slot to slot, to half and to twice the mean."""
    steps = np.random.default_rng(seed).normal(0, 0.1, 3000)
    level, levels = 0.0, []
    for step in steps:
        level = min(0.7, max(-0.7, level + step))
        levels.append(level)
    return Rates(mean * np.exp(np.array(levels)) * 0.1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("mean", "bar"), [(1e6, 0.3), (125e3, 0.3), (50e3, 0.3), (14e3, 1.0)])
def test_a_heartbeat_waits_a_third_of_a_second_at_most_beside_updates(mean: float, bar: float, seed: int) -> None:
    link = ModelledLink(wandering(mean, seed), size=100_000)
    link.run(100.0)
    assert np.quantile([waited for _, waited in link.beats], 0.95) <= bar
    assert link.stored * link.size > 0.4 * 100 * link.up.during(0.0, 100.0)
    assert link.sent <= 1.1 * (link.stored + 1) * link.size


def test_what_passes_by_hand() -> None:
    """0.1 s slots of 10, nothing, and 20 bytes."""
    rates = Rates(np.array([10.0, 0.0, 20.0]))
    assert rates.passed(5, 0.0) == pytest.approx(0.05)
    assert rates.passed(10, 0.05) == pytest.approx(0.225)
    assert rates.passed(60, 0.0) == pytest.approx(0.6)
    assert rates.during(0.0, 0.3) == pytest.approx(100.0)


def test_outages_take_their_share_of_the_time() -> None:
    found = outages(0.12, 3.0, 10_000.0, seed=0)
    assert sum(one.end - one.start for one in found) == pytest.approx(1200, rel=0.2)
    assert all(one.end < other.start for one, other in pairwise(found))
    link = ShapedLink(0, Rates.steady(1.0), Rates.steady(1.0), outages=(Outage(1.0, 2.0), Outage(5.0, 6.0)))
    assert [link.out(start, start + 0.5) for start in (0.0, 0.6, 1.5, 1.9, 2.1, 4.6, 7.0)] == [
        *(False, True, True, True, False, True, False)
    ]  # fmt: skip
