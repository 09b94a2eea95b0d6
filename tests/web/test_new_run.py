"""Starting a run from its form."""

from __future__ import annotations

import re

import pytest

from coordinator.errors import ShoalError
from coordinator.store.models import Run
from coordinator.training import recipe as recipes
from tests.coordinator.people import DirectCommands
from tests.web.conftest import post

FEDBUFF = recipes.presets()["fedbuff"]
FIELDS = {"recipe": "fedbuff", "model": "mlp", "dataset": "/srv/test.npz", "seed": "3", "target": "0.9"}


@pytest.fixture
def started(opened, monkeypatch):
    """What the coordinator was asked to start."""
    asked = []
    app, _ = opened
    commands = app.extensions["shoal"].commands
    kept = type(commands).start_run

    def start_run(self, **wanted):
        asked.append(wanted)
        return kept(self, **wanted)

    monkeypatch.setattr(type(commands), "start_run", start_run)
    return asked


def problems(page):
    return dict(re.findall(r'<span class="wrong" id="wrong-(\w+)">(.*?)</span>', page, re.DOTALL))


def field(page, name):
    return re.search(rf'<textarea id="f-{name}"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)[1]


def test_a_run_is_started_and_shown(olga, database, started):
    answer = post(olga, "/runs/new", **{**FIELDS, "recipe": FEDBUFF})

    assert (answer.status_code, answer.location) == (303, "/runs/run-1")
    [wanted] = started
    assert (wanted["model"], wanted["dataset"], wanted["target"], wanted["seed"]) == ("mlp", "/srv/test.npz", 0.9, 3)
    assert wanted["by"] == "olga"
    with database.read() as session:
        assert session.get(Run, "run-1").created_by == "olga"


def test_the_text_of_every_preset_can_be_had(olga):
    for name, text in recipes.presets().items():
        page = olga.get(f"/runs/new?recipe={name}").text
        assert recipes.parse(field(page, "recipe").replace("&#34;", '"').replace("&#39;", "'")) == recipes.parse(text)


def test_stop_rules_of_the_form_become_the_recipes(olga, started):
    post(olga, "/runs/new", **{**FIELDS, "recipe": FEDBUFF, "patience": "5", "deadline": "3600", "bytes": "1000000"})

    stop = recipes.parse(started[0]["recipe"]).stop
    assert (stop.patience, stop.deadline, stop.bytes) == (5, 3600.0, 1_000_000)


def test_without_a_test_set_the_devices_hold_outs_decide_on_the_target(olga, started):
    post(olga, "/runs/new", **{**FIELDS, "recipe": FEDBUFF, "dataset": ""})

    assert (started[0]["target"], recipes.parse(started[0]["recipe"]).stop.target) == (None, 0.9)


def test_everything_that_is_wrong_is_told_beside_its_field_and_nothing_is_lost(olga, started):
    wrong = {"recipe": "kind = 3", "model": "own", "spec": "{}", "target": "7", "seed": "x", "patience": "0"}
    answer = post(olga, "/runs/new", **{**FIELDS, **wrong})

    assert answer.status_code == 400
    found = problems(answer.text)
    assert set(found) == {"recipe", "spec", "target", "seed", "patience"}
    assert "unknown key" in found["recipe"]
    assert "expected a number above 0, at most 1" in found["target"]
    assert field(answer.text, "recipe") == "kind = 3"
    assert 'aria-invalid="true"' in answer.text
    assert started == []


@pytest.mark.parametrize(
    ("code", "detail", "name"),
    [
        ("bad-dataset", "/srv/test.npz is not an npz file", "dataset"),
        ("bad-model", "/srv/first.safetensors: it does not fit", "weights"),
    ],
)
def test_what_the_coordinator_refuses_stands_beside_the_field_it_is_about(olga, monkeypatch, code, detail, name):
    def refuse(self, **_):
        raise ShoalError(code, detail)

    monkeypatch.setattr(DirectCommands, "start_run", refuse)
    answer = post(olga, "/runs/new", **{**FIELDS, "recipe": FEDBUFF, "weights": "/srv/first.safetensors"})

    assert answer.status_code == 400
    assert detail in problems(answer.text)[name]


def test_a_clone_begins_with_what_the_run_was_started_with(olga, started):
    page = olga.get("/runs/new?from=har-pilot").text

    assert 'name="name" type="text" value="har-pilot"' in page
    assert 'value="/srv/shoal/har-test.npz"' in page
    assert 'value="0.9"' in page
    assert "<option selected>cnn1d</option>" in page
    assert 'kind = &#34;heterofl&#34;' in field(page, "recipe")
    assert '/runs/new?from=har-pilot' in olga.get("/runs/har-pilot").text


def test_a_viewer_gets_neither_the_form_nor_a_run(vic, started):
    assert vic.get("/runs/new").status_code == 403
    assert post(vic, "/runs/new", **FIELDS).status_code == 403
    assert "/runs/new" not in vic.get("/runs").text.replace("/runs/new?", "")
    assert started == []


def test_hostile_text_stays_text(olga):
    attack = "</textarea><script>alert(1)</script>\u202e" + "x" * 10_000
    page = post(olga, "/runs/new", **{**FIELDS, "recipe": attack, "name": attack, "model": attack}).text

    assert "<script>alert" not in page
    assert "characters, expected at most" in problems(page)["name"]
