"""The pages as a browser gets them."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from coordinator.compiler.zoo import ZOO
from coordinator.store.models import Device, Event, Run, Update
from tests.web.conftest import log_in
from tests.web.fleet import NOW

PAGES = [
    "/",
    "/devices",
    "/devices/d0003",
    "/runs",
    "/runs/har-night",
    "/runs/har-pilot",
    "/runs/har-wide",
    "/runs/har-night/versions",
    "/runs/new",
    "/models",
    f"/models/{ZOO['cnn1d'].sha256}",
    f"/models/{ZOO['mlp'].sha256}",
    "/compare",
    "/compare?run=har-night&run=har-pilot",
    "/history",
    "/history/sql",
    "/enrol",
]
LISTS = ["/devices", "/runs", "/history", "/runs/har-night/versions"]
VOID = {"meta", "link", "input", "img", "br"}


class Outline(HTMLParser):
    """A page's elements; fails on a tag that is closed without being open, or left open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def outline(client, path):
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return Outline(answer.text)


def names(page):
    return re.findall(r'<th scope="row"><a href="/devices/(\w+)"', page)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_well_formed_and_has_a_title_and_one_heading(olga, path):
    page = outline(olga, path)

    assert len(page.all("h1")) == 1
    assert page.all("title")
    assert page.all("html", lang="en")
    assert page.all("main", id="main")


