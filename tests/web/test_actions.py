"""What operators do to devices and runs from their pages."""

from __future__ import annotations

import re

import pytest

from coordinator.store.models import Device, Run

ACTIONS = ["/devices/d0003/pause", "/devices/d0003/revoke", "/runs/har-night/pause", "/runs/har-night/stop"]


def press(client, page, action):
    """Send the form that leads to ``action`` as it stands on a page."""
    form = re.search(rf'action="{action}"><input type="hidden" name="csrf" value="([^"]+)"', client.get(page).text)
    return client.post(action, data={"csrf": form[1]})


def state(database, table, id):
    with database.read() as session:
        row = session.get(table, id)
        return row.status if table is Device else row.state


def test_a_device_is_paused_and_resumed(olga, database):
    answer = press(olga, "/devices/d0003", "/devices/d0003/pause")

    assert (answer.status_code, answer.location) == (303, "/devices/d0003")
    assert state(database, Device, "d0003") == "paused"
    page = olga.get("/devices/d0003").text
    assert "paused by olga" in page

    press(olga, "/devices/d0003", "/devices/d0003/resume")
    assert state(database, Device, "d0003") != "paused"


def test_a_revoked_device_loses_its_work_and_its_buttons(olga, database):
    press(olga, "/devices/d0003", "/devices/d0003/revoke")

    page = olga.get("/devices/d0003").text
    assert state(database, Device, "d0003") == "revoked"
    assert "the device was revoked" in page
    assert "<button" not in page.partition('<main id="main">')[2]


@pytest.mark.parametrize(("first", "then", "after"), [("pause", "resume", "running"), ("pause", "stop", "stopped")])
def test_a_run_is_paused_resumed_and_stopped(olga, database, first, then, after):
    press(olga, "/runs/har-night", f"/runs/har-night/{first}")
    assert state(database, Run, "har-night") == "paused"

    press(olga, "/runs/har-night", f"/runs/har-night/{then}")
    assert state(database, Run, "har-night") == after


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("sent", [{}, {"csrf": ""}, {"csrf": "guessed"}])
def test_a_form_from_elsewhere_is_refused(olga, database, path, sent):
    olga.get("/")
    answer = olga.post(path, data=sent)

    assert answer.status_code == 403
    assert "load the page again" in answer.text
    assert state(database, Device, "d0003") != "paused"
    assert state(database, Run, "har-night") == "running"


@pytest.mark.parametrize("path", ACTIONS)
def test_a_viewer_may_not_act(vic, database, path):
    token = re.search(r'name="csrf" value="([^"]+)"', vic.get("/").text)[1]
    answer = vic.post(path, data={"csrf": token})

    assert answer.status_code == 403
    assert "needs the role operator" in answer.text
    assert state(database, Run, "har-night") == "running"


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_by_looking(olga, path):
    assert olga.get(path).status_code in (404, 405)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/devices/nothing/pause", 404),
        ("/devices/d0003/explode", 404),
        ("/runs/nothing/stop", 404),
        ("/runs/har-night/explode", 404),
        ("/devices/d0003/resume", 409),
        ("/runs/har-pilot/pause", 409),
    ],
)
def test_what_cannot_be_done_is_explained(olga, path, status):
    token = re.search(r'name="csrf" value="([^"]+)"', olga.get("/").text)[1]
    answer = olga.post(path, data={"csrf": token})

    assert answer.status_code == status
    assert 'role="alert"' in answer.text
