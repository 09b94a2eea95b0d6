"""Releases and rollouts over HTTP and from the shell: made, signed elsewhere, begun, steered; files for devices."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.fleet import releases, tokens
from coordinator.fleet.releases import ReleaseKey, verify
from coordinator.store import models
from protocol.wire import encode
from tests.coordinator.people import START, basic, request_of


@pytest.fixture
def client(app, boards):
    return app.test_client()


@pytest.fixture
def post(client, bearer):
    def ask(path, body=None, who="ada", status=200):
        found = client.post(f"/api/v1{path}", json=body if body is not None else {}, headers=bearer[who])
        assert found.status_code == status, found.json
        return found.json

    return ask


@pytest.fixture
def get(client, bearer):
    def ask(path, status=200):
        found = client.get(f"/api/v1{path}", headers=bearer["vic"])
        assert found.status_code == status, found.json
        return found.json

    return ask


def config(post, version="night", **given):
    return post("/releases", {"kind": "config", "version": version, "settings": "threads = 2\n", **given}, status=201)


def bundle(home, content=b"a bundle", target="aarch64-cp313", version="0.2.0"):
    folder = home / "bundles"
    folder.mkdir(exist_ok=True)
    (folder / f"shoal-agent-{version}-{target}-{hashlib.sha256(content).hexdigest()}.tar.xz").write_bytes(content)
    return content


def test_settings_are_released_and_signed_with_the_key_that_devices_are_told(post, get, client, services):
    made = config(post, notes="by night", floor=1, days=30)
    assert (made["row"]["id"], made["row"]["number"], made["row"]["notes"]) == (1, 1, "by night")
    key = get("/release-key")
    assert key == {"public": ReleaseKey.of(services.settings.home).public, "here": True}
    assert verify(key["public"], made["manifest"], made["signature"])
    assert json.loads(made["manifest"])["settings"] == "threads = 2\n"
    assert made["row"]["expires_at"] == START + 30 * 86_400
    assert get("/releases/config-night") == get("/releases/1") == made
    assert [row["version"] for row in get("/releases?kind=config")] == ["night"]
    assert get("/releases?kind=agent") == []


def test_who_joins_is_told_the_key(client, services):
    with services.database.write() as session:
        token = tokens.create(session, START, by="ada")
    reply = client.post("/api/v1/enrol", data=encode(request_of("new", token))).json
    assert reply["release_key"] == ReleaseKey.of(services.settings.home).public


def test_an_agent_is_released_from_its_bundles(post, services):
    content = bundle(services.settings.home)
    made = post("/releases", {"kind": "agent"}, status=201)
    assert (made["row"]["version"], made["row"]["files"], made["row"]["size"]) == ("0.2.0", 1, len(content))
    again = post("/releases", {"kind": "agent", "version": "0.2.0-2"}, status=201)
    assert again["row"]["number"] == 2


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"kind": "config", "settings": ""}, 400, "version is missing"),
        ({"kind": "config", "version": "x", "settings": "data = 'elsewhere'"}, 400, "not to be set from afar"),
        ({"kind": "agent"}, 404, "shoal bundle build"),
        ({"kind": "agent", "settings": "threads = 1"}, 400, "but the kind is agent"),
        ({"kind": "firmware", "version": "x"}, 400, "expected one of agent, config"),
        ({"kind": "config", "version": "x", "days": 0}, 400, "days is 0"),
    ],
)
def test_what_is_not_released(post, get, body, status, sentence):
    assert sentence in post("/releases", body, status=status)["detail"]
    assert get("/releases") == []


def test_only_an_admin_makes_releases_and_an_operator_begins_rollouts(post):
    assert post("/releases", {"kind": "config", "version": "x"}, who="olga", status=403)
    config(post)
    assert post("/rollouts", {"release": "1", "every": True}, who="vic", status=403)
    assert post("/rollouts", {"release": "1", "every": True}, who="olga", status=201)


def test_a_release_is_signed_where_the_key_is(post, get, services, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    releases.take_out(services.settings.home, stick / "key.pem")
    assert get("/release-key")["here"] is False
    body = {"kind": "config", "version": "night", "settings": "threads = 2\n"}
    assert "kept elsewhere" in post("/releases", body, status=409)["detail"]
    draft = post("/release-drafts", body)["manifest"]
    signed = {"manifest": draft, "signature": ReleaseKey.read(stick / "key.pem").sign(draft)}
    assert post("/signed-releases", {**signed, "signature": "0" * 128}, status=400)
    assert post("/signed-releases", signed, status=201)["manifest"] == draft
    assert post("/signed-releases", signed, status=409)


class TestRollouts:
    def test_one_is_begun_watched_and_steered(self, post, get):
        config(post)
        begun = post(
            "/rollouts", {"release": "config-night", "group": "kitchen", "waves": [0.4, 1], "soak": 60}, status=201
        )
        row = begun["row"]
        assert (row["state"], row["devices"], row["states"], row["waves"]) == ("running", 3, {"queued": 3}, 2)
        assert begun["rules"]["waves"] == [0.4, 1.0]
        assert begun["rules"]["soak"] == 60.0
        assert begun["target"] == {"group": "kitchen", "tag": "", "every": False}
        assert [wave["devices"] for wave in begun["waves"]] == [2, 1]
        assert [wave["state"] for wave in begun["waves"]] == ["running", "waiting"]
        assert post("/rollouts/1/pause")["row"]["reason"] == "paused by ada"
        assert post("/rollouts/1/resume")["row"]["state"] == "running"
        assert "does not wait for approval" in post("/rollouts/1/approve", status=409)["detail"]
        assert post("/rollouts/1/abort")["row"]["state"] == "aborted"
        assert "is aborted" in post("/rollouts/1/abort", status=409)["detail"]
        assert [row["id"] for row in get("/rollouts")] == [1]
        assert get("/releases/1")["rollouts"] == [1]

    def test_its_devices_come_in_pages_each_with_its_course(self, post, get):
        config(post)
        post("/rollouts", {"release": "1", "devices": ["pico", "tre"]}, status=201)
        page = get("/rollouts/1/executions?sort=-device&size=1")
        assert (page["total"], page["rows"][0]["device"]) == (2, "tre")
        assert get("/rollouts/1/executions?state=succeeded")["rows"] == []
        (change,) = get(f"/executions/{page['rows'][0]['id']}")
        assert (change["state"], change["at"]) == ("queued", START)

    def test_a_device_says_what_it_runs_beside_what_it_was_told(self, post, get, services):
        config(post)
        post("/rollouts", {"release": "1", "devices": ["pico"]}, status=201)
        with services.database.write() as session:
            session.add(models.DeviceRelease(device_id="pico", kind="config", version="own", at=START))
        found = get("/devices/pico/releases")
        assert found["runs"] == [{"kind": "config", "version": "own", "release": None, "at": START}]
        assert [(one["rollout"], one["version"], one["state"]) for one in found["told"]] == [(1, "night", "queued")]
        get("/devices/eve/releases", status=404)

    @pytest.mark.parametrize(
        ("body", "status", "sentence"),
        [
            ({"release": "1"}, 400, "Name the devices"),
            ({"release": "1", "devices": ["pico"], "every": True}, 400, "not both"),
            ({"release": "1", "devices": ["eve"]}, 404, "no device 'eve'"),
            ({"release": "1", "every": True, "waves": [0.5]}, 400, "the last of them 1"),
            ({"release": "1", "every": True, "waves": "all"}, 400, "expected a list of"),
            ({"release": "1", "every": True, "waves": [True]}, 400, "expected a finite number"),
            ({"release": "1", "every": True, "parallel": 0}, 400, "parallel is 0"),
            ({"release": "7", "every": True}, 404, "no release '7'"),
        ],
    )
    def test_what_is_not_begun(self, post, get, body, status, sentence):
        config(post)
        assert sentence in post("/rollouts", body, status=status)["detail"]
        assert get("/rollouts") == []

    def test_nothing_is_where_nothing_is(self, post, get):
        for path in ("/rollouts/9", "/rollouts/x", "/executions/x", "/releases/agent-9"):
            get(path, status=404)
        post("/rollouts/9/back", {}, status=404)

    def test_a_withdrawn_release_begins_nowhere(self, post):
        config(post)
        assert post("/releases/1/withdraw")["row"]["withdrawn_at"] == START
        assert "is withdrawn" in post("/rollouts", {"release": "1", "every": True}, status=409)["detail"]

    def test_there_may_be_nothing_to_go_back_to(self, post):
        config(post)
        post("/rollouts", {"release": "1", "every": True}, status=201)
        assert "could go back to" in post("/rollouts/1/back", {}, status=409)["detail"]


class TestFiles:
    @pytest.fixture
    def begun(self, post, services):
        content = bundle(services.settings.home, bytes(range(100)))
        post("/releases", {"kind": "agent"}, status=201)
        post("/rollouts", {"release": "1", "devices": ["pico"]}, status=201)
        return hashlib.sha256(content).hexdigest(), content

    def test_a_device_gets_what_its_release_names_in_ranges(self, client, begun):
        sha256, content = begun
        whole = client.get(f"/api/v1/device/files/{sha256}", headers=basic("pico"))
        assert (whole.status_code, whole.data) == (200, content)
        part = client.get(f"/api/v1/device/files/{sha256}", headers={**basic("pico"), "Range": "bytes=90-"})
        assert (part.status_code, part.data) == (206, content[90:])

    def test_others_do_not(self, client, begun):
        sha256, _ = begun
        assert client.get(f"/api/v1/device/files/{sha256}", headers=basic("tre")).status_code == 403
        assert client.get(f"/api/v1/device/files/{sha256}", headers=basic("pico", "wrong")).status_code == 401
        assert client.get("/api/v1/device/files/" + "0" * 64, headers=basic("pico")).status_code == 403

    def test_once_it_is_over_it_is_over(self, client, begun, services):
        sha256, _ = begun
        with services.database.write() as session:
            session.query(models.Execution).one().state = "succeeded"
        found = client.get(f"/api/v1/device/files/{sha256}", headers=basic("pico"))
        assert (found.status_code, found.json["detail"]) == (
            404,
            "The rollout that names this file is over for this device",
        )


class TestShell:
    """The commands that need no coordinator."""

    def test_the_key_is_made_shown_and_taken_out(self, tmp_path):
        def shoal(*words):
            return CliRunner().invoke(main, [*words, "--home", str(tmp_path / "home")])

        shown = json.loads(shoal("release", "key", "--json").output)
        assert shown["here"]
        taken = json.loads(shoal("release", "key", "--take-out", str(tmp_path / "k"), "--json").output)
        assert taken == {"public": shown["public"], "here": False}
        assert "is not in" in shoal("release", "key", "--take-out", str(tmp_path / "k")).output
        assert ReleaseKey.read(tmp_path / "k").public == shown["public"]


def test_releases_are_listed_with_how_many_devices_run_them(services, boards, get):
    key = ReleaseKey.of(services.settings.home)
    with services.database.write() as session:
        made = releases.create(session, key, kind="config", version="a", now=START, by="ada")
        session.add(models.DeviceRelease(device_id="pico", kind="config", version="a", release_id=made.id, at=START))
    assert get("/releases")[0]["devices"] == 1
