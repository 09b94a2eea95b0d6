"""Rows and the page they end on."""

from __future__ import annotations

import pytest

from benchmarks.measure import Row, compare, spread
from benchmarks.report import fsync_rate, merge

SETTLED = Row("a.one", 0.5, "ms", 1.0, 2.0, 0.1)
SHAKY = Row("a.two", 0.5, "ms", 1.0, 2.0, 0.3)
PLAIN = Row("b.size", 44.04, "MB")


def test_a_row_as_json_has_six_fields_and_says_when_it_proves_nothing():
    assert SETTLED.to_json() == {
        "name": "a.one", "value": 0.5, "unit": "ms", "reference": 1.0, "ratio": 2.0, "spread": 0.1,
    }  # fmt: skip
    assert SHAKY.to_json()["unsettled"] is True
    assert "unsettled" not in PLAIN.to_json()


def test_spread_is_the_distance_of_the_quartiles_over_the_median():
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == (6 - 2) / 4


def test_a_run_of_one_benchmark_replaces_its_section_only(tmp_path):
    page, order = tmp_path / "docs" / "benchmarks.md", ["a", "b"]
    merge(page, {"b": [PLAIN]}, {"machine": "first"}, order)
    merge(page, {"a": [SETTLED, SHAKY]}, {"machine": "second"}, order)
    merge(page, {"a": [SHAKY]}, {"machine": "third"}, order)
    text = page.read_text()
    assert text.index("## a") < text.index("## b")
    assert "| b.size | 44.04 | MB |  |  |  |" in text
    assert "| a.two | 0.5 | ms | 1 | 2.00 *unsettled* | 30% |" in text
    assert "machine first" in text
    assert "machine third" in text
    assert "second" not in text
    assert "a.one" not in text


def test_quick_calls_are_repeated_until_a_block_can_be_timed():
    calls = {"ours": 0, "reference": 0}

    def call(side):
        calls[side] += 1

    row = compare("x", lambda: call("ours"), lambda: call("reference"), pairs=3)
    assert min(calls.values()) > 1000
    assert row.ratio is not None
    assert row.value > 0


def test_fsync_rate_is_measured_in_the_folder(tmp_path):
    assert fsync_rate(tmp_path, 3) > 0
    with pytest.raises(FileNotFoundError):
        fsync_rate(tmp_path / "absent", 1)
