"""Models, their versions, and versions as files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coordinator.compiler.zoo import ZOO
from coordinator.store.models import Model, Run
from protocol import tensors
from tests.web.fleet import NOW


def test_a_model_says_what_each_width_keeps_and_which_runs_train_it(olga):
    page = olga.get(f"/models/{ZOO['cnn1d'].sha256}").text

    assert "274,822" in page
    assert "69,318" in page
    for run in ("har-night", "har-pilot", "har-wide"):
        assert f"/runs/{run}/versions" in page


def test_models_that_come_along_are_listed_until_they_are_trained(olga):
    page = olga.get("/models").text

    assert ZOO["mlp"].sha256 in page
    assert page.count(ZOO["cnn1d"].sha256) == 2  # as the key of its row, and as its link


def test_a_specification_of_another_time_is_told_of_not_tripped_over(olga, database):
    with database.write() as session:
        session.get(Model, 1).spec = {"layers": []}

    assert "cannot be read" in olga.get("/models").text
    assert "cannot be read" in olga.get(f"/models/{ZOO['cnn1d'].sha256}").text


def test_versions_say_whose_weights_are_kept(olga, database):
    with database.read() as session:
        newest = session.get(Run, "har-night").version
    page = olga.get("/runs/har-night/versions").text

    assert f"/runs/har-night/model?format=tflite&amp;version={newest}" in page
    assert page.count("not kept") == min(50, newest) - 1


def test_lineage_is_json_with_every_update(olga):
    found = json.loads(olga.get("/runs/har-night/versions/3/lineage.json").text)

    assert [len(version["updates"]) for version in found["versions"]][-1] > 0
    assert found["model"]["name"] == "har-cnn"
    assert {device["id"] for device in found["devices"]} <= {f"d{n:04d}" for n in range(12)}


@pytest.fixture
def fresh(opened):
    """A run that has not got any further than its first weights."""
    app, database = opened
    with database.write() as session:
        spec = ZOO["mlp"]
        session.add(Model(id=2, name="mlp", spec_sha256=spec.sha256, spec=spec.to_json(), created_at=NOW))
        session.flush()
        recipe = session.get(Run, "har-wide").recipe
        session.add(Run(id="fresh-1", model_id=2, recipe=recipe, recipe_name="fedbuff", seed=1, created_at=NOW))
    return app


@pytest.mark.parametrize(("width", "name"), [("1", "fresh-1-v0.safetensors"), ("0.5", "fresh-1-v0-w0.5.safetensors")])
def test_weights_can_be_had_at_any_width(fresh, olga, width, name):
    answer = olga.get(f"/runs/fresh-1/model?format=safetensors&width={width}")
    found, metadata = tensors.decode(answer.data)

    assert answer.headers["Content-Disposition"].endswith(name)
    assert json.loads(metadata["spec"])["classes"] == 6
    assert all(np.isfinite(value).all() for value in found.values())
    assert max(value.shape[0] for value in found.values() if value.ndim == 2) == 561
    assert max(value.shape[1] for value in found.values() if value.ndim == 2) == 256 * float(width)


def test_a_flatbuffer_can_be_had(fresh, vic_of_fresh):
    assert vic_of_fresh.get("/runs/fresh-1/model?format=tflite&width=0.25").data[4:8] == b"TFL3"


@pytest.fixture
def vic_of_fresh(fresh, database):
    from tests.web.conftest import log_in

    return log_in(fresh, database, "vic")


def test_a_version_that_is_not_kept_is_named_with_those_that_are(fresh, olga):
    answer = olga.get("/runs/fresh-1/model?format=safetensors&version=3")

    assert answer.status_code == 404
    assert "only those of 0" in answer.text
