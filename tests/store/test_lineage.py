"""From a version back to everything that made it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from benchmarks.fleet import Fleet
from coordinator.cli import main
from coordinator.errors import ShoalError
from coordinator.store import lineage
from coordinator.store.models import Run, Update


@pytest.fixture
def session(database):
    Fleet().write(database)
    with database.write() as session:
        session.get(Run, "digits-1").version = 40
    with database.read() as session:
        yield session


def test_every_version_names_the_updates_it_merged(session):
    made = list(lineage.versions(session, "digits-1", 12))
    assert [one["version"] for one in made] == list(range(13))
    assert [len(one["updates"]) for one in made] == [0] + [4] * 12
    for one in made:
        assert {update["applied_version"] for update in one["updates"]} <= {one["version"]}
    first = made[1]["updates"][0]
    assert (first["base_version"], first["weight"], len(first["weights_sha256"])) == (0, 1.0, 64)


def test_nothing_that_came_later_has_a_part_in_it(session):
    made = list(lineage.versions(session, "digits-1", 5))
    count = select(func.count()).where(Update.run_id == "digits-1", Update.applied_version <= 5)
    assert sum(len(one["updates"]) for one in made) == session.scalar(count) == 20
    delivered = {update["device_id"] for one in made for update in one["updates"]}
    assert [device["id"] for device in lineage.devices(session, "digits-1", 5)] == sorted(delivered)


def test_the_origin_names_recipe_model_seed_and_metrics(session):
    told = lineage.origin(session, "digits-1", 12)
    assert (told["recipe"]["name"], told["model"]["name"], told["seed"]) == ("whale-fl", "mlp", 0)
    assert told["initial_sha256"] is None
    assert set(told["metrics"]) == {"accuracy", "loss"}


@pytest.mark.parametrize(("run", "version"), [("nonsense", None), ("digits-1", 9999)])
def test_what_is_not_there_is_not_found(session, run, version):
    with pytest.raises(ShoalError, match=r"There is no run|has no version 9999") as caught:
        lineage.origin(session, run, version)
    assert caught.value.code == "not-found"


def test_the_command_writes_it_as_one_document(session, database):
    said = CliRunner().invoke(main, ["history", "lineage", "digits-1"], env={"SHOAL_DATABASE": database.url})
    document = json.loads(said.output)
    assert (document["run"], document["version"], len(document["versions"])) == ("digits-1", 40, 41)
    assert {device["id"] for device in document["devices"]} >= {"pi5-001"}
