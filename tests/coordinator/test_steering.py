"""Groups, tags, adoption and commands over HTTP: for one device, and for all that pass a filter."""

from __future__ import annotations

import pytest

from coordinator.fleet import enrolment, tokens
from coordinator.store import registry
from coordinator.store.models import Device, DeviceTag, Event
from tests.coordinator.people import HEARTBEAT, START, request_of


@pytest.fixture
def client(app, boards):
    return app.test_client()


@pytest.fixture
def post(client, bearer):
    def ask(path, body=None, who="olga", status=200):
        found = client.post(f"/api/v1{path}", json=body if body is not None else {}, headers=bearer[who])
        assert found.status_code == status, found.json
        return found.json

    return ask


@pytest.fixture
def get(client, bearer):
    def ask(path):
        return client.get(f"/api/v1{path}", headers=bearer["vic"]).json

    return ask


def test_a_tag_is_put_on_and_taken_off(post, get):
    post("/devices/pico/tag", {"tag": "roof"})
    assert post("/devices/pico/tag", {"tag": "a.1"})["row"]["tags"] == ["a.1", "roof"]
    assert post("/devices/pico/tag", {"tag": "roof"})["row"]["tags"] == ["a.1", "roof"]
    post("/devices/tre/tag", {"tag": "roof"})
    assert [row["id"] for row in get("/devices?tag=roof")["rows"]] == ["pico", "tre"]
    assert [row["id"] for row in get("/devices?text=oof")["rows"]] == ["pico", "tre"]
    assert post("/devices/pico/untag", {"tag": "roof"})["row"]["tags"] == ["a.1"]
    assert [row["id"] for row in get("/devices?tag=roof")["rows"]] == ["tre"]


@pytest.mark.parametrize("tag", ["", " ", "two words", "x" * 41, "-x", "é"])
def test_what_is_no_tag(post, tag):
    assert "expected 1 to 40 letters" in post("/devices/pico/tag", {"tag": tag}, status=400)["detail"]


def test_a_device_moves_to_another_group_which_is_told(post, services):
    assert post("/devices/pico/group", {"group": "attic"})["row"]["group"] == "attic"
    post("/devices/pico/group", {"group": "attic"})
    with services.database.read() as session:
        events = session.query(Event).filter_by(kind="device-regrouped").all()
    assert [event.text for event in events] == ["olga moved pico from group kitchen to attic"]


def test_a_pending_device_is_adopted(post, get, services):
    with services.database.write() as session:
        token = tokens.create(session, START, manual=True, by="ada")
        enrolment.enrol(session, request_of("nova", token), START)
    assert get("/devices/nova")["row"]["status"] == "pending"
    assert [row["id"] for row in get("/devices?status=pending")["rows"]] == ["nova"]
    assert post("/devices/nova/adopt")["row"]["status"] == "new"
    assert post("/devices/nova/adopt", status=409)["code"] == "conflict"


def test_a_command_is_listed_and_only_administrators_decommission(post, get):
    told = post("/devices/pico/commands", {"kind": "identify", "ttl": 60.0}, status=201)
    assert (told["kind"], told["state"], told["by"]) == ("identify", "open", "olga")
    assert told["expires_at"] - told["at"] == 60.0
    assert get("/devices/pico/commands") == [told]
    assert get("/devices/tre/commands") == []
    post("/devices/pico/commands", {"kind": "decommission"}, status=403)
    post("/devices/pico/commands", {"kind": "decommission"}, who="ada", status=201)
    post("/devices/pico/commands", {"kind": "identify"}, who="vic", status=403)


class TestBulk:
    def test_all_that_pass_the_filter_are_dealt_with(self, post, get):
        assert post("/device-actions", {"action": "tag", "value": "roof", "text": "e"}) == {
            "devices": 3, "refused": 0, "reason": "",
        }  # fmt: skip
        found = post("/device-actions", {"action": "pause", "tag": "roof", "group": "kitchen"})
        assert found["devices"] == 3
        again = post("/device-actions", {"action": "pause", "status": "paused"})
        assert (again["devices"], again["refused"]) == (3, 3)
        assert "already paused" in again["reason"]
        post("/device-actions", {"action": "command", "value": "restart", "every": True})
        assert {get(f"/devices/{name}/commands")[0]["kind"] for name in ("pico", "tre", "cinque")} == {"restart"}

    def test_a_slip_of_the_hand_does_not_steer_the_whole_fleet(self, post, services):
        assert "Name the devices" in post("/device-actions", {"action": "pause"}, status=400)["detail"]
        with services.database.read() as session:
            assert session.query(Device).filter(Device.paused_at.is_not(None)).count() == 0

    def test_revoked_devices_are_left_alone(self, post, services):
        with services.database.write() as session:
            registry.revoke(session, "tre", START, HEARTBEAT, by="ada")
        assert post("/device-actions", {"action": "tag", "value": "x", "every": True})["devices"] == 2
        with services.database.read() as session:
            assert session.query(DeviceTag).count() == 2

    def test_only_administrators_decommission_many(self, post):
        post("/device-actions", {"action": "command", "value": "decommission", "every": True}, status=403)
