"""What Prometheus scrapes, and who may."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from attrs import evolve
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fleet import Fleet
from coordinator import api, auth
from tests.conftest import BACKENDS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def fleet(database):
    fleet = Fleet()
    fleet.write(database)
    return fleet


@pytest.fixture
def samples(app, fleet, bearer, clock):
    clock.now = fleet.end
    response = app.test_client().get("/metrics", headers=bearer["vic"])
    assert response.status_code == 200
    families = list(text_string_to_metric_families(response.text))
    return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}


def test_the_numbers_are_those_of_the_database(samples, database):
    assert samples["shoal_devices", "idle"] == 12
    assert samples["shoal_devices", "offline"] == 0
    assert samples["shoal_run_state", "digits-2", "fedbuff", "finished"] == 1
    assert sum(value for (name, *_), value in samples.items() if name == "shoal_run_updates") == 384
    assert samples["shoal_store_rows_total", "update"] == 400
    assert samples["shoal_store_updates_waiting",] == 3
    assert 0.5 < samples["shoal_run_accuracy", "digits-1"] < 1
    assert samples["shoal_store_bytes",] > 100_000
    assert samples["shoal_updates_per_second",] > 0
    assert samples["shoal_broker_devices_heard",] == 12


def test_an_empty_coordinator_has_metrics_too(app, bearer):
    assert "shoal_updates_per_second 0.0" in app.test_client().get("/metrics", headers=bearer["vic"]).text


def test_every_metric_is_documented_and_every_documented_one_is_there(samples):
    section = (DOCS / "operations.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    assert set(re.findall(r"`(shoal_\w+)`", section)) == {name for name, *_ in samples} | {
        "shoal_store_snapshot_age_seconds"
    }


def test_the_dashboard_asks_for_metrics_that_are_there(samples):
    board = json.loads((DOCS / "grafana" / "shoal.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"shoal_\w+", expression)}
    assert asked <= {name for name, *_ in samples} | {"shoal_store_snapshot_age_seconds"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 10


def test_a_stranger_gets_none(app, services, bearer):
    client = app.test_client()
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    assert client.get("/metrics").json["code"] == "not-authenticated"


def test_the_settings_may_open_them_to_this_machine_only(services):
    app = Flask("shoal")
    auth.install(app, evolve(services, settings=evolve(services.settings, open_metrics=True)))
    api.install(app)
    client = app.test_client()
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code == 401
