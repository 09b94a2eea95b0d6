"""What viewers, operators and administrators do with the pages, in a real Chromium; and what axe-core says of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from coordinator.store.models import Device, Operator, Run
from tests.browser.test_browser import PAGES, charts, poll, until
from tests.web.test_trouble import impatient, locked

pytestmark = pytest.mark.browser

AXE = Path(os.environ.get("SHOAL_AXE", Path(__file__).parents[2] / ".axe/node_modules/axe-core/axe.min.js"))
FOR_OPERATORS = ("/runs/new", "/runs/har-night/promote", "/history/sql")
FOUND = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => `${one.id}: ${one.nodes.map(node => node.target.join(' ')).slice(0, 3).join(' | ')}`)"""
WINDOW = "Bokeh.documents.map(d => d.get_model_by_name('window')).find(Boolean)"
BARS = "Bokeh.documents.map(d => d.get_model_by_name('bars')).find(Boolean).data"


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 380)])
def test_axe_finds_nothing_serious_on_any_page(visit, site, theme, width):
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --prefix .axe axe-core")
    page, script = visit("/", theme=theme, width=width, name="ada"), AXE.read_text()
    found = {}
    for path in PAGES:
        page.goto(site.url + path)
        page.get_by_role("heading", level=1).wait_for()
        page.evaluate(script)
        if broken := page.evaluate(FOUND):
            found[path] = broken
    assert found == {}


def test_a_viewer_sees_every_page_and_no_way_to_act(visit, site):
    page = visit("/", name="vic")
    for path in PAGES:
        if path in (*FOR_OPERATORS, "/settings"):
            continue
        page.goto(site.url + path)
        page.get_by_role("heading", level=1).wait_for()
        actions = page.locator("main form[method=post]").count()
        assert actions == 0, path
    assert page.get_by_role("link", name="Settings").count() == 0


def test_an_operator_starts_a_run_from_the_form(visit, site):
    page = visit("/runs")
    page.get_by_role("link", name="Start a run").click()
    page.get_by_role("navigation", name="Recipes").get_by_text("fedbuff", exact=True).click()
    page.wait_for_url("**/runs/new?recipe=fedbuff")
    assert page.get_by_label("Specification").is_hidden()
    page.get_by_label("Model", exact=True).select_option("mlp")
    page.get_by_label("Name").fill("orchard")
    page.get_by_label("Test set").fill("/srv/test.npz")
    page.get_by_label("Patience").fill("4")
    page.get_by_role("button", name="Start the run").click()

    page.wait_for_url("**/runs/orchard")
    with site.database.read() as session:
        assert session.get(Run, "orchard").created_by == "olga"


def test_what_is_wrong_in_a_form_has_the_focus(visit):
    page = visit("/runs/new")
    page.get_by_label("Target").fill("7")
    page.get_by_role("button", name="Start the run").click()

    page.get_by_text("expected a number above 0, at most 1").wait_for()
    assert page.evaluate("document.activeElement.name") == "target"
    visit.complaints[:] = [said for said in visit.complaints if "400" not in said]


def test_a_token_is_made_and_copied(visit):
    page = visit("/enrol")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Devices", exact=True).fill("5")
    page.get_by_role("button", name="Make the token").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()

    copied = page.evaluate("navigator.clipboard.readText()")
    lines = r"shoal-agent enrol --url http://\S+ --token shoal1\.\S+ --data train\.npz\nshoal-agent run"
    assert re.match(lines, copied)
    assert page.locator("figure.code svg").bounding_box()["width"] > 150


def test_a_question_is_asked_by_keyboard(visit):
    page = visit("/history")
    page.get_by_text("The SQL behind this page").click()
    page.get_by_role("link", name="Open it in the console").click()
    page.get_by_label("One SELECT").fill("SELECT count(*) AS devices FROM device")
    page.keyboard.press("Control+Enter")

    page.get_by_role("columnheader", name="devices").wait_for()
    assert page.locator("tbody td").inner_text() == "12"


def test_columns_are_chosen_and_stay(visit, site):
    page = visit("/history")
    page.locator("summary", has_text="Columns").click()
    for name in ("Norm", "Samples", "Steps"):
        page.get_by_label(name, exact=True).uncheck()
    page.get_by_role("button", name="Show these").click()

    page.get_by_text("Columns (17)").wait_for()
    assert page.get_by_role("columnheader", name="Norm").count() == 0


