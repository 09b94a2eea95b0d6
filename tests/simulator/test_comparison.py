"""Experiments side by side, on results small enough to work out by hand."""

from __future__ import annotations

import json
import math

import pytest

from coordinator.errors import ShoalError
from coordinator.simulator import comparison, report

DEVICE = {"training": 60.0, "transfer": 10.0, "waiting": 30.0, "away": 20.0, "accuracy": 0.9}


def result(seed, accuracies, recipe="fedavg", *, step=10.0, data="digits"):
    count = range(len(accuracies))
    return {
        "form": 1, "run": f"{recipe}-s{seed}", "recipe": recipe, "seed": seed, "model": "digits", "parameters": 19210,
        "population": "pi-mixed", "until": "1h", "seconds": 120.0, "versions": len(accuracies), "ended": "1 h",
        "dealt": {
            "data": data, "split": "iid", "held_out": "0.2", "devices": 2, "test_samples": 9, "smallest": 1,
            "median": 2, "largest": 3,
        },
        "updates": {"applied": 8}, "updates_per_second": 3.0, "accuracy": accuracies[-1],
        "curve": {
            "version": list(count), "seconds": [step * n for n in count], "accuracy": accuracies,
            "loss": [1.0 for _ in count], "bytes_up": [100 * n for n in count], "bytes_down": [200 * n for n in count],
            "training": [5.0 * n for n in count], "joules": [7.0 * n for n in count], "updates": list(count),
        },
        "widths": {"seconds": 3.0, "counts": {"0.25": [1] * 40, "1": [3] * 40}},
        "staleness": {"0": 6, "3": 2},
        "devices": [{"id": "a", "group": "pi", **DEVICE}, {"id": "b", "group": "pi", **DEVICE}],
        "timeline": [["a", 0.0, 3.0, 1.0, "applied"], ["b", 1.0, 4.0, 0.25, "stale"]],
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """Two experiments of two seeds each; the second takes half the time of the first."""
    slow = [0.0, 0.6, 0.9, 0.9, 0.9, 0.9]
    for name, step in (("slow", 10.0), ("fast", 5.0)):
        (tmp_path / name).mkdir()
        for seed in (0, 1):
            one = result(seed, slow if seed == 0 else [0.0, *slow], name, step=step)
            (tmp_path / name / f"seed-{seed}.json").write_text(json.dumps(one))
    return tmp_path


def test_the_target_is_reached_where_the_mean_of_three_is(folders):
    found = comparison.compare([folders / "slow", folders / "fast"], 0.79)
    slow, fast = found.entries
    assert (slow.reached, slow.label, fast.label) == (2, "slow", "fast")
    # .6 .9 .9 is the first mean above .79: at the fourth evaluation, 30 s; a step later for the other seed.
    assert slow.costs["seconds"] == comparison.Spread(35.0, pytest.approx(math.sqrt(50)))
    assert slow.costs["bytes"].mean == 300 * 3.5
    assert slow.final.mean == pytest.approx(0.9)
    assert slow.waiting.mean == pytest.approx(30 / 100)


def test_ratios_are_paired_by_seed(folders):
    found = comparison.compare([folders / "slow", folders / "fast"], 0.8)
    assert found.entries[0].ratios == {}
    ratio = found.entries[1].ratios["seconds"]
    assert (ratio.mean, ratio.low, ratio.high, ratio.seeds) == pytest.approx((0.5, 0.5, 0.5, 2))


def test_the_interval_of_a_geometric_mean():
    ratio = comparison.ratio([(1, 2), (1, 4), (1, 8)])
    # Logarithms -1, -2, -3 (base 2): deviation 1, t(2) = 4.303.
    half = 2 ** (4.303 / math.sqrt(3))
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((0.25, 0.25 / half, 0.25 * half))
    assert comparison.ratio([(1, 2)]) == comparison.Ratio(0.5, None, None, 1)
    assert comparison.ratio([(0, 2)]) is None


def test_who_never_reaches_the_target_counts_with_all_it_spent(folders):
    found = comparison.compare([folders / "slow"], 0.95)
    assert found.entries[0].reached == 0
    assert found.entries[0].costs["seconds"].mean == 120.0


def test_without_a_target_it_is_a_share_of_the_first_ones_final_accuracy(folders):
    assert comparison.compare([folders / "fast", folders / "slow"]).target == pytest.approx(0.98 * 0.9)


def test_equal_recipes_are_told_apart_by_their_folders(folders):
    found = comparison.compare([folders / "slow", folders / "slow"])
    assert [entry.label for entry in found.entries] == ["slow (slow)", "slow (slow)"]


def test_results_on_different_data_are_not_compared(folders):
    (folders / "fast" / "seed-0.json").write_text(json.dumps(result(0, [0.5] * 4, "fast", data="other")))
    with pytest.raises(ShoalError, match="measured on different data"):
        comparison.compare([folders / "slow", folders / "fast"])


@pytest.mark.parametrize(
    ("text", "sentence"), [(None, "holds no seed-N"), ("[]", "is not the result"), ("{", "is not")]
)
def test_folders_without_results(tmp_path, text, sentence):
    if text:
        (tmp_path / "seed-0.json").write_text(text)
    with pytest.raises(ShoalError, match=sentence):
        comparison.compare([tmp_path])


def test_the_report_needs_nothing_beside_it_and_escapes_what_it_shows(folders):
    one = result(0, [0.1, 0.5, 0.7, 0.8], "<img src=x>")
    (folders / "fast" / "seed-0.json").write_text(json.dumps(one))
    (folders / "fast" / "seed-1.json").unlink()
    page = report.html(comparison.compare([folders / "slow", folders / "fast"], 0.5))
    assert "<img src=x>" not in page.split("<script")[0]
    assert "&lt;img src=x&gt;" in page
    assert "<script src=" not in page
    assert "<link" not in page.split("<script")[0]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seconds", 59.0, "59.0 s"), ("seconds", 7200.0, "2.00 h"), ("bytes", 3.4e9, "3.40 GB"),
        ("joules", 7200.0, "2.00 Wh"), ("version", 140.0, "140"), ("training", 0.0, "0 s"),
    ],
)  # fmt: skip
def test_costs_as_people_read_them(name, value, text):
    assert report.shown(name, comparison.Spread(value, None)) == text
