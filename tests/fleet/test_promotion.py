"""A version of a run becomes a signed release, by API and command line, and leads back to what made it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask

from coordinator import api, auth, operators
from coordinator.cli import main
from coordinator.errors import ShoalError
from coordinator.fleet import promotion, releases
from coordinator.fleet.model_release import Limits
from coordinator.fleet.releases import ReleaseKey, verify
from coordinator.services import Services
from coordinator.settings import Settings
from coordinator.store import lineage
from coordinator.store.models import DeviceRelease, Release
from protocol.model_card import ModelCard
from protocol.wire import decode
from tests.coordinator.test_cli import listening  # noqa: F401 - fixtures
from tests.training.house import START, House


@pytest.fixture
def house(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "shoal.db")
    house = House(tmp_path).open()
    yield house
    house.close()


@pytest.fixture
def services(house):
    return Services(
        settings=Settings(home=house.home, heartbeat=10.0, mqtt_port=1883, database=house.database.url),
        database=house.database,
        commands=house.steward,
        blobs=house.blobs,
        clock=house.clock,
    )


@pytest.fixture
def run(house):
    """One that devices have brought to version 1, and that has a test set."""
    rng = np.random.default_rng(0)
    place = house.home / "test.npz"
    np.savez(place, x=rng.normal(size=(40, 4)).astype(np.float32), y=rng.integers(0, 3, 40))
    run = house.start_run(dataset=str(place))
    for device in house.enrol("a", "b"):
        device.work()
    return run


def test_a_promoted_version_is_a_signed_release_whose_files_are_there(services, house, run):
    made = promotion.promote(services, run, by="olga", notes="better", limits=Limits(accuracy_drop=0.1))
    row = house.row(Release, id=made.release)
    assert (row.kind, row.version, row.number, row.created_by, row.notes) == ("model", f"{run}-v1", 1, "olga", "better")
    assert (row.run_id, row.model_version) == (run, 1) == (made.run, made.model_version)
    assert verify(ReleaseKey.of(house.home).public, row.manifest, row.signature)
    manifest = releases.manifest_of(row)
    assert manifest.facts["max-accuracy-drop"] == 0.1
    for file in manifest.files:
        assert len(house.blobs.get(file.sha256)) == file.size
    card = decode(ModelCard, house.blobs.get(manifest.file("model.json").sha256))
    assert [size.accuracy for size in card.sizes] == [size.accuracy for size in made.sizes]
    assert house.events("release-created") == [f"olga released model {run}-v1"]


def test_a_version_is_released_once_under_one_name(services, run):
    promotion.promote(services, run, by="olga")
    with pytest.raises(ShoalError, match="releases never change"):
        promotion.promote(services, run, by="olga")
    assert promotion.promote(services, run, by="olga", name="summer").version == "summer"


def test_where_the_key_is_elsewhere_the_manifest_is_signed_there(services, house, run, tmp_path):
    releases.take_out(house.home, tmp_path / "away.key")
    with pytest.raises(ShoalError, match="kept elsewhere"):
        promotion.promote(services, run, by="olga")
    made = promotion.promote(services, run, by="olga", unsigned=True)
    assert made.release is None
    key = ReleaseKey.read(tmp_path / "away.key")
    signature = key.sign(made.unsigned)
    row = house.steward.write(
        lambda session: releases.admit(
            session, key, house.blobs, made.unsigned, signature, now=START, by="ada"
        ).id
    )
    assert house.row(Release, id=row).model_version == 1
    stranger = ReleaseKey(key.public, Ed25519PrivateKey.generate())
    with pytest.raises(ShoalError, match="not one of the key"):
        house.steward.write(
            lambda session: releases.admit(
                session, key, house.blobs, made.unsigned, stranger.sign(made.unsigned), now=START, by="eve"
            )
        )


def test_from_what_a_device_runs_one_comes_back_to_all_that_made_it(services, house, run):
    made = promotion.promote(services, run, by="olga")

    def said(session) -> None:
        told = {"kind": "model", "at": START + 5}
        session.add(DeviceRelease(device_id="a", version=made.version, release_id=made.release, **told))
        session.add(DeviceRelease(device_id="b", version="homemade", release_id=None, **told))

    house.steward.write(said)
    with house.database.read() as session:
        used = lineage.running(session, "a")
        assert (used["device"], used["run"], used["version"], used["since"]) == ("a", run, 1, START + 5)
        for device, reason in (("b", "homemade"), ("c", "no device 'c'")):
            with pytest.raises(ShoalError, match=reason):
                lineage.running(session, device)
    told = CliRunner().invoke(main, ["history", "lineage", "--device", "a"], env={"SHOAL_DATABASE": house.database.url})
    document = json.loads(told.output)
    assert (document["device"], document["release"]["version"], document["version"]) == ("a", f"{run}-v1", 1)
    assert [device["id"] for device in document["devices"]] == ["a", "b"]
    assert len(document["versions"][1]["updates"]) == 2
    both = CliRunner().invoke(main, ["history", "lineage", run, "--device", "a"])
    assert both.exit_code == 2


@pytest.fixture
def app(services):
    app = Flask("shoal")
    auth.install(app, services)
    api.install(app)
    return app


@pytest.fixture
def tokens(house):
    def mint(session):
        roles = {"olga": "operator", "vic": "viewer"}
        return {n: operators.mint_api(session, START, name=n, role=role, by="ada") for n, role in roles.items()}

    return house.steward.write(mint)


def test_operators_promote_over_the_api(app, tokens, run):
    client = app.test_client()
    path = f"/api/v1/runs/{run}/promote"

    def ask(who, **body):
        return client.post(path, json=body, headers={"Authorization": f"Bearer {tokens[who]}"})

    assert ask("vic").status_code == 403
    made = ask("olga", version="newest", widths=[1, 0.5], milliseconds=20)
    assert made.status_code == 201
    assert [size["width"] for size in made.json["sizes"]] == [1.0, 0.5]
    assert ask("olga", widths=["half"]).status_code == 400
    assert ask("olga", version="77").status_code == 404
    assert ask("olga", accuracy_drop=2).status_code == 400
    assert ask("olga").status_code == 409


@pytest.fixture
def shoal(app, tokens, listening, tmp_path):  # noqa: F811 - fixtures
    port = listening(app)
    env = {"SHOAL_API_TOKEN": tokens["olga"], "SHOAL_HOME": str(tmp_path / "shell")}
    return lambda *words: CliRunner().invoke(main, [*words, "--url", f"http://127.0.0.1:{port}"], env=env)


def test_the_command_shows_what_every_width_is_worth(shoal, run, tmp_path):
    done = shoal("model", "promote", run, "--version", "1", "--name", "v1")
    assert done.exit_code == 0, done.output
    assert "ACCURACY" in done.output
    again = shoal("model", "promote", run, "--name", "v2", "--width", "0.5", "--json")
    assert [size["width"] for size in json.loads(again.output)["sizes"]] == [0.5]
    away = shoal("model", "promote", run, "--name", "v3", "--unsigned", str(tmp_path / "v3.json"))
    assert away.exit_code == 0, away.output
    assert json.loads((tmp_path / "v3.json").read_text())["version"] == "v3"
    assert shoal("model", "promote", run, "--name", "v1").exit_code == 1
