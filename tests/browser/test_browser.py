"""The pages in a real Chromium: charts, live updates, keyboard, small screens."""

from __future__ import annotations

import re

import pytest

from coordinator.compiler.zoo import ZOO
from coordinator.store.models import Device, Event, Metric, ModelVersion
from tests.web.fleet import NOW

pytestmark = pytest.mark.browser

PAGES = [
    "/",
    "/devices",
    "/devices/d0003",
    "/runs",
    "/runs/new",
    "/runs/har-night",
    "/runs/har-night/versions",
    "/runs/har-night/promote",
    "/runs/har-wide",
    "/models",
    f"/models/{ZOO['cnn1d'].sha256}",
    "/compare",
    "/compare?run=har-night&run=har-pilot",
    "/history",
    "/history/sql",
    "/enrol",
    "/settings",
]
DRAWN = """canvases => canvases.some(canvas => {
    const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    return new Set(new Uint32Array(image.data.buffer)).size > 3 })"""
SOURCE = "name => Bokeh.documents.map(d => d.get_model_by_name(name)).find(Boolean).data"


def poll(page):
    """Let the page ask the server at once, as it does when its tab comes to the front."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def until(page, expression, seconds=15):
    """Wait for something to become true; Playwright's own waiting needs eval, which the policy forbids."""
    for _ in range(10 * seconds):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never became true: {expression}")


def say(site, text):
    with site.database.write() as session:
        session.add(Event(at=NOW, kind="note", text=text))


def charts(page, count=5):
    page.locator(".chart").nth(count - 1).wait_for(state="attached")
    assert page.locator(".chart").count() == count
    for chart in page.locator(".chart").all():
        chart.locator("canvas").first.wait_for()
    page.wait_for_timeout(300)


@pytest.mark.parametrize(("theme", "background"), [("light", "rgb(245, 247, 248)"), ("dark", "rgb(12, 17, 23)")])
def test_every_page_loads_quietly_in_both_themes(visit, site, theme, background):
    page = visit("/", theme=theme, name="ada")

    for path in PAGES:
        page.goto(site.url + path)
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_charts_are_drawn_by_bokeh_on_the_colour_of_their_card(visit, theme):
    page = visit("/runs/har-night", theme=theme)
    charts(page)

    assert [chart.locator("canvas").evaluate_all(DRAWN) for chart in page.locator(".chart").all()] == [True] * 5
    painted = page.evaluate("Bokeh.documents.map(d => d.roots()[0].background_fill_color)")
    assert painted == [{"light": "#ffffff", "dark": "#151b23"}[theme]] * 5


def test_charts_follow_the_theme_while_the_page_is_open(visit):
    page = visit("/runs/har-night", theme="light")
    charts(page)
    page.emulate_media(color_scheme="dark")

    until(page, "Bokeh.documents.some(d => d.roots()[0].background_fill_color === '#151b23')")


def test_an_event_appears_without_reloading(visit, site):
    page = visit("/")
    page.evaluate("window.untouched = true")
    say(site, "the kettle boils")

    page.get_by_text("the kettle boils").wait_for()  # by its own beat, not by ours
    assert page.evaluate("window.untouched")


def test_a_new_version_lengthens_the_curve_without_reloading(visit, site):
    page = visit("/runs/har-night")
    charts(page)
    before = page.evaluate(SOURCE, "curve")["version"]
    with site.database.write() as session:
        session.add(ModelVersion(run_id="har-night", version=9999, sha256="f" * 64, step_norm=1, updates=4, at=NOW))
        session.add(Metric(run_id="har-night", version=9999, name="accuracy", value=0.97, at=NOW))
        session.add(Event(at=NOW, kind="evaluated", run_id="har-night", text="version 9999: 97.0 %"))
    poll(page)

    until(page, f"({SOURCE})('curve').version.at(-1) === 9999")
    assert page.evaluate(SOURCE, "curve")["version"] == [*before, 9999]


def test_the_timeline_follows_the_clock_but_not_away_from_the_reader(visit):
    window = "Bokeh.documents.map(d => d.get_model_by_name('window')).find(Boolean)"
    page = visit("/runs/har-night")
    charts(page)
    end = page.evaluate(f"{window}.end")
    page.wait_for_timeout(1100)
    poll(page)
    until(page, f"{window}.end > {end}")

    page.evaluate(f"{window}.setv({{start: 1000, end: 2000}})")
    poll(page)
    page.wait_for_timeout(500)
    assert page.evaluate(f"[{window}.start, {window}.end]") == [1000, 2000]


