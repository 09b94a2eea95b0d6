"""The OpenAPI document is valid, and says of every route what it is, and of nothing else."""

from __future__ import annotations

import re

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from coordinator.api import ENDPOINTS
from tests.coordinator.people import START, add_assignment, add_run, add_update


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def document(client):
    return client.get("/api/v1/openapi.json").json


def test_the_document_is_valid(document):
    validate(document)


def test_every_route_is_documented_and_every_documented_route_exists(app, document):
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix("/api/v1")), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("api.") and rule.endpoint != "api.nothing"
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert documented == routes
    assert len(routes) == len(ENDPOINTS) + 1


def test_every_operation_has_a_sentence_and_says_who_may_use_it(document):
    for methods in document["paths"].values():
        for operation in methods.values():
            assert len(operation["summary"]) > 8
            assert "security" in operation


def test_what_devices_use_is_not_open_to_operators_and_the_other_way_round(document):
    def schemes(path, method="get"):
        return [set(one) for one in document["paths"][path][method]["security"]]

    assert schemes("/device/blobs/{sha256}") == [{"device"}]
    assert schemes("/devices") == [{"token"}, {"session"}]
    assert schemes("/enrol", "post") == []


def test_bodies_are_described_with_their_defaults_and_nothing_else_is_allowed(document):
    schema = document["components"]["schemas"]["TokenRequest"]
    assert schema["properties"]["uses"] == {"type": "integer", "default": 1}
    assert schema["required"] == []
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "path",
    ["/devices", "/devices/pico", "/tokens", "/runs", "/runs/run-1", "/runs/run-1/metrics", "/updates", "/events",
     "/models", "/recipes", "/recipes/fedbuff", "/status", "/healthz"],
)  # fmt: skip
def test_answers_are_as_described(client, document, path, boards, bearer, services):
    with services.database.write() as session:
        add_run(session, "run-1", START)
        add_assignment(session, "a-1", "pico", START)
        add_update(session, "a-1", "pico", START)
    answer = client.get(f"/api/v1{path}", headers=bearer["vic"]).json
    template = path.replace("/pico", "/{device}").replace("/run-1", "/{run}").replace("/fedbuff", "/{recipe}")
    described = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    OAS31Validator({**described, "components": document["components"]}).validate(answer)
