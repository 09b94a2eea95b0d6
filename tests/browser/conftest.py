from __future__ import annotations

import os
import shutil
import threading
import time

import pytest
from attrs import frozen
from cheroot.wsgi import Server

from coordinator import operators
from coordinator.store.database import Database
from tests.coordinator.people import OPERATORS
from tests.web.conftest import Clock, empty_file, fleet_file, serve  # noqa: F401 - fixtures
from tests.web.fleet import NOW

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "Chromium is not installed: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@frozen
class Site:
    """A coordinator's pages, served; what a test writes into ``database`` shows up in the browser."""

    url: str
    database: Database

    def link(self, name: str = "olga", role: str = "operator") -> str:
        with self.database.write() as session:
            return f"{self.url}/login/{operators.mint_login(session, NOW, name=name, role=role, by='local')}"


class Running(Clock):
    """Goes on from the fleet's present, as clocks do."""

    def __init__(self):
        self.began = time.monotonic()

    def __call__(self):
        return NOW + time.monotonic() - self.began


@pytest.fixture
def site(fleet_file, tmp_path):  # noqa: F811
    app, database = serve(fleet_file, tmp_path, Running())
    server = Server(("127.0.0.1", 0), app, numthreads=8)
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield Site(f"http://127.0.0.1:{server.bind_addr[1]}", database)
    server.stop()
    thread.join(10)
    database.close()


@pytest.fixture
def visit(chromium, site):
    """Open a page as olga or somebody else; nothing may be asked of other hosts, refused by the policy or complained
    about."""
    contexts, complaints = [], []

    def visit(path, *, theme="light", width=1280, name="olga"):
        context = chromium.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('refused', e.violatedDirective))"
        )
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda asked: None if asked.url.startswith((site.url, "data:")) else complaints.append(asked.url)
        )
        page.goto(site.link(name, OPERATORS[name]))
        page.goto(site.url + path)
        return page

    visit.complaints = complaints
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
