"""Backups: database, segments, blobs and the authority's files in one tar, taken while the coordinator goes on.

The archive appears under its name when it is complete and durable, never before; a home is restored in the same way:
the database comes last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from sqlalchemy import func, inspect, make_url, select

from coordinator.errors import NO_ROOM, ShoalError
from coordinator.settings import sqlite_url
from coordinator.store.copying import copy
from coordinator.store.database import Database
from coordinator.store.models import Assignment, Base, Input, Release, Run, Snapshot, Update

FORMAT: Final = 1
FOLDERS: Final = ("segments", "blobs", "tls")
SINGLE: Final = ("shoal.toml", "release.key", "release.pub")
ATTEMPTS: Final = 5
"""How often the files are looked for that the database speaks of, while a coordinator removes what it needs no more."""
MARK: Final = ".restoring"

_NAME: Final = re.compile(
    r"manifest\.json|shoal\.db|shoal\.toml|release\.(key|pub)|segments/\d{8}\.segment|blobs/[0-9a-f]{2}/[0-9a-f]{64}|tls/[\w][\w.-]*"
)


@frozen
class Contents:
    """What an archive holds: rows by table, how many files, and the files the database speaks of that were gone."""

    revision: str
    rows: dict[str, int]
    files: int
    missing: tuple[str, ...]


def backup(home: Path, url: str, file: Path) -> Contents:
    """Write everything below ``home`` that matters, and the database, into a tar. ShoalError home-unusable if the
    archive cannot be written."""
    for left in home.glob(".backup-*"):  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    aside = file.with_name(f".{file.name}.partial")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=home) as folder:
            missing = _gather(home, url, Path(folder))
            contents = _contents(Path(folder), missing)
            _pack(Path(folder), contents, aside)
        os.replace(aside, file)
        _sync(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise ShoalError("home-unusable", f"The backup {file} cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return contents


def restore(file: Path, home: Path, url: str) -> Contents:
    """Fill a home without a database from an archive. ShoalError conflict if there is something already, bad-request
    if the archive is damaged; either way, and when it is killed, the home has all of it or no database."""
    target = Path(path) if (path := _sqlite_path(url)) else None
    if target is not None and target.exists():
        raise ShoalError("conflict", f"There is a database {target} already: restore into another home")
    if (home / MARK).exists():
        _clear(home)  # what a restoration that was killed has left
    if used := [home / name for name in FOLDERS[:2] if any((home / name).glob("*"))]:
        raise ShoalError("conflict", f"There is a folder {used[0]} with files already: restore into another home")
    for left in home.glob(".restore-*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=home) as folder:
            contents = _unpack(file, Path(folder))
            _place(Path(folder), home, url, target)
    except OSError as error:
        raise ShoalError("home-unusable", f"The home {home} cannot be written: {error}") from error
    return contents


# -- taking --------------------------------------------------------------------------------------------------------


def _gather(home: Path, url: str, folder: Path) -> tuple[str, ...]:
    """A moment of the database, and every file it speaks of. Files are linked before and after that moment, and again
    if one came and went in between; linking costs nothing and what is linked cannot go."""
    missing: tuple[str, ...] = ()
    for _ in range(ATTEMPTS):
        _link(home, folder)
        _take_database(url, folder / "shoal.db")
        _link(home, folder)
        missing = tuple(name for name in _needed(folder / "shoal.db") if not (folder / name).is_file())
        if not missing:
            break
    for name in SINGLE:
        if (home / name).is_file():
            shutil.copy(home / name, folder / name)  # with its mode: a key is for its owner alone
    return missing


def _link(home: Path, folder: Path) -> None:
    for name in FOLDERS:
        for path in (home / name).rglob("*"):
            place = folder / path.relative_to(home)
            if not _NAME.fullmatch(str(path.relative_to(home))) or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, place)
            except FileNotFoundError:
                continue  # it was removed just now


def _take_database(url: str, place: Path) -> None:
    place.unlink(missing_ok=True)
    if path := _sqlite_path(url):
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(place)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        return
    source_database, target_database = Database(url, read_only=True), Database(sqlite_url(place))
    try:
        copy(source_database, target_database, lambda table, rows: None)
        with target_database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        source_database.close()
        target_database.close()
    with closing(sqlite3.connect(place)) as single:
        single.execute("PRAGMA journal_mode=DELETE")


def _needed(place: Path) -> Iterator[str]:
    """The files without which a run could not go on from this database."""
    with _reading(place) as database, database.read() as session:
        blobs = set(session.scalars(select(Snapshot.sha256)))
        if any(column["name"] == "initial_sha256" for column in inspect(session.connection()).get_columns("run")):
            blobs |= set(session.scalars(select(Run.initial_sha256).where(Run.initial_sha256.is_not(None))))
        for column in (Assignment.artifact_sha256, Assignment.weights_sha256):
            blobs |= set(session.scalars(select(column).where(Assignment.state.in_(("offered", "taken"))).distinct()))
        if inspect(session.connection()).has_table(Release.__tablename__):
            for manifest in session.scalars(select(Release.manifest).where(Release.withdrawn_at.is_(None))):
                blobs |= {file["sha256"] for file in json.loads(manifest).get("files", ())}
        yield from (f"blobs/{sha256[:2]}/{sha256}" for sha256 in sorted(blobs))
        oldest = session.scalar(select(Input.body).where(Input.kind == "delivered").order_by(Input.seq).limit(1))
        if oldest is not None:
            kept = select(Update.segment).where(Update.segment >= oldest["place"][0]).distinct()
            yield from (f"segments/{segment:08d}.segment" for segment in sorted(session.scalars(kept)))


def _contents(folder: Path, missing: tuple[str, ...]) -> Contents:
    with _reading(folder / "shoal.db") as database, database.read() as session:
        there = inspect(database.engine).get_table_names()  # an older revision has fewer
        tables = [table for table in Base.metadata.sorted_tables if table.name in there]
        rows = {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}
        revision = database.revision()[0] or ""
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    return Contents(revision, rows, files, missing)


def _pack(folder: Path, contents: Contents, aside: Path) -> None:
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "revision": contents.revision,
        "rows": contents.rows,
        "missing": list(contents.missing),
        "files": {},
    }
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        # A segment may grow meanwhile: as much of it counts as was there now.
        manifest["files"][str(path.relative_to(folder))] = path.stat().st_size
    manifest["database"] = _sha256(folder / "shoal.db")
    # It holds hashed secrets and the authority's key: for its owner only.
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            text = json.dumps(manifest).encode()
            about = tarfile.TarInfo("manifest.json")
            about.size = len(text)
            tar.addfile(about, io.BytesIO(text))
            for name, size in manifest["files"].items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = size, 0o600
                with open(folder / name, "rb") as file:
                    tar.addfile(member, file)
        out.flush()
        os.fsync(out.fileno())


# -- putting back --------------------------------------------------------------------------------------------------


def _unpack(file: Path, folder: Path) -> Contents:
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isreg() or not _NAME.fullmatch(member.name):
                    raise ShoalError("bad-request", f"{file} is no backup: it holds {member.name[:80]!r}")
                tar.extract(member, folder, filter="data")
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise ShoalError("bad-request", f"{file} has format {manifest['format']}, expected {FORMAT}")
        _verify(folder, manifest)
        return Contents(manifest["revision"], manifest["rows"], len(manifest["files"]), tuple(manifest["missing"]))
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise ShoalError("bad-request", f"{file} is no backup, or damaged: {error}") from error


def _verify(folder: Path, manifest: dict[str, Any]) -> None:
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{name} is missing or has another size")
        if name.startswith("blobs/") and _sha256(path) != path.name:
            raise ValueError(f"{name} has other contents")
    if _sha256(folder / "shoal.db") != manifest["database"]:
        raise ValueError("shoal.db has other contents")


def _place(folder: Path, home: Path, url: str, target: Path | None) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    (home / MARK).touch()
    _sync(home)
    for name in FOLDERS:
        if (folder / name).is_dir() and not (name == "tls" and (home / name).exists()):
            if (home / name).is_dir():
                (home / name).rmdir()
            os.replace(folder / name, home / name)
    for name in SINGLE:
        if (folder / name).is_file() and not (home / name).exists():
            os.replace(folder / name, home / name)
    if target is not None:
        os.replace(folder / "shoal.db", target)
        _sync(target.parent)
    else:
        source, into = Database(sqlite_url(folder / "shoal.db")), Database(url)
        try:
            source.upgrade()
            copy(source, into, lambda table, rows: None)
        finally:
            source.close()
            into.close()
    (home / MARK).unlink()
    _sync(home)


def _clear(home: Path) -> None:
    for name in FOLDERS[:2]:
        shutil.rmtree(home / name, ignore_errors=True)


@contextmanager
def _reading(place: Path) -> Iterator[Database]:
    database = Database(sqlite_url(place), read_only=True)
    try:
        yield database
    finally:
        database.close()


def _sqlite_path(url: str) -> str:
    given = make_url(url)
    return str(Path(given.database or "").absolute()) if given.get_backend_name() == "sqlite" else ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
