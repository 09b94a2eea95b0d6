"""What a board gets that has no agent yet: the installer for everybody, bundles for whoever holds a token."""

from __future__ import annotations

import hashlib

import pytest

from coordinator.fleet import bundles, tokens
from coordinator.fleet.bundles import Target
from coordinator.fleet.releases import ReleaseKey
from tests.coordinator.people import START


@pytest.fixture
def bundle(home):
    return bundles.build(Target("aarch64", "3.13", ()), home / "bundles")


@pytest.fixture
def holder(services):
    with services.database.write() as session:
        return {"Authorization": "Bearer " + tokens.create(session, START, by="ada", ttl=3600)}


def test_the_installer_is_what_operators_are_told_it_is(app, bundle, bearer) -> None:
    client = app.test_client()
    script = client.get("/install.sh")
    assert script.data.startswith(b"#!/bin/sh\n")
    told = client.get("/api/v1/installer", headers=bearer["vic"]).json
    assert told == {"sha256": hashlib.sha256(script.data).hexdigest(), "targets": ["aarch64-cp313"]}
    assert client.get("/api/v1/installer").status_code == 401


def test_the_holder_of_a_token_gets_bundles_without_using_it_up(app, bundle, holder, services) -> None:
    client = app.test_client()
    (row,) = client.get("/api/v1/bundles", headers=holder).json
    assert row == {"target": "aarch64-cp313", "version": bundle.version, "sha256": bundle.sha256, "size": bundle.size}
    answer = client.get(f"/api/v1/bundles/{bundle.sha256}", headers=holder)
    assert hashlib.sha256(answer.data).hexdigest() == bundle.sha256
    part = client.get(f"/api/v1/bundles/{bundle.sha256}", headers={**holder, "Range": "bytes=10-19"})
    assert (part.status_code, len(part.data)) == (206, 10)
    assert client.get("/api/v1/bundles/" + "0" * 64, headers=holder).status_code == 404
    with services.database.read() as session:
        assert [token.uses for token in tokens.listed(session)] == [0]


def test_the_holder_of_a_token_learns_what_releases_are_signed_with(app, holder, home) -> None:
    client = app.test_client()
    told = client.get("/api/v1/installer/key", headers=holder).json
    assert told == {"release_key": ReleaseKey.of(home).public}
    assert client.get("/api/v1/installer/key").status_code == 401


def test_nobody_else_gets_any(app, bundle, holder, bearer, clock) -> None:
    client = app.test_client()
    for headers in ({}, bearer["ada"], {"Authorization": holder["Authorization"][:-9] + "x" * 7 + ".-"}):
        assert client.get("/api/v1/bundles", headers=headers).status_code == 401
    clock.later(3601)
    assert client.get("/api/v1/bundles", headers=holder).json["detail"] == "This token is expired: ask for a new one"


def test_guessing_is_slowed_down(app, bundle) -> None:
    client = app.test_client()
    codes = [client.get("/api/v1/bundles").status_code for _ in range(22)]
    assert codes[0] == 401
    assert codes[-1] == 429
