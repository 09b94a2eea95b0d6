"""A throw-away PostgreSQL: a cluster in a temporary folder, on a socket there, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from sqlalchemy import create_engine

from coordinator.store.database import Database

BINARIES = "/usr/lib/postgresql/*/bin"


@frozen
class Cluster:
    """Databases by name; the template has the newest revision and no rows."""

    folder: Path

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://shoal@/{name}?host={self.folder}"

    def create(self, name: str, *, migrated: bool = True) -> str:
        """A new database, and its URL; one of the same name is dropped first."""
        template = "migrated" if migrated else "template0"
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._run(f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY file_copy')
        return self.url(name)

    def _run(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``; Debian keeps them off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    newest = sorted(Path("/").glob(f"{BINARIES[1:]}/initdb"), key=lambda path: float(path.parts[-3]))
    return newest[-1].parent if newest else None


@contextmanager
def cluster(programs: Path, *, durable: bool = False) -> Iterator[Cluster]:
    """A cluster that is gone at the end. Durability is off, for it has nothing to keep, unless that is measured."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-postgresql-", dir="/tmp"))
    as_user: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:  # PostgreSQL refuses to be run by root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = folder / "data"
    try:
        initialise = ["-D", data, "-U", "shoal", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        _run([programs / "initdb", *initialise], as_user)
        told = f"-k {folder} -c listen_addresses="
        if not durable:
            told += " -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
        _run([programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", told, "start"], as_user)
        try:
            made = Cluster(folder)
            made.create("migrated", migrated=False)
            database = Database(made.url("migrated"))
            database.upgrade()
            database.close()
            yield made
        finally:
            _run([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"], as_user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(words: list[Any], as_user: dict[str, Any]) -> None:
    # Files, not pipes: the server would hold a pipe open for as long as it lives.
    with tempfile.TemporaryFile() as said:
        done = subprocess.run([*map(str, words)], stdin=subprocess.DEVNULL, stdout=said, stderr=said, **as_user)
        if done.returncode:
            said.seek(0)
            raise RuntimeError(f"{words[0]} failed: {said.read().decode(errors='replace')}")
