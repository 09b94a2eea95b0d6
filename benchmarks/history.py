"""What history costs while it is written, and how fast it leaves as a file.

Ingest: the heartbeats of 1,000 devices every 10 s and 100 updates per second, written in the steward's way (whatever
waits shares a transaction; bodies go to a segment file that is synced before the commit). The lag of a message is the
time from its arrival until it is durable; ``.readers`` is the same while three processes ask questions of
docs/database.md. Export: rows of the ledger to Parquet by ``shoal history updates``, in a process of its own;
``SHOAL_HISTORY_ROWS`` is how many (1,000,000). The references are the bars: milliseconds, and MiB.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import define, field
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from coordinator.settings import sqlite_url
from coordinator.store import registry
from coordinator.store.database import Database
from coordinator.store.ledger import Delivery, Ledger
from coordinator.store.models import Input, Telemetry, Update, table_of
from coordinator.store.segments import Segments
from coordinator.strategies.base import Contributor
from coordinator.training.inputs import Offered, Settled, Versioned
from protocol.messages import Lineage, Plan, Timings
from protocol.messages import Update as Sent
from protocol.wire import unstructure
from tests import postgresql

from .fleet import Fleet
from .measure import Row, Unavailable
from .report import fsync_rate

NAME = "history"
DEVICES: Final = 1000
PER_SECOND: Final = 100
"""Heartbeats, and updates."""
SECONDS: Final = 15.0
TURN: Final = 200
BODY: Final = 18_000
BARS: Final = {"": 100.0, ".readers": 200.0}
ROWS: Final = int(os.environ.get("SHOAL_HISTORY_ROWS", "1000000"))
RSS_BAR: Final = 200.0
RUN: Final = "digits-1"
PLAN: Final = Plan(width=0.5, batch=16, steps=20, learning_rate=0.1, coding="int8")
QUESTIONS: Final = Path(__file__).parent.parent / "docs" / "database.md"


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``history.ingest.<database>[.readers].p50`` and ``.p99`` in ms, ``history.export.rows_per_s`` and
    ``.rss``."""
    rows = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        progress(f"fsync: {fsync_rate(Path(folder)):.0f}/s")
        for name, url in _databases(Path(folder)):
            for readers, bar in BARS.items():
                lags = _ingest(url(), Path(folder), 3 if readers else 0)
                for part, value in (("p50", statistics.median(lags)), ("p99", statistics.quantiles(lags, n=100)[98])):
                    rows.append(
                        row := Row(f"{NAME}.ingest.{name}{readers}.{part}", 1e3 * value, "ms", bar, bar / value / 1e3)
                    )
                    progress(f"{row.name}: {row.value:.1f} ms of {len(lags)} messages")
        rows += _export(Path(folder), progress)
    return rows


