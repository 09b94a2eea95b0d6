"""Pages of releases and rollouts: what they say, who may do what, and the form that begins one."""

from __future__ import annotations

import re

import pytest

from coordinator.fleet import orders, releases
from coordinator.fleet.orders import Target
from coordinator.fleet.releases import ReleaseKey
from coordinator.fleet.rules import Rules
from coordinator.store import models
from tests.web.conftest import post
from tests.web.fleet import NOW


@pytest.fixture
def made(database, tmp_path):
    """Two releases of settings."""
    key = ReleaseKey.of(tmp_path)
    with database.write() as session:
        return [
            releases.create(
                session, key, kind="config", version=version, settings="threads = 2\n", now=NOW, by="ada", notes="quiet"
            ).id
            for version in ("day", "night")
        ]


@pytest.fixture
def begun(database, made):
    """A rollout of the second to everybody; the first device has gone back from it."""
    with database.write() as session:
        row = orders.start(session, made[1], Target(every=True), Rules(), NOW, 10.0, by="olga")
        first = session.query(models.Execution).order_by(models.Execution.wave, models.Execution.place).first()
        first.state, first.text, first.before_id = "rolled-back", "no <connection> in 180 s", made[0]
        return row.id


def state(database, id):
    with database.read() as session:
        return session.get(models.Rollout, id).state


def test_before_anything_is_released_the_pages_say_how(bare):
    assert "shoal release create agent" in bare.get("/releases").text
    assert "Nothing has been rolled out yet" in bare.get("/rollouts").text
    assert "There is nothing to roll out" in bare.get("/rollouts/new").text


def test_releases_are_listed_and_shown_with_their_signed_text(vic, made):
    page = vic.get("/releases").text
    assert page.count('class="is is-valid"') == 2
    shown = vic.get(f"/releases/{made[0]}").text
    assert "&#34;version&#34;:&#34;day&#34;" in shown
    assert "quiet" in shown
    assert vic.get("/releases/99").status_code == 404


def test_a_rollout_shows_its_waves_its_devices_and_what_they_say(vic, begun):
    page = vic.get(f"/rollouts/{begun}").text
    assert "no &lt;connection&gt; in 180 s" in page
    assert "config night" in page
    assert len(re.findall(r'class="is is-rolled-back"', page)) >= 1
    assert ">day<" in page  # what it ran before
    only = vic.get(f"/rollouts/{begun}?state=queued").text
    assert "no &lt;connection&gt;" not in only
    assert vic.get(f"/rollouts/{begun}?sort=-device").status_code == 200
    assert f'href="/rollouts/{begun}"' in vic.get("/rollouts").text


def test_a_viewer_sees_no_buttons_and_may_press_none(vic, begun):
    assert f"/rollouts/{begun}/pause" not in vic.get(f"/rollouts/{begun}").text
    assert post(vic, f"/rollouts/{begun}/pause").status_code == 403
    assert vic.get("/rollouts/new").status_code == 403


def test_an_operator_steers_it(olga, begun, database):
    for action, after in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        assert post(olga, f"/rollouts/{begun}/{action}").location == f"/rollouts/{begun}"
        assert state(database, begun) == after
    assert post(olga, f"/rollouts/{begun}/abort").status_code == 409
    assert post(olga, f"/rollouts/{begun}/explode").status_code == 404


def test_the_living_part_holds_no_secret_of_the_session(olga, begun):
    polled = olga.get(f"/rollouts/{begun}", headers={"X-Live": "1"})
    assert "csrf" not in polled.text
    assert 'class="dense"' in polled.text


def test_the_page_is_another_one_once_a_device_says_something(vic, begun, database):
    address = f"/rollouts/{begun}"
    etag = vic.get(address).headers["ETag"]
    asked = {"X-Live": "1", "If-None-Match": etag}
    assert vic.get(address, headers=asked).status_code == 304
    with database.write() as session:
        one = session.query(models.Execution).filter_by(state="queued").first()
        session.add(models.ExecutionChange(execution_id=one.id, state="notified", at=NOW))
    assert vic.get(address, headers=asked).status_code == 200


def test_back_begins_another_rollout(olga, begun, database):
    with database.write() as session:
        session.query(models.Execution).filter_by(state="rolled-back").one().state = "succeeded"
    answer = post(olga, f"/rollouts/{begun}/back")
    assert answer.location == f"/rollouts/{begun + 1}"
    assert f'href="/rollouts/{begun}"' in olga.get(answer.location).text
    assert state(database, begun) == "aborted"


def test_the_form_begins_what_it_says(olga, made, database):
    page = olga.get(f"/rollouts/new?release={made[0]}").text
    assert f'value="{made[0]}" selected' in page
    answer = post(
        olga, "/rollouts/new", release=str(made[0]), waves="5%, 100 %", success="90", soak="0", parallel="3",
        approval="yes", **{"for": "every"},
    )  # fmt: skip
    with database.read() as session:
        row = session.query(models.Rollout).one()
        rules = Rules.of(row.rules)
    assert answer.location == f"/rollouts/{row.id}"
    assert (rules.waves, rules.success, rules.soak, rules.parallel) == ((0.05, 1.0), 0.9, 0.0, 3)
    assert (rules.approval, rules.force, row.created_by) == (True, False, "olga")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"release": ""}, "release"),
        ({"waves": "some"}, "waves"),
        ({"waves": "50 %"}, "waves"),
        ({"success": "101"}, "success"),
        ({"soak": "long"}, "soak"),
        ({"parallel": "0"}, "parallel"),
        ({"for": "group"}, "group"),
        ({"for": "devices", "devices": " "}, "devices"),
        ({"for": "nobody"}, "for"),
    ],
)
def test_what_is_wrong_is_told_beside_its_field(olga, made, database, fields, wrong):
    answer = post(olga, "/rollouts/new", **{"release": str(made[0]), "for": "every", **fields})
    assert answer.status_code == 400
    assert f'id="wrong-{wrong}"' in answer.text
    with database.read() as session:
        assert session.query(models.Rollout).count() == 0


def test_nobody_to_bring_it_to_is_told_above(olga, made):
    answer = post(olga, "/rollouts/new", release=str(made[0]), group="nobody", **{"for": "group"})
    assert answer.status_code == 400
    assert "There is no device that this rollout would be for" in answer.text


def test_only_an_admin_withdraws(olga, ada, made, database):
    assert post(olga, f"/releases/{made[0]}/withdraw").status_code == 403
    assert post(ada, f"/releases/{made[0]}/withdraw").location == f"/releases/{made[0]}"
    assert 'class="is is-withdrawn"' in ada.get("/releases").text
    assert f'value="{made[0]}"' not in ada.get("/rollouts/new").text


def test_a_rollout_that_waits_for_somebody_needs_attention(olga, begun):
    post(olga, f"/rollouts/{begun}/pause")
    page = olga.get("/").text  # asked once: what was dear to find out is remembered for a while
    assert "1 rollout paused or aborted" in page
    assert "paused: paused by olga" in page


def test_a_device_shows_what_it_runs(vic, made, database):
    with database.write() as session:
        device = session.query(models.Device).first().id
        session.add(models.DeviceRelease(device_id=device, kind="config", version="day", release_id=made[0], at=NOW))
    assert f'<a href="/releases/{made[0]}">day</a>' in vic.get(f"/devices/{device}").text
