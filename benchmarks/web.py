"""What an open page costs: 2,000 devices and 50,000 updates in a SQLite file, to which a live fleet goes on adding.

Each page is opened in a headless Chromium by somebody who is logged in, and left open. ``.first_content`` is the first
contentful paint after its address was entered (the page alone; scripts and styles come from the browser's store, as on
the second visit); ``.traffic`` is what comes over the wire while it stays open; ``.server`` is the processor time of
the process that serves it, less what it needs without a page; ``.heap`` is the page's JavaScript memory at the end. The
references are the bars: a second, 20 kB/s, 1 % of a core, 60 MB. ``SHOAL_WEB_SECONDS``: how long each stays open (15).

``web.crowd`` is thirty pages of the same run at once, as programs that ask what an open page asks: ``.server`` is what
all of them take together, ``.poll_p95`` how long they wait for an answer, ``.api_p95`` how long somebody else waits for
the API meanwhile.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from attrs import frozen
from sqlalchemy import insert, text

from coordinator import operators
from coordinator.app import create_app
from coordinator.compiler.zoo import ZOO
from coordinator.services import Services
from coordinator.settings import Settings, sqlite_url
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.models import Event, Telemetry, Update, table_of

from .fleet import Fleet
from .measure import Row, Unavailable

NAME = "web"
FLEET: Final = Fleet(devices=2000, updates=50_000, beats=6)
SECONDS: Final = float(os.environ.get("SHOAL_WEB_SECONDS", "15"))
BEATS: Final = 200
"""Heartbeats per second: each of 2,000 devices every ten seconds."""
UPDATES: Final = 20
"""Per second."""
PAGES: Final = {
    "overview": "/",
    "devices": "/devices",
    "device": "/devices/zero2-001",
    "runs": "/runs",
    "run": "/runs/digits-1",
    "versions": "/runs/digits-1/versions",
    "compare": "/compare?run=digits-1&run=digits-2&run=har-1",
    "models": "/models",
    "history": "/history",
}
BARS: Final = {"first_content": (1.0, "s"), "traffic": (20.0, "kB/s"), "server": (1.0, "% core"), "heap": (60.0, "MB")}
CROWD: Final = 30
CROWD_BARS: Final = {"server": (3.0, "% core"), "poll_p95": (100.0, "ms"), "api_p95": (100.0, "ms")}
_MARKS: Final = re.compile(r'<script type="application/json" data-piece="(\w+)" data-mark="(\w+)"')
_PAINT: Final = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@frozen
class Clock:
    """The fleet's time, going on from its last update."""

    began: float

    def __call__(self) -> float:
        return FLEET.end + time.time() - self.began


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``web.<page>.first_content``, ``.traffic``, ``.server`` and ``.heap``, and those of ``web.crowd``."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Unavailable("Playwright is not installed: pip install playwright") from error
    if chromium is None:
        raise Unavailable("Chromium is not installed: apt-get install chromium")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, _served(Path(folder), progress) as (url, link, pid):
        idle = _share(pid, SECONDS)
        progress(f"server without a page: {100 * idle:.1f} % of a core, {BEATS} heartbeats and {UPDATES} updates/s")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            entry = context.new_page()
            entry.goto(link)
            entry.close()  # or it would go on asking
            for name, path in PAGES.items():
                found = _visit(context, url + path, pid)
                found["server"] = max(0.0, found["server"] - 100 * idle)
                told = (f"{what} {value:.3g} {BARS[what][1]}" for what, value in found.items())
                progress(f"{name}: {', '.join(told)}")
                rows += [_row(f"{NAME}.{name}.{what}", value, *BARS[what]) for what, value in found.items()]
            cookies = {one["name"]: one["value"] for one in context.cookies()}
            browser.close()
        crowd = _crowd(url, "; ".join(f"{name}={value}" for name, value in cookies.items()), pid)
        crowd["server"] = max(0.0, crowd["server"] - 100 * idle)
        progress(", ".join(f"{CROWD} pages: {what} {value:.3g} {CROWD_BARS[what][1]}" for what, value in crowd.items()))
        rows += [_row(f"{NAME}.crowd.{what}", value, *CROWD_BARS[what]) for what, value in crowd.items()]
    return rows


def _row(name: str, value: float, bar: float, unit: str) -> Row:
    return Row(name, value, unit, bar, bar / value if value else None)


def _visit(context: Any, url: str, pid: int) -> dict[str, float]:
    """Open a page twice, the second time with a filled store of files, and leave it open."""
    page = context.new_page()
    page.goto(url)
    page.wait_for_timeout(1500)
    page.goto(url)
    page.wait_for_timeout(2500)
    paint = float(page.evaluate(_PAINT) or "nan") / 1000
    received: list[float] = []
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda done: received.append(done["encodedDataLength"]))
    before, began = _processor(pid), time.perf_counter()
    page.wait_for_timeout(1000 * SECONDS)
    seconds = time.perf_counter() - began
    share = (_processor(pid) - before) / seconds
    heap = float(page.evaluate("performance.memory.usedJSHeapSize")) / 1e6
    page.close()
    return {"first_content": paint, "traffic": sum(received) / seconds / 1000, "server": 100 * share, "heap": heap}


