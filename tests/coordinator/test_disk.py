"""A disk that is full, or may only be read: one sentence, exit code 1, and everything is as it was."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import pytest
from sqlalchemy import func, select

from benchmarks.fleet import Fleet
from coordinator.settings import sqlite_url
from coordinator.store import copying
from coordinator.store.database import Database
from coordinator.store.models import Base, Event

SHOAL = (sys.executable, "-c", "from coordinator.cli import main; main()")
FULL = 100_000
"""Bytes that a file may have at most: as on a disk that is nearly full, whoever writes more is told so."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory, migrated):
    """A home with a past, and a backup of it."""
    home = tmp_path_factory.mktemp("filled") / "home"
    home.mkdir()
    shutil.copy(migrated, home / "shoal.db")
    database = Database(sqlite_url(home / "shoal.db"))
    Fleet(updates=400).write(database)
    database.close()
    assert run(home, "db", "backup", str(home.parent / "good.tar")).returncode == 0
    return home


@pytest.fixture
def home(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "home")


def run(home, *words, limit=None, **options):
    def confined():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environ = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_KEEP_EVENTS": "1", "SHOAL_KEEP_TELEMETRY": "1"}
    given = {"capture_output": True, "env": environ, "preexec_fn": confined, **options}
    return subprocess.run([*SHOAL, *words], text=True, timeout=60, **given)


def refused(done, sentence):
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr


def prints(home):
    database = Database(sqlite_url(home / "shoal.db"))
    with database.engine.connect() as connection:
        found = {table.name: copying.fingerprint(connection, table) for table in Base.metadata.sorted_tables}
    database.close()
    return found


def test_a_full_disk_stops_every_command_that_writes_and_nothing_is_lost(home, tmp_path):
    whole = prints(home)
    refused(run(home, "db", "backup", str(tmp_path / "half.tar"), limit=FULL), "half.tar cannot be written")
    refused(run(home, "db", "copy", "--to", sqlite_url(tmp_path / "half.db"), limit=FULL), "half.db cannot be used")
    refused(run(home, "db", "prune", limit=FULL), "The database cannot be written")
    now = prints(home)
    rolled_up = now["telemetry_5m"]  # a slice of that may have been done; nothing has gone
    assert {**now, "telemetry_5m": whole["telemetry_5m"]} == whole
    assert rolled_up.rows <= whole["telemetry"].rows
    left = {path.name for path in [*home.iterdir(), *tmp_path.iterdir()] if not path.name.startswith("shoal.db")}
    assert left <= {"home", "lock", "half.db"}
    done = run(home, "db", "prune")
    assert done.returncode == 0, done.stderr
    database = Database(sqlite_url(home / "shoal.db"))
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Event)) == 1  # old as they are; the newest stays
    database.close()
    assert prints(home)["update"] == whole["update"]


def test_a_full_disk_leaves_a_new_home_without_half_of_anything(filled, tmp_path):
    backup, new = filled.parent / "good.tar", tmp_path / "new"
    refused(run(new, "db", "restore", str(backup), limit=FULL), f"The home {new} cannot be written: ")
    assert {path.name for path in new.iterdir()} == {"lock"}
    assert run(new, "db", "restore", str(backup)).returncode == 0
    assert prints(new) == prints(filled)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("form", ["table", "parquet"])
def test_what_is_exported_to_a_full_disk_is_told_as_not_written(filled, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    with open("/dev/full", "w") as full:
        options = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        done = run(filled, "history", "updates", "--limit", "0", "--format", form, **options)
    refused(done, "What is asked for cannot be written: No space left on device")


def test_what_may_only_be_read_can_be_asked_but_not_changed(home, tmp_path):
    alone = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"']
    if os.getuid() or subprocess.run([*alone, str(tmp_path), "true"], capture_output=True).returncode:
        pytest.skip("this system lets us make no read-only disk")

    def there(*words):
        environ = {**os.environ, "SHOAL_HOME": str(home)}
        command = [*alone, str(home), *SHOAL, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)

    whole = prints(home)
    for words in (("db", "check"), ("history", "sql", "SELECT count(*) FROM run")):
        done = there(*words)
        assert done.returncode == 0, done.stderr
    refused(there("db", "prune"), f"The home folder {home} cannot be written: Read-only file system")
    refused(there("db", "backup", str(tmp_path / "b.tar")), "b.tar cannot be written: [Errno 30] Read-only file system")
    assert prints(home) == whole