def test_a_view_of_the_devices_is_saved_in_the_browser_and_forgotten(visit, site):
    page = visit("/devices?group=pi3&sort=-temperature")
    page.get_by_role("button", name="Save this view").click()
    page.get_by_label("Name of the view").fill("warm threes")
    page.get_by_role("button", name="Save").click()
    page.goto(f"{site.url}/devices")
    page.get_by_role("link", name="warm threes").click()

    page.wait_for_url("**/devices?group=pi3&sort=-temperature")
    page.get_by_role("button", name="Forget this view").click()
    assert page.get_by_role("link", name="warm threes").count() == 0


def test_panning_the_timeline_brings_the_work_of_that_time(visit):
    page = visit("/runs/har-night?window=60")
    charts(page)
    first = page.evaluate(f"Math.min(...{BARS}.left)")
    page.evaluate(f"(w => w.setv({{start: w.start - 120000, end: w.end - 120000}}))({WINDOW})")

    until(page, f"Math.min(...{BARS}.left) < {first} - 100000")
    poll(page)
    page.wait_for_timeout(300)
    assert page.evaluate(f"Math.min(...{BARS}.left) < {first} - 100000")


def test_runs_are_compared_with_a_line_for_each(visit):
    page = visit("/compare")
    page.get_by_label("har-night").check()
    page.get_by_label("har-pilot").check()
    page.get_by_role("button", name="Compare").click()
    charts(page, 1)

    assert page.locator(".legend a").all_inner_texts() == ["har-night", "har-pilot"]
    until(page, "Bokeh.documents[0].get_model_by_name('run-1').data.x.length > 10")


def test_an_administrator_adds_an_operator_and_shuts_them_out(visit, site):
    page = visit("/settings", name="ada")
    page.get_by_label("Name", exact=True).fill("vera")
    page.get_by_label("Role", exact=True).first.select_option("operator")
    page.get_by_role("button", name="Add, with a login link").click()
    page.get_by_text("Login link for vera (operator)").wait_for()
    page.get_by_role("button", name="Disable vera").click()

    page.get_by_role("button", name="Enable vera").wait_for()
    with site.database.read() as session:
        assert session.get(Operator, "vera").disabled_at is not None


def test_a_hostile_name_breaks_no_page(visit, site):
    with site.database.write() as session:
        session.get(Device, "d0003").name = "<img src=x onerror=alert(1)>\u202e" + "W" * 50
    page = visit("/devices/d0003", width=380)

    for path in ("/devices/d0003", "/devices", "/runs/har-night", "/history"):
        page.goto(site.url + path)
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, path


def test_devices_are_chosen_paused_together_and_resumed_again(visit, site):
    page = visit("/devices?group=pi3")
    page.get_by_label("Choose all on this page").check()
    page.get_by_text("3 chosen").wait_for()
    page.locator("tbody input[name=device]").first.uncheck()
    page.get_by_text("2 chosen").wait_for()
    poll(page)
    page.get_by_label("What to do").select_option("pause")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("heading", name="Pause: 2 devices?").wait_for()
    page.get_by_role("button", name="Pause 2 devices").click()
    page.get_by_role("heading", name="2 devices paused").wait_for()
    page.get_by_role("button", name="Undo: resume").click()
    page.get_by_role("heading", name="2 devices resumed").wait_for()
    page.get_by_role("link", name="Back to the devices").click()

    page.wait_for_url(f"{site.url}/devices?group=pi3")
    with site.database.read() as session:
        assert session.query(Device).filter(Device.group == "pi3", Device.paused_at.is_not(None)).count() == 0


def test_a_page_is_stale_while_the_database_is_locked_and_recovers_by_itself(visit, site):
    page = visit("/devices")
    impatient(site.database)
    with locked(site.database, whole=True):
        poll(page)
        until(page, "document.querySelector('.live').dataset.state === 'stale'")
        assert re.fullmatch(r"Stale since \d\d:\d\d:\d\d", page.locator(".live").inner_text())
        other = page.context.new_page()
        other.goto(f"{site.url}/runs")
        other.get_by_role("heading", name="The database cannot be used").wait_for()

    other.get_by_role("heading", name="Runs").wait_for()  # it looks again by itself
    until(page, "document.querySelector('.live').dataset.state === 'live'")
    visit.complaints[:] = [said for said in visit.complaints if "503" not in said]


def test_a_session_that_ends_is_told_and_a_new_one_is_enough(visit, site):
    page = visit("/devices")
    cookies = page.context.cookies()
    page.context.clear_cookies()
    poll(page)
    until(page, "document.querySelector('.live').textContent.startsWith('Logged out at')")

    page.context.add_cookies(cookies)
    until(page, "document.querySelector('.live').dataset.state === 'live'")
    visit.complaints[:] = [said for said in visit.complaints if "401" not in said]