def test_what_is_focused_selected_and_scrolled_stays_when_the_table_changes(visit, site):
    page = visit("/devices", width=500)
    page.get_by_role("link", name="pi4-dock-01").focus()
    page.locator(".scroll").evaluate("box => box.scrollLeft = 180")
    with site.database.write() as session:
        session.get(Device, "d0001").status = "late"
        session.add(Event(at=NOW, kind="note", text="x"))
    poll(page)

    row = page.locator("tr[data-key=d0001]")
    row.get_by_text("late").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "pi4-dock-01"
    assert page.locator(".scroll").evaluate("box => box.scrollLeft") == 180


def test_the_row_under_the_pointer_does_not_move_until_the_pointer_leaves(visit, site):
    page = visit("/devices?sort=name")
    row = page.locator("tr[data-key=d0001]")
    row.hover()
    place = row.bounding_box()
    with site.database.write() as session:
        session.add(Device(id="new", name="a-board", capability={}, enrolled_at=NOW, status="new", status_at=NOW))
        session.get(Device, "d0001").status = "late"
        session.add(Event(at=NOW, kind="note", text="x"))
    poll(page)

    row.get_by_text("late").wait_for()
    assert row.bounding_box() == place
    assert page.locator("tr[data-key=new]").count() == 0

    page.mouse.move(0, 0)
    page.locator("tr[data-key=new]").wait_for()
    assert page.locator("tbody tr").first.get_attribute("data-key") == "new"


def test_a_table_that_is_sorted_anew_keeps_its_rows(visit, site):
    page = visit("/devices?sort=group")
    page.evaluate("document.querySelector('tr[data-key=d0001]').mark = 7")
    with site.database.write() as session:
        session.get(Device, "d0001").group = "zzz"
        session.add(Event(at=NOW, kind="note", text="x"))
    poll(page)

    page.locator("tr[data-key=d0001]").get_by_text("zzz").wait_for()
    assert page.locator("tbody tr").last.get_attribute("data-key") == "d0001"
    assert page.evaluate("document.querySelector('tr[data-key=d0001]').mark") == 7


def test_the_page_says_since_when_it_is_stale_and_recovers(visit, site):
    page = visit("/")
    badge = page.locator(".live")
    page.context.set_offline(True)
    poll(page)
    until(page, "document.querySelector('.live').dataset.state === 'stale'")
    assert re.fullmatch(r"Stale since \d\d:\d\d:\d\d", badge.inner_text())
    visit.complaints[:] = [said for said in visit.complaints if "ERR_INTERNET_DISCONNECTED" not in said]

    page.context.set_offline(False)
    say(site, "back again")
    poll(page)
    page.get_by_text("back again").wait_for()
    assert badge.inner_text() == "Live"


def test_relative_times_go_on_between_two_answers(visit):
    page = visit("/devices/d0003")
    seconds = "parseInt(document.querySelector('#live time').textContent)"
    before = page.evaluate(seconds)

    until(page, f"{seconds} > {before}")


def test_a_sort_link_is_reached_and_followed_by_keyboard(visit):
    page = visit("/devices")
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Temp.":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")

    page.wait_for_url("**/devices?sort=-temperature")
    header = page.get_by_role("columnheader", name="Temp.")
    assert header.get_attribute("aria-sort") == "descending"


def test_the_content_can_be_skipped_to(visit):
    page = visit("/devices")
    page.keyboard.press("Tab")

    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"


def test_a_filter_acts_at_once_and_leaves_a_clean_address(visit, site):
    page = visit("/devices")
    page.get_by_label("Group").select_option("pi3")

    page.wait_for_url(f"{site.url}/devices?group=pi3")
    assert page.locator("tbody tr").count() == 3


def test_revoking_a_device_asks_first(visit, site):
    page = visit("/devices/d0003")
    page.locator("summary", has_text="Revoke").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Revoke zero2-hall-03").click()

    page.locator(".numbers .is-revoked").wait_for()
    with site.database.read() as session:
        assert session.get(Device, "d0003").status == "revoked"


def test_a_small_screen_scrolls_tables_not_the_page(visit, site):
    page = visit("/", width=380, name="ada")

    for path in PAGES:
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, path
