"""Promoting a version from its form."""

from __future__ import annotations

import re

import pytest

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from coordinator.fleet.releases import manifest_of
from coordinator.store.models import Model, ModelVersion, Release, Run
from tests.web.conftest import post
from tests.web.fleet import NOW

SPEC = ModelSpec("small", (4,), 3, (Dense(8), Relu(), Dense(3)))


@pytest.fixture
def run(opened):
    """One that has not got any further than its first weights."""
    _, database = opened
    with database.write() as session:
        session.add(Model(id=2, name="small", spec_sha256=SPEC.sha256, spec=SPEC.to_json(), created_at=NOW))
        session.flush()
        recipe = session.get(Run, "har-wide").recipe
        session.add(Run(id="fresh-1", model_id=2, recipe=recipe, recipe_name="fedbuff", seed=1, created_at=NOW))
        session.flush()
        first = ModelVersion(run_id="fresh-1", version=0, sha256="a" * 64, step_norm=0.0, updates=0, at=NOW)
        session.add(first)
    return "fresh-1"


def problems(page):
    return dict(re.findall(r'<span class="wrong" id="wrong-(\w+)">(.*?)</span>', page, re.DOTALL))


def test_a_version_is_promoted_and_stands_in_the_list_as_what_it_was_released(olga, run, database):
    assert f'href="/runs/{run}/promote?version=0"' in olga.get(f"/runs/{run}/versions").text
    assert 'value="0"' in olga.get(f"/runs/{run}/promote?version=0").text
    fields = {"version": "0", "name": "first", "accuracy_drop": "0", "milliseconds": "5", "widths": "0.5, 1"}
    answer = post(olga, f"/runs/{run}/promote", **fields)
    with database.read() as session:
        (row,) = session.query(Release)
        assert (answer.status_code, answer.location) == (303, f"/releases/{row.id}")
        assert (row.version, row.model_version, row.created_by) == ("first", 0, "olga")
        facts = manifest_of(row).facts
    assert {name: facts[name] for name in facts if name.startswith("max-")} == {
        "max-accuracy-drop": 0.0,
        "max-milliseconds": 5.0,
    }
    assert [name for name in facts if name.startswith("memory-")] == ["memory-1", "memory-0.5"]
    assert f"/runs/{run}" in olga.get(answer.location).text
    page = olga.get(f"/runs/{run}/versions").text
    assert f'<a href="{answer.location}">first</a>' in page
    assert "promote?version=0" not in page


@pytest.mark.parametrize(
    ("fields", "name", "sentence"),
    [
        ({"version": "7"}, "version", "not kept"),
        ({"version": "last"}, "", "newest or best"),
        ({"accuracy_drop": "2"}, "accuracy_drop", "at most 1"),
        ({"widths": "half"}, "widths", "such as 1, 0.5"),
        ({"widths": "7"}, "", "width is 7"),
        ({"memory": "much"}, "memory", "whole number"),
        ({"name": "no spaces"}, "", "letters, digits"),
    ],
)
def test_what_cannot_be_is_said_beside_the_field(olga, run, fields, name, sentence):
    answer = post(olga, f"/runs/{run}/promote", **{"version": "0", **fields})
    assert answer.status_code == 400
    assert sentence in (problems(answer.text)[name] if name else answer.text)


def test_who_may_only_look_sees_no_button(vic, run):
    assert "promote" not in vic.get(f"/runs/{run}/versions").text
    assert vic.get(f"/runs/{run}/promote").status_code == 403
