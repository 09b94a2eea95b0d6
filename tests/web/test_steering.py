"""The same for many devices, from the page of devices."""

from __future__ import annotations

import re

from coordinator.store.models import Command, Device, Event
from tests.web.conftest import post
from tests.web.test_pages import Outline, names


def paused(database):
    with database.read() as session:
        return {row.id for row in session.query(Device).filter(Device.paused_at.is_not(None))}


def journal(database, kind):
    with database.read() as session:
        return [row.text for row in session.query(Event).filter_by(kind=kind).order_by(Event.seq)]


def field(page, name):
    return re.search(rf'name="{name}" value="([^"]*)"', page)[1]


def test_chosen_devices_are_named_before_anything_happens_then_paused_and_resumed_again(olga, database):
    before = paused(database)
    asked = post(olga, "/devices/choose", way="pause", device=["d0003", "d0001"]).text

    assert "Pause: 2 devices?" in asked
    assert "zero2-hall-03" in asked
    assert "pi4-dock-01" in asked
    assert paused(database) == before

    done = post(olga, "/devices/steer", way="pause", ids=field(asked, "ids")).text
    assert paused(database) == before | {"d0001", "d0003"}
    assert journal(database, "device-paused") == ["olga paused pi4-dock-01", "olga paused zero2-hall-03"]

    post(olga, "/devices/steer", way=field(done, "way"), ids=field(done, "ids"))
    assert paused(database) == before


def test_all_that_pass_the_filter_are_meant_whatever_page_is_shown(olga):
    wanted = names(olga.get("/devices?group=pi3").text)
    asked = post(olga, "/devices/choose?group=pi3&page=2", way="identify", every="1", device=["d0000"]).text

    assert sorted(field(asked, "ids").split()) == sorted(wanted)


def test_a_tag_is_taken_back_only_from_those_that_got_it_now(olga, database):
    post(olga, "/devices/d0001/tag", value="roof")
    done = post(olga, "/devices/steer", way="tag", value="roof", ids="d0001 d0003").text

    assert "1 device was so already" in Outline(done).text
    assert field(done, "ids") == "d0003"
    post(olga, "/devices/steer", way="untag", value="roof", ids=field(done, "ids"))
    assert names(olga.get("/devices?tag=roof").text) == ["d0001"]
    assert journal(database, "device-untagged") == ["olga took the tag roof from zero2-hall-03"]


def test_what_one_device_refuses_keeps_no_other_from_it(olga, database):
    post(olga, "/devices/d0001/pause")
    done = Outline(post(olga, "/devices/steer", way="pause", ids="d0001 d0003").text).text

    assert "1 device is paused" in done
    assert "1 device refused" in done
    assert "Device d0001 is already paused" in done


def test_commands_go_to_all_and_their_answers_stand_on_the_page_of_each(olga, database):
    post(olga, "/devices/steer", way="collect-logs", ids="d0001 d0003")
    with database.write() as session:
        told = session.query(Command).all()
        assert {(one.device_id, one.kind, one.created_by) for one in told} == {
            ("d0001", "collect-logs", "olga"),
            ("d0003", "collect-logs", "olga"),
        }
        for one in told:
            one.state, one.text = "done", "boot\n<link up>"
    page = olga.get("/devices/d0003").text

    assert "2 lines" in page
    assert "boot\n&lt;link up&gt;" in page


def test_a_device_is_told_grouped_and_tagged_from_its_page(olga, database):
    for action, value in (("command", "identify"), ("group", "attic"), ("tag", "roof")):
        assert post(olga, f"/devices/d0003/{action}", value=value).status_code == 303
    page = Outline(olga.get("/devices/d0003").text)

    assert "identify open until" in page.text
    assert page.all("a", href="/devices?tag=roof")
    assert page.all("a", href="/devices?group=attic")


def test_revoking_many_ends_their_work(olga, database):
    post(olga, "/devices/steer", way="revoke", ids="d0001 d0003")

    assert names(olga.get("/devices?status=revoked").text) == ["d0001", "d0003"]
    assert "Undo" not in post(olga, "/devices/steer", way="revoke", ids="d0002").text


def test_what_is_wrong_is_said_and_nothing_is_done(olga, vic, database):
    assert "No device is chosen" in post(olga, "/devices/choose", way="pause").text
    assert post(olga, "/devices/choose", way="explode", device="d0001").status_code == 400
    assert "A tag is missing" in post(olga, "/devices/steer", way="tag", ids="d0001").text
    assert "expected 1 to 40 letters" in post(olga, "/devices/steer", way="tag", value="two words", ids="d0001").text
    assert post(olga, "/devices/d0003/command", value="decommission").status_code == 403
    vic.get("/")
    assert post(vic, "/devices/steer", way="pause", ids="d0001").status_code == 403
    assert olga.post("/devices/steer", data={"way": "pause", "ids": "d0001"}).status_code == 403
    assert journal(database, "device-paused") == []


def test_a_viewer_sees_no_boxes(vic, olga):
    assert 'name="device"' not in vic.get("/devices").text
    assert olga.get("/devices").text.count('name="device"') == 12