def _crowd(url: str, cookie: str, pid: int) -> dict[str, float]:
    """Thirty viewers of one run, each with a beat of its own, and one who asks the API twice a second."""
    stop, polls, asked = threading.Event(), list[float](), list[float]()

    def look(delay: float) -> None:
        known: dict[str, str] = {}
        marks: dict[str, str] = {}
        stop.wait(delay)
        while not stop.wait(2.0):
            began = time.perf_counter()
            answer, text = _get(f"{url}/runs/digits-1", Cookie=cookie, **{"X-Live": "1", **known})
            polls.append(time.perf_counter() - began)
            if answer.status == 200:
                marks |= dict(_MARKS.findall(text))
                known = {"If-None-Match": answer.headers["ETag"], "X-Known": ",".join(marks.values())}

    def ask() -> None:
        while not stop.wait(0.5):
            began = time.perf_counter()
            _get(f"{url}/api/v1/runs", Cookie=cookie)
            asked.append(time.perf_counter() - began)

    threads = [threading.Thread(target=look, args=(2.0 * place / CROWD,)) for place in range(CROWD)]
    threads.append(threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    time.sleep(5.0)  # each has had its first, whole answer
    share = _share(pid, SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    return {"server": 100 * share, "poll_p95": 1000 * _p95(polls), "api_p95": 1000 * _p95(asked)}


def _get(url: str, **headers: str) -> tuple[Any, str]:
    try:
        with urlopen(Request(url, headers={"Accept-Encoding": "gzip", **headers}), timeout=30) as answer:
            body = answer.read()
            return answer, (gzip.decompress(body) if answer.headers["Content-Encoding"] else body).decode()
    except HTTPError as answer:
        return answer, ""


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


@contextmanager
def _served(folder: Path, progress: Callable[[str], None]) -> Iterator[tuple[str, str, int]]:
    """Address, login link and process of a server over a filled store that goes on growing."""
    database = Database(sqlite_url(folder / "shoal.db"))
    database.upgrade()
    began = time.perf_counter()
    FLEET.write(database)
    with database.write() as session:
        session.execute(text("UPDATE model SET spec = :spec"), {"spec": json.dumps(ZOO["mlp"].to_json())})
        link = operators.mint_login(session, FLEET.end, name="bench", role="admin", by="local")
    progress(f"{FLEET.devices} devices, {FLEET.updates} updates written in {time.perf_counter() - began:.0f} s")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    clock = Clock(time.time())
    server = context.Process(target=_serve, args=(folder, clock, theirs), daemon=True)
    server.start()
    port, stop = ours.recv(), threading.Event()
    writer = threading.Thread(target=_grow, args=(database, clock, stop), daemon=True)
    writer.start()
    try:
        url = f"http://127.0.0.1:{port}"
        assert server.pid is not None
        yield url, f"{url}/login/{link}", server.pid
    finally:
        stop.set()
        writer.join()
        server.kill()
        server.join()
        database.close()


def _serve(folder: Path, clock: Clock, port: Any) -> None:
    from cheroot.wsgi import Server

    database = Database(sqlite_url(folder / "shoal.db"))
    services = Services(Settings(home=folder), database, _Direct(database), Blobs(folder / "blobs"), clock)
    server = Server(("127.0.0.1", 0), create_app(services), numthreads=16)
    server.prepare()
    port.send(server.bind_addr[1])
    server.serve()


@frozen
class _Direct:
    """Pages that are only looked at write a login, and nothing else."""

    database: Database

    def write(self, change: Callable[[Any], Any]) -> Any:
        with self.database.write() as session:
            return change(session)

    def start_run(self, **_: Any) -> str:
        raise NotImplementedError

    def operate(self, run: str, action: str, by: str) -> None:
        raise NotImplementedError

    def command(self, device: str, kind: str, *, life: float, by: str) -> str:
        raise NotImplementedError

    def disconnect(self, device: str) -> None:
        raise NotImplementedError


def _grow(database: Database, clock: Clock, stop: threading.Event) -> None:
    """What a live fleet writes in every second."""
    names = [column.name for column in table_of(Update).columns if column.name not in ("id", "commit", "at")]
    columns = ", ".join(f'"{name}"' for name in names)
    again = text(
        f'INSERT INTO "update" ("commit", at, {columns}) '
        f'SELECT "commit" + :round, :at, {columns} FROM "update" WHERE id <= :count'
    )
    round_ = 0
    while not stop.wait(1.0):
        now, round_ = clock(), round_ + 1
        beat = {"at": now, "uptime": 60.0, "load": 0.7, "temperature": 61.5, "memory": 512 << 20, "spool": 0}
        ids = [FLEET.device((round_ * BEATS + number) % FLEET.devices)[0] for number in range(BEATS)]
        with database.write() as session:
            session.execute(insert(table_of(Telemetry)), [{"device_id": id, **beat} for id in ids])
            told = {"at": now, "kind": "note", "run_id": "digits-1", "text": "goes on"}
            session.execute(insert(table_of(Event)), told)
            moment = session.scalar(text("SELECT at FROM event ORDER BY seq DESC LIMIT 1"))
            session.execute(again, {"round": round_, "at": moment, "count": UPDATES})


def _share(pid: int, seconds: float) -> float:
    before = _processor(pid)
    time.sleep(seconds)
    return (_processor(pid) - before) / seconds


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
