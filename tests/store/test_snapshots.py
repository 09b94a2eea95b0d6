"""Which snapshots of a run stay."""

from __future__ import annotations

import pytest

from coordinator.store.snapshots import Thinning


@pytest.mark.parametrize(
    ("thinning", "versions", "spare"),
    [
        (Thinning(), [], []),
        (Thinning(), [0, 3], []),
        (Thinning(), [0, 3, 3, 9], [0, 1]),
        (Thinning(last=3), [0, 3, 3, 9], [0]),
        # of 0–9, 10–19 and 20–29 the first one each, and the last two
        (Thinning(every=10), [0, 4, 10, 12, 17, 23, 24, 25, 26], [1, 3, 4, 6]),
        (Thinning(every=10), [7, 9, 31], []),
        (Thinning(every=10), [7, 9, 31, 32, 33], [1]),
    ],
)
def test_the_last_ones_stay_and_the_first_of_every_so_many_versions(thinning, versions, spare):
    assert thinning.spare(versions) == spare


def test_what_stays_once_stays_when_newer_ones_come():
    thinning, kept = Thinning(every=10), []
    for version in range(0, 200, 3):
        kept.append(version)
        for place in reversed(thinning.spare(kept)):
            del kept[place]
    firsts = [next(v for v in range(0, 200, 3) if v // 10 == decade) for decade in range(20)]
    assert kept == sorted({*firsts, 195, 198})


def test_recovery_needs_two():
    with pytest.raises(ValueError, match="'last' must be >= 2"):
        Thinning(last=1)