@pytest.mark.parametrize("path", PAGES)
def test_nothing_comes_from_elsewhere_and_no_script_stands_in_the_page(olga, path):
    answer = olga.get(path)
    page = Outline(answer.text)

    links = [found.get("src") or found.get("href") for _, found in page.elements]
    assert [link for link in links if link and not link.startswith(("/", "#", "?"))] == []
    assert all("src" in script for script in page.all("script"))
    assert not re.search(r"\son\w+=", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize("path", ["/", "/devices", "/runs", "/history", "/models", "/compare", "/enrol"])
def test_an_empty_fleet_says_what_to_do_next(bare, path):
    page = outline(bare, path)

    expected = {
        "/": "shoal token create",
        "/devices": "shoal-agent enrol --url http://127.0.0.1:8750",
        "/runs": "shoal run start",
        "/history": "Updates appear as soon as a device has trained",
        "/models": "A model appears here with its first run",
        "/compare": "There is no run yet",
        "/enrol": "Make one above, and use it on a board",
    }
    assert expected[path] in page.text


@pytest.mark.parametrize(
    "path", [*PAGES, "/assignments/x", "/history.csv", "/runs/har-night/charts/curve", "/settings"]
)
def test_nobody_reads_anything_without_having_logged_in(app, path):
    answer = app.test_client().get(path)

    assert (answer.status_code, answer.location) == (302, "/login")


@pytest.mark.parametrize(
    "path",
    [
        "/devices/nothing",
        "/runs/nothing",
        "/assignments/nothing",
        "/runs/nothing/charts/curve",
        "/runs/nothing/versions",
        "/runs/nothing/model",
        "/runs/har-night/versions/99999/lineage.json",
        "/runs/new?from=nothing",
        "/models/nothing",
        "/compare?run=nothing",
        "/runs/har-night/charts/pie",
        "/static/bokeh/bokeh-api.min.js",
    ],
)
def test_what_is_not_there_is_not_found_in_a_sentence(olga, path):
    answer = olga.get(path)

    assert answer.status_code == 404
    assert "There is no" in Outline(answer.text).text


@pytest.mark.parametrize(
    "path",
    [
        "/devices?sort=secret",
        "/devices?status=asleep",
        "/devices?page=0",
        "/devices?page=x",
        "/history?width=wide",
        "/history?since=noon",
        "/history?outcome=lost",
        "/history.csv?outcome=lost",
        "/runs?state=gone",
        "/runs/har-night?x=luck",
        "/runs/har-night?window=0",
        "/runs/har-night?until=nan",
        "/runs/har-night?window=90000",
        "/runs/har-night/charts/curve?theme=pink",
        "/runs/har-night?y=luck",
        "/runs/har-night?by=secret",
        "/runs/har-night/model?format=pickle",
        "/runs/har-night/model?width=2",
        "/runs/har-night/versions?sort=secret",
        "/runs/new?recipe=soup",
        "/compare?level=2",
        "/compare?" + "&".join(f"run=r{n}" for n in range(7)),
        "/history?column=secret",
        "/history.xlsx",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_in_a_sentence(olga, path):
    answer = olga.get(path)

    assert answer.status_code == 400
    assert "expected" in Outline(answer.text).text


@pytest.mark.parametrize("path", LISTS)
def test_every_link_in_a_header_sorts_and_says_so(olga, path):
    headers = re.findall(r'<th scope="col"[^>]*><a href="([^"]+)">', olga.get(path).text)

    assert len(headers) >= 6
    for link in headers:
        page = outline(olga, link.replace("&amp;", "&"))
        descending = "sort=-" in link
        assert [th["aria-sort"] for th in page.all("th") if "aria-sort" in th] == [
            "descending" if descending else "ascending"
        ]


def test_a_second_click_turns_the_order_round(olga):
    assert 'href="/devices?sort=-name"' in olga.get("/devices").text
    assert 'href="/devices?sort=name"' in olga.get("/devices?sort=-name").text
    assert names(olga.get("/devices?sort=-name").text) == names(olga.get("/devices").text)[::-1]


def test_sorting_and_paging_keep_the_filter(olga):
    page = olga.get("/history?outcome=applied&device=pi5-barn-00").text

    assert "/history?outcome=applied&amp;device=pi5-barn-00&amp;sort=-loss" in page
    assert "/history?outcome=applied&amp;device=pi5-barn-00&amp;page=2" in page
    assert "/history.csv?device=pi5-barn-00&amp;outcome=applied" in page


def test_devices_are_filtered_by_the_url(olga):
    assert names(olga.get("/devices?status=offline").text) == ["d0005"]
    assert names(olga.get("/devices?group=pi3&sort=name").text) == ["d0010", "d0006", "d0002"]
    assert names(olga.get("/devices?text=hall-03").text) == ["d0003"]
    assert names(olga.get("/devices?flag=hot").text) == ["d0007"]
    assert "No device passes this filter" in olga.get("/devices?text=nothing").text


def test_history_comes_in_pages(olga, database):
    with database.read() as session:
        total = session.query(Update).count()
    first, second = olga.get("/history").text, olga.get("/history?page=2").text

    assert f"1–50 of {total:,} updates" in first
    assert f"51–100 of {total:,} updates" in second
    assert 'rel="next"' in first
    assert 'rel="prev"' not in first
    assert 'rel="prev"' in second


def test_every_status_has_a_word_and_says_since_when(olga):
    text = outline(olga, "/devices/d0005").text

    assert "offline for " in text


def test_times_are_machine_readable(olga):
    times = outline(olga, "/devices").all("time")

    assert times
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time["datetime"]) for time in times)


def test_a_run_says_why_each_device_trains_its_width(olga):
    text = outline(olga, "/runs/har-night").text

    assert re.search(r"WHALE-FL: utility [\d.]+ is \d+ % of the fleet's scale, hence width 1/2 \.", text)


def test_an_assignment_shows_its_plan_and_what_the_policies_looked_at(olga):
    link = re.search(r'"(/assignments/har-pilot[^"]+)"', olga.get("/history?run=har-pilot").text)[1]
    text = outline(olga, link).text

    assert "HeteroFL: devices of group pi5 train width" in text
    assert "Learning rate 0.1" in text


def test_a_run_that_has_ended_shows_its_last_minutes(olga):
    page = olga.get("/runs/har-pilot").text

    assert "data-sliding" not in page
    assert "11:15:00 to 11:20:00 UTC" in page
    assert "data-sliding" in olga.get("/runs/har-night").text


def test_a_young_run_fills_its_timeline(olga, clock):
    clock.now = NOW - 200  # the run is 100 s old

    assert "12:55:00 to 12:56:40 UTC" in olga.get("/runs/har-night").text
    assert "12:54:40 to 12:55:40 UTC" in olga.get(f"/runs/har-night?until={NOW - 260}&window=60").text


def test_hostile_names_and_reasons_stay_text(olga, database):
    attack = '"><script>alert(1)</script>'
    with database.write() as session:
        session.add(
            Device(
                id="evil",
                name=attack,
                group=attack,
                capability={"machine": attack},
                enrolled_at=NOW,
                status="new",
                status_at=NOW,
                agent=attack,
                runtime=attack,
                telemetry={"temperature": 90.0},
            )
        )
        session.get(Run, "har-night").reason = attack
        session.flush()
        session.add(Event(at=NOW, kind="note", device_id="evil", run_id="har-night", text=attack))
        update = session.query(Update).filter_by(run_id="har-night").first()
        update.reason, update.outcome, update.device_id, update.at = attack, "refused", "evil", NOW

    for path in [
        "/",
        "/devices",
        "/devices/evil",
        "/runs/har-night",
        "/history?outcome=refused",
        f"/history?device={attack}",
        f"/history/sql?sql={attack}",
        "/runs/new",
        "/enrol",
        f"/devices?text={attack}",
    ]:
        page = olga.get(path).text
        Outline(page)
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


def test_a_page_is_small(olga):
    files = ["shoal.css", "favicon.svg", "live.js", "morph.js", "pulse.js", "times.js", "charts.js"]
    weight = sum(len(olga.get(f"/static/web/{name}", headers={"Accept-Encoding": "gzip"}).data) for name in files)

    assert weight < 12_000
    assert {path: size for path in PAGES if (size := weight + len(olga.get(path).data)) > 60_000} == {}


def test_files_with_a_fingerprint_are_kept_and_pages_are_not(olga):
    style = re.search(r'href="(/static/web/shoal.css\?v=\w+)"', olga.get("/").text)[1]

    assert "immutable" in olga.get(style).headers["Cache-Control"]
    assert olga.get("/static/web/shoal.css").headers["Cache-Control"] == "no-cache"
    assert olga.get("/").headers["Cache-Control"] == "no-store"


def test_bokeh_comes_packed_from_its_package(olga):
    import bokeh

    link = re.search(r'src="(/static/bokeh/[^"]+)"', olga.get("/runs/har-night").text)[1]
    packed = olga.get(link, headers={"Accept-Encoding": "gzip"})
    plain = olga.get(link)

    assert bokeh.__version__ in link
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < 400_000
    assert len(plain.data) > 1_000_000
    assert "immutable" in plain.headers["Cache-Control"]


def test_the_file_has_every_update_of_the_filter(olga, database):
    answer = olga.get("/history.csv?outcome=applied&run=har-pilot")
    rows = list(csv.DictReader(io.StringIO(answer.text)))

    with database.read() as session:
        count = session.query(Update).filter_by(outcome="applied", run_id="har-pilot").count()
    assert answer.mimetype == "text/csv"
    assert len(rows) == count
    assert {row["outcome"] for row in rows} == {"applied"}
    assert {row["run"] for row in rows} == {"har-pilot"}


def test_a_spreadsheet_runs_nothing_from_the_file(olga, database):
    with database.write() as session:
        session.get(Device, "d0000").name = "=cmd|'/c calc'!A1"
    rows = list(csv.DictReader(io.StringIO(olga.get("/history.csv?device=d0000").text)))

    assert {row["device"] for row in rows} == {"'=cmd|'/c calc'!A1"}


def test_a_viewer_sees_no_buttons_for_what_is_not_allowed(olga, vic):
    assert "/devices/d0003/pause" in olga.get("/devices/d0003").text
    assert "/devices/d0003/pause" not in vic.get("/devices/d0003").text
    assert "/runs/har-night/stop" not in vic.get("/runs/har-night").text


def test_who_is_logged_in_stands_on_the_page(app, database):
    assert "ada · admin" in log_in(app, database, "ada").get("/").text
