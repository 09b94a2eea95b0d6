"""What our script asks again and again, and what the server answers."""

from __future__ import annotations

import json
import re

import pytest

from coordinator.store.models import Event, Input, Telemetry
from tests.web.conftest import log_in
from tests.web.fleet import NOW
from web.answers import LEAST

LIVE = {"X-Live": "1"}
PATHS = [
    "/",
    "/devices",
    "/devices/d0003",
    "/runs",
    "/runs/har-night",
    "/history",
    "/models",
    "/runs/har-night/versions",
    "/compare?run=har-night&run=har-pilot",
    "/compare/chart?run=har-night&data=1",
    "/runs/har-night/charts/curve?data=1",
]


def ask(client, path, etag=None, **more):
    return client.get(path, headers={**LIVE, **({"If-None-Match": etag} if etag else {}), **more})


def later(clock):
    """When no answer is given out any more without a look at the store, yet rates count as what they were."""
    clock.now = NOW + LEAST


def note(database):
    with database.write() as session:
        session.add(Event(at=NOW, kind="note", run_id="har-night", text="the kettle boils"))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_sent_while_nothing_changes(olga, path):
    first = ask(olga, path)
    again = ask(olga, path, first.headers["ETag"])

    assert first.status_code == 200
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("path", PATHS)
def test_a_change_is_sent(olga, database, clock, path):
    etag = ask(olga, path).headers["ETag"]
    note(database)
    later(clock)

    assert ask(olga, path, etag).status_code == 200


def test_what_is_polled_is_the_living_part_only(olga):
    whole, part = olga.get("/").text, ask(olga, "/").text

    assert part.startswith('<div id="live"')
    assert "<nav aria-label" not in part
    assert part.strip() in whole


def test_what_is_polled_is_packed_as_it_holds_no_secret(olga):
    for path in PATHS[:-2]:
        assert "csrf" not in ask(olga, path).text
    assert ask(olga, "/devices", **{"Accept-Encoding": "gzip"}).headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in olga.get("/devices", headers={"Accept-Encoding": "gzip"}).headers


def test_a_page_knows_its_own_etag(olga):
    answer = olga.get("/runs")

    assert f'data-etag="{answer.headers["ETag"].replace(chr(34), "&#34;")}"' in answer.text


def test_a_page_that_is_loaded_is_never_empty(olga):
    etag = ask(olga, "/").headers["ETag"]

    assert olga.get("/", headers={"If-None-Match": etag}).status_code == 200


def test_a_heartbeat_changes_the_devices_but_not_the_history(olga, database, clock):
    devices, history = ask(olga, "/devices").headers["ETag"], ask(olga, "/history").headers["ETag"]
    with database.write() as session:
        session.add(Telemetry(device_id="d0003", at=NOW, uptime=1, memory=1, spool=0))
    later(clock)

    assert ask(olga, "/devices", devices).status_code == 200
    assert ask(olga, "/history", history).status_code == 304


def test_every_input_of_a_run_is_a_change(olga, database, clock):
    etag = ask(olga, "/runs/har-night").headers["ETag"]
    with database.write() as session:
        session.add(Input(run_id="har-night", kind="tick", body={}, at=NOW))
    later(clock)

    assert ask(olga, "/runs/har-night", etag).status_code == 200


def test_rates_fall_with_time_though_nothing_happens(olga, clock):
    etag = ask(olga, "/").headers["ETag"]
    clock.now = NOW + 60

    assert ask(olga, "/", etag).status_code == 200


def test_one_page_never_answers_for_another_nor_one_role_for_another(app, database, olga):
    etag = ask(olga, "/devices").headers["ETag"]

    assert ask(olga, "/devices?sort=-name", etag).status_code == 200
    assert ask(log_in(app, database, "vic"), "/devices", etag).status_code == 200


def test_a_script_that_is_logged_out_is_told_so(app):
    answer = app.test_client().get("/", headers={**LIVE, "Sec-Fetch-Mode": "cors"})

    assert answer.status_code == 401


def test_the_servers_clock_comes_along(olga):
    assert float(ask(olga, "/").headers["X-Now"]) == NOW


def test_an_answer_is_shared_by_all_of_a_role_for_a_moment(app, database, olga, clock):
    other = log_in(app, database, "olga")
    first = ask(olga, "/runs/har-night")
    note(database)

    assert ask(other, "/runs/har-night").text == first.text
    later(clock)
    assert "the kettle boils" in ask(other, "/runs/har-night").text


def test_who_has_loaded_a_page_is_never_shown_an_older_state(app, database, olga, clock):
    ask(olga, "/runs/har-night")
    note(database)
    log_in(app, database, "olga").get("/runs/har-night")

    assert "the kettle boils" in ask(olga, "/runs/har-night").text


def test_figures_come_along_with_a_run_to_who_lacks_them(olga, database, clock):
    first = ask(olga, "/runs/har-night?x=version")
    marks = dict(re.findall(r'data-piece="(\w+)" data-mark="(\w+)">', first.text))
    assert sorted(marks) == ["curve", "delays", "staleness", "timeline", "widths"]
    piece = re.search(r'data-piece="curve" data-mark="\w+">(.*?)</script>', first.text)[1]
    assert json.loads(piece) == olga.get("/runs/har-night/charts/curve?x=version&data=1").get_json()

    note(database)
    later(clock)
    known = ",".join(marks.values())
    again = ask(olga, "/runs/har-night?x=version", first.headers["ETag"], **{"X-Known": known})
    assert re.findall(r'data-piece="(\w+)" data-mark', again.text) == ["timeline"]  # its window has moved on