def _databases(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    numbers = iter(range(100))
    yield "sqlite", lambda: sqlite_url(folder / f"ingest-{next(numbers)}.db")
    programs = postgresql.binaries()
    if programs is None:
        raise Unavailable("PostgreSQL is not installed: apt-get install postgresql")
    with postgresql.cluster(programs, durable=True) as cluster:
        yield "postgresql", lambda: cluster.create(f"ingest{next(numbers)}")


# -- ingest --------------------------------------------------------------------------------------------------------


def _ingest(url: str, folder: Path, readers: int) -> list[float]:
    """Seconds that every message waited, over SECONDS."""
    database = Database(url)
    database.upgrade()
    fleet = Fleet(devices=DEVICES, updates=2000, beats=6)
    fleet.write(database)
    segments = Segments(Path(tempfile.mkdtemp(dir=folder)))
    with _readers(url, readers):
        time.sleep(0.5)
        lags = _Writer(database, segments, [fleet.device(number)[0] for number in range(DEVICES)]).run()
    segments.close()
    database.close()
    return lags


@define
class _Writer:
    """Takes what has arrived, writes it in one transaction, and notes how long it waited."""

    database: Database
    segments: Segments
    devices: list[str]
    version: int = 1000
    number: int = 100_000
    waiting: list[str] = field(factory=list)

    def run(self) -> list[float]:
        due = sorted([index / PER_SECOND for index in range(int(SECONDS * PER_SECOND))] * 2)
        begin, lags, done = time.perf_counter(), [], 0
        while done < len(due):
            now = time.perf_counter() - begin
            if due[done] > now:
                time.sleep(due[done] - now)
                continue
            batch = due[done : done + TURN]
            batch = [at for at in batch if at <= now]
            self._turn(range(done, done + len(batch)))
            committed = time.perf_counter() - begin
            lags += [committed - at for at in batch]
            done += len(batch)
        return lags

    def _turn(self, numbers: range) -> None:
        now, signs = round(time.time(), 6), {}
        with self.database.write() as session:
            for number in numbers:
                device = self.devices[number // 2 % DEVICES]
                with session.begin_nested():
                    if number % 2:
                        self._update(session, device, now)
                    else:
                        signs[device] = {"telemetry": self._beat(session, device, now)}
            registry.seen_all(session, signs, now, 10.0)
            self.segments.sync()

    def _beat(self, session: Session, device: str, now: float) -> dict[str, Any]:
        told = {"uptime": 60.0, "load": 0.7, "temperature": 61.5, "memory": 512 << 20, "memory_free": 300 << 20}
        told |= {"disk_free": 8 << 30, "spool": 0}
        session.execute(insert(table_of(Telemetry)), {"device_id": device, "at": now, **told})
        return told

    def _update(self, session: Session, device: str, now: float) -> None:
        self.number += 1
        book, assignment = Ledger(session, RUN, now, 10.0), f"{RUN}.{self.number}"
        explanation = {"whale_fl": {"width": 0.5, "share": 0.4, "utility": 0.8, "seconds": 6.0}}
        offer = Offered(assignment, device, "x", self.version, PLAN, now + 900, explanation, again=False)
        book.offered(offer, Delivery("a" * 64, 9000, "b" * 64, 20_000))
        place = self.segments.append(bytes(BODY))
        sent = Sent(
            assignment=assignment, commit=1, run=RUN, lineage=Lineage(version=self.version, shape_epoch=0), samples=320,
            steps=20, loss=0.5, accuracy=0.8, squared_gradient={}, squared_gradient_peak={}, size=BODY, sha256="c" * 64,
            timings=Timings(download=0.3, train=5.0, upload=None), bytes_down=29_000, coding="int8", chunk=0,
        )  # fmt: skip
        body = {"device": device, "update": unstructure(sent), "place": list(place)}
        row = {"seq": self.number, "run_id": RUN, "kind": "delivered", "body": body, "at": now}
        session.execute(insert(table_of(Input)), row)
        book.settled(Settled(device, sent, "stored", "", 0, 1.0), place)
        self.waiting.append(f"{assignment}/1")
        if len(self.waiting) == 4:
            self.version += 1
            merged = tuple(Contributor(key, 0.25) for key in self.waiting)
            book.versioned(Versioned(self.version, "d" * 64, 0.1, merged))
            self.waiting.clear()


@contextmanager
def _readers(url: str, count: int) -> Iterator[None]:
    started = [
        multiprocessing.get_context("spawn").Process(target=_read, args=(url, n), daemon=True) for n in range(count)
    ]
    for process in started:
        process.start()
    try:
        if started:
            time.sleep(3.0)  # until they have imported what they need
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def _read(url: str, number: int) -> None:
    asked = re.findall(r"```sql\n((?:SELECT|WITH).*?);\n```", QUESTIONS.read_text(encoding="utf-8"), re.DOTALL)
    database = Database(url, read_only=True)
    while True:
        for sql in asked[number::3]:
            with database.read() as session:
                session.execute(text(sql)).all()
            time.sleep(0.2)


# -- export --------------------------------------------------------------------------------------------------------


def _export(folder: Path, progress: Callable[[str], None]) -> list[Row]:
    _grow(folder / "shoal.db", ROWS)
    out = folder / "updates.parquet"
    words = [sys.executable, "-m", "coordinator.cli", "history", "updates", "--limit", "0", "--format", "parquet"]
    began = time.perf_counter()
    with open(out, "wb") as file:
        process = subprocess.Popen([*words, "--home", str(folder)], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, mib = time.perf_counter() - began, usage.ru_maxrss / 1024
    if status:
        raise RuntimeError(f"the export failed with {status}")
    progress(f"{ROWS} rows, {out.stat().st_size / 1e6:.0f} MB, {ROWS / seconds:.0f} rows/s, peak {mib:.0f} MiB")
    return [
        Row(f"{NAME}.export.rows_per_s", ROWS / seconds, "rows/s"),
        Row(f"{NAME}.export.rss", mib, "MiB", RSS_BAR, RSS_BAR / mib),
    ]


def _grow(path: Path, rows: int) -> None:
    """A ledger of so many rows: the same again and again, with other numbers."""
    database = Database(sqlite_url(path))
    database.upgrade()
    Fleet(updates=4000).write(database)
    columns = ", ".join(
        f'"{column.name}"' for column in table_of(Update).columns if column.name not in ("id", "commit")
    )
    with database.engine.begin() as connection:
        made = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'update' AND sql IS NOT NULL"
        for index in connection.exec_driver_sql(made).scalars().all():
            connection.exec_driver_sql(f"DROP INDEX {index}")
        while (have := connection.exec_driver_sql('SELECT count(*) FROM "update"').scalar() or 0) < rows:
            connection.exec_driver_sql(
                f'INSERT INTO "update" ("commit", {columns}) SELECT "commit" + 1, {columns} FROM "update" '
                f"LIMIT {min(have, rows - have)}"
            )
    database.close()
