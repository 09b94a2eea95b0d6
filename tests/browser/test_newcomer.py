"""The first hour of somebody new, with a real coordinator and a real agent."""

from __future__ import annotations

import re
import subprocess

import pytest

from coordinator.demo.fleet import Agent
from tests.integration.conftest import fleet  # noqa: F401 - a fixture
from tests.integration.fleet import RECIPE, SHOAL, TIERS, clouds, single_threaded

pytestmark = pytest.mark.browser

CAUTIOUS = RECIPE + '[[admission]]\nkind = "outlier"\nwarm_up = 1000\n'
"""Learns for so long what is usual that no update is used meanwhile."""
REASON = "by which admission learns what is usual; it is not used"


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def test_from_the_first_login_to_why_an_update_was_refused(fleet, page):  # noqa: F811
    home = fleet.server.home
    link = subprocess.run(
        [*SHOAL, "login-link", "--home", str(home)], env=single_threaded(), capture_output=True, text=True, check=True
    )
    fleet.server.start_run(CAUTIOUS)
    page.goto(link.stdout.split()[-1])
    page.get_by_text("No device has joined yet").wait_for()

    page.get_by_role("link", name="Make a claim token").click()
    page.get_by_label("Group").fill("small")
    page.get_by_role("button", name="Make the token").click()
    words = page.locator("#made").inner_text().split()
    told = dict(zip(words[2:8:2], words[3:8:2], strict=True))
    agent = Agent("first-board", TIERS[0], home / "agents" / "first")
    fleet.closing.callback(agent.kill)
    data = clouds(home / "first.npz", 300, seed=5)
    assert agent.enrol(told["--url"], told["--token"], data).wait(60) == 0
    agent.run()

    page.get_by_role("link", name="Devices", exact=True).click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="first-board"))
    row.locator("small", has_text=re.compile("^[1-9]")).first.wait_for()  # updates that it has delivered
    row.get_by_role("link", name="first-board").click()
    page.get_by_role("region", name="Assignments").locator(".is-refused").first.wait_for()
    page.get_by_role("button", name="Pause").click()
    page.locator(".numbers .is-paused").wait_for()

    page.get_by_role("link", name="all its updates").click()
    page.locator("select[name=outcome]").select_option("refused")
    page.wait_for_url("**/history?device=*&outcome=refused")
    latest = page.get_by_role("region", name="Updates").locator("tbody tr").first
    assert REASON in latest.inner_text()
    latest.get_by_role("link").first.click()
    page.get_by_text(REASON).first.wait_for()
