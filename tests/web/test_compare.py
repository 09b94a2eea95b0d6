"""Runs side by side."""

from __future__ import annotations

import re

from coordinator.store.models import Run
from coordinator.store.queries import CurvePoint
from web import compare


def point(version, accuracy):
    return CurvePoint(version, 10.0 * version, 100 * version, accuracy, 1.0)


def test_runs_are_compared_at_what_all_of_them_reach():
    slow, fast = [point(1, 0.2), point(5, 0.5), point(9, 0.6)], [point(1, 0.4), point(2, 0.9)]

    level = compare.common([slow, fast])
    assert level == 0.588
    assert compare.reached(slow, level) == slow[2]
    assert compare.reached(fast, level) == fast[1]
    assert compare.reached(slow, 0.7) is None
    assert compare.common([slow, []]) is None
    assert compare.common([]) is None


def test_every_run_has_a_line_of_its_own(olga):
    figure = olga.get("/compare/chart?run=har-night&run=har-pilot").text
    data = olga.get("/compare/chart?run=har-night&run=har-pilot&data=1&x=version&y=loss").get_json()

    assert '"name":"run-0"' in figure
    assert '"name":"run-1"' in figure
    assert set(data["sources"]) == {"run-0", "run-1"}
    assert data["sources"]["run-1"]["x"][0] == 0
    assert data["properties"]["across"]["axis_label"] == "version"


def test_a_run_without_a_curve_stands_beside_the_others(olga):
    page = olga.get("/compare?run=har-night&run=har-wide").text

    assert re.search(r'data-key="har-wide".*?fedbuff', page, re.DOTALL)
    assert olga.get("/compare/chart?run=har-wide").status_code == 200


def test_a_simulated_run_says_so(olga, database):
    with database.write() as session:
        session.get(Run, "har-pilot").simulated = True

    page = olga.get("/compare?run=har-night&run=har-pilot").text
    assert page.count("simulated") == 2  # in the list to choose from, and in the table
